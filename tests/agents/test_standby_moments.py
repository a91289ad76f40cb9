"""A program that stands ready, where something else happens at that very moment."""

import dataclasses
import os
import signal
import threading
from contextlib import suppress

import pytest
from agents.test_standby import SECONDS, clerk, eventually, lives, subreaper  # noqa: F401 - fixtures
from meshgate_agents.child.framing import BadFrame
from meshgate_agents.launcher.calling import Attempt
from meshgate_agents.launcher.children import Child
from meshgate_agents.launcher.errors import AttemptEnded
from meshgate_agents.launcher.peers import start_time
from meshgate_agents.launcher.session import Session
from meshgate_agents.launcher.tools import ToolMap
from meshgate_agents.worker import standbys

REMEMBERS = """
from crewai.memory.storage.lancedb_storage import LanceDBStorage
from crewai.memory.types import MemoryRecord
from crewai.memory.unified_memory import Memory


class Remembers(Scripted):
    def call(self, messages, tools=None, *args, **kwargs):
        known = sorted(record.content for record, _ in self.store.search([1.0, 0.5], limit=9))
        self.store.save([MemoryRecord(content=f"m{len(known)}", scope="/", embedding=[1.0, 0.5])])
        return f"knows {known} by {os.getpid()}"


def crew() -> Crew:
    model = Remembers([], native=True)
    model.store = LanceDBStorage(path=str(HERE / "memory"))
    clerk = Agent(role="Clerk", goal="g", backstory="b", llm=model)
    made = Crew(agents=[clerk], tasks=[Task(description="look", expected_output="words", agent=clerk)])
    made._memory = Memory(llm=model, storage=model.store, read_only=True)
    return made
"""
ENDS = """
import threading


def ends():
    while not (HERE / "end-now").exists():
        time.sleep(0.01)
    os._exit(int((HERE / "end-now").read_text()))


threading.Thread(target=ends, daemon=True).start()
"""
HOLDS = """
while (HERE / "hold").exists():
    time.sleep(0.01)
"""

FOR_A_WHILE = """
if (HERE / "in-vain").exists():
    desk_tools.lookup.run(order="1")
"""


def add(desk, text: str) -> None:
    source = desk.tmp / "p" / "our_crew.py"
    source.write_text(source.read_text() + text)


def test_one_that_is_begun_while_a_task_comes_is_not_forgotten(clerk, monkeypatch) -> None:  # noqa: F811
    """The task asks for another one: there are never two, of which nobody would end the first."""
    desk = clerk()
    real, begun, go_on = standbys.Standby.begin, [], threading.Event()

    def begin(self) -> None:
        real(self)
        begun.append(self)
        if len(begun) == 1:
            assert go_on.wait(SECONDS)

    monkeypatch.setattr(standbys.Standby, "begin", begin)
    desk.task("r1")
    eventually(lambda: begun, "none was begun")
    desk.task("r2")  # by a fresh one; its rest is over by now
    go_on.set()
    desk.stands()
    assert begun == [desk.plays._standbys._one]
    desk.task("r3")
    desk.stands()
    desk.plays.stop()
    for one in begun:
        eventually(lambda one=one: not lives(one.child.pid), "it is left behind")


@pytest.mark.parametrize("stopped", ["long before", "just before"])
def test_one_that_stands_still_does_not_hold_up_a_run(clerk, monkeypatch, stopped) -> None:  # noqa: F811
    """It never reads its task: no sign of life, and it is over."""
    desk = clerk()
    desk.task("r1")
    pid = desk.stands()
    os.kill(pid, signal.SIGSTOP)
    if stopped == "long before":
        eventually(desk.plays._standbys._one._vitals.silent, "nobody noticed")
    assert desk.task("r2").startswith("hello by ")
    assert desk.store.runs["r2"]["attempt"] == (1 if stopped == "long before" else 2)
    eventually(lambda: not lives(pid), "it is left behind")


@pytest.mark.parametrize("status", [0, 1, 3, -9])
def test_one_that_ends_just_before_its_task_is_no_end_of_the_run(clerk, monkeypatch, status) -> None:  # noqa: F811
    """It was there when the attempt began, and was not handed anything: a fresh one does the task."""
    desk = clerk()
    add(desk, ENDS)
    desk.task("r1")
    pid = desk.stands()

    def journal(**_: object) -> list:
        if status < 0:
            with suppress(ProcessLookupError):
                os.kill(pid, -status)
        else:
            (desk.tmp / "end-now").write_text(str(status))
        eventually(lambda: not lives(pid), "it lives")
        (desk.tmp / "end-now").unlink(missing_ok=True)
        return []

    monkeypatch.setattr(desk.store, "journal", journal)
    assert desk.task("r2").startswith("hello by ")
    assert desk.store.runs["r2"]["attempt"] == 1


@pytest.mark.parametrize("what", ["words.txt", "our_crew.py"])
def test_what_changes_while_the_crew_is_built_is_read_anew(clerk, monkeypatch, what) -> None:  # noqa: F811
    """It was read before it changed, and looked at after that."""
    desk = clerk()
    add(desk, HOLDS)
    monkeypatch.setattr(standbys, "REST_SECONDS", 600)
    desk.task("r1")
    (desk.tmp / "hold").touch()
    held = threading.Thread(target=desk.plays._standbys._begin)
    held.start()
    eventually(lambda: len(desk.imported) == 2, "none builds its crew", desk.said)
    path = desk.tmp / "p" / what
    path.write_text(path.read_text().replace("hello", "farewell").replace("{SAID} by", "farewell by"))
    (desk.tmp / "hold").unlink()
    held.join(SECONDS)
    assert desk.task("r2").startswith("farewell by ")


def test_what_a_task_remembered_is_known_to_the_next(clerk) -> None:  # noqa: F811
    """CrewAI opens its store when the crew is built, and knows what was in it then: none stands ready."""
    desk = clerk()
    add(desk, REMEMBERS)
    said = []
    for number in range(3):
        said.append(desk.task(f"r{number}").partition(" by")[0])
        one = eventually(lambda: desk.plays._standbys._one, "none was begun")
        assert one._asked.wait(SECONDS)
    assert said == ["knows []", "knows ['m0']", "knows ['m0', 'm1']"]
    assert "has a memory" in one.unfit()


def vain_ones(desk, count: int) -> None:
    """Tasks, each of which finds one that stands there in vain, or none."""
    add(desk, FOR_A_WHILE)
    (desk.tmp / "in-vain").touch()
    for number in range(count):
        desk.task(f"v{number}")
        assert desk.vain()


def test_several_vain_ones_are_followed_by_a_pause(clerk, monkeypatch) -> None:  # noqa: F811
    """Tasks that come meanwhile are done by fresh programs, and cost no more than those."""
    monkeypatch.setattr(standbys, "PAUSE_SECONDS", 600)
    desk = clerk()
    vain_ones(desk, standbys.MAX_FAULTS)
    begun = len(desk.imported)
    for number in range(3):
        assert desk.task(f"r{number}").startswith("hello by ")
        assert desk.plays._standbys._timer.interval > 500
    assert "no program stands ready in the next 600 s: it asks to call" in desk.said[-1]
    assert len([text for text in desk.said if "no program stands ready" in text]) == 1
    assert (len(desk.imported), desk.plays._standbys._one) == (begun + 3, None)


def test_after_a_pause_it_is_tried_again(clerk, monkeypatch) -> None:  # noqa: F811
    """Each pause is longer, up to a bound; the first that is fit ends them."""
    monkeypatch.setattr(standbys, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(standbys, "MAX_DOUBLINGS", 1)
    desk = clerk()
    vain_ones(desk, standbys.MAX_FAULTS + 2)
    (desk.tmp / "in-vain").unlink()
    desk.task("r1")
    pauses = [text.split(" s: ")[0] for text in desk.said if "no program stands ready" in text]
    assert pauses == [f"no program stands ready in the next {one}" for one in ("0.05", "0.1", "0.1")]
    pid = desk.stands()
    assert desk.task("r2") == f"hello by {pid}"
    os.kill(desk.stands(), signal.SIGKILL)
    eventually(lambda: desk.plays._standbys._one._why, "nobody noticed")
    desk.task("r3")
    desk.stands()
    again = [text for text in desk.said if "no program stands ready" in text]
    assert len(again) == len(pauses), "it is the first vain one again"


def test_one_that_could_not_be_begun_is_tried_again(clerk, monkeypatch) -> None:  # noqa: F811
    """No folder was to be had for its socket, three times; after a pause there is one."""
    monkeypatch.setattr(standbys, "PAUSE_SECONDS", 0.05)
    desk = clerk()
    ours, gone = desk.plays._standbys, desk.tmp / "g"
    ours._settings = dataclasses.replace(ours._settings, socket_dir=gone)
    for number in range(1, standbys.MAX_FAULTS + 1):
        desk.task(f"r{number}")
        eventually(lambda number=number: ours._faults == number, "none was tried", desk.said)
    eventually(lambda: "stands ready in the next 0.05 s" in "".join(desk.said), "nothing was said")
    assert ours._one is None
    gone.mkdir(mode=0o700)
    desk.task("r")
    pid = desk.stands()
    assert desk.task("rr") == f"hello by {pid}"


def test_only_the_program_itself_is_handed_a_task(clerk) -> None:  # noqa: F811
    """A process that its modules started and that reports, or asks, in its place: never answered."""
    desk = clerk()
    desk.task("r1")
    pid = desk.stands()
    one = desk.plays._standbys._one
    with pytest.raises(BadFrame, match="who has not said what it is"):
        one._answer({"op": "task", "read": []}, pid + 1)
    with pytest.raises(AttemptEnded, match="another process"):
        one._answer({"op": "report", "program": "p"}, pid + 1)
    one._report = None
    with pytest.raises(AttemptEnded, match="another process"):
        one._answer({"op": "report", "program": "p"}, pid + 1)


def test_the_word_that_it_left_comes_too_late_for_another_attempt() -> None:
    """Its session is closed: the next attempt is not ended by it."""
    left: list[bool] = []
    session = Session(
        gateway=None, tools=ToolMap(entries=()), attempt=Attempt("r", 1), unavailable_seconds=1,
        on_end=print, on_left=lambda: left.append(True), note=print,
    )  # fmt: skip
    me = os.getpid()
    session.serve_only(Child(popen=_Me(), started=start_time(me)))
    session.answer({"op": "left"}, me)
    session.close()
    session.answer({"op": "left"}, me)
    assert left == [True]


class _Me:
    pid = os.getpid()


SET_UP = """
from pathlib import Path

from crewai.agents.agent_executor import AgentExecutor
from crewai.knowledge.source.string_knowledge_source import StringKnowledgeSource

initial = AgentExecutor._create_initial_state


def made(self):
    (HERE / f"set-up-{os.getpid()}").touch()
    return initial(self)


AgentExecutor._create_initial_state = made


class Noted(StringKnowledgeSource):
    def add(self):
        (HERE / f"stored-{os.getpid()}").touch()


class Own(Agent):
    pass


plain = crew


def crew() -> Crew:
    made = plain()
    if (HERE / "own").exists():
        made.agents[0].__class__ = Own
    if (HERE / "knows").exists():
        made.agents[0].knowledge_sources = [Noted(content="c")]
    return made
"""


def marked(desk, what: str) -> set[int]:
    return {int(path.name.rpartition("-")[2]) for path in desk.tmp.glob(f"{what}-*")}


@pytest.mark.parametrize("more", ["knows", "own"])
def test_its_agent_is_set_up_before_there_is_a_task(clerk, more) -> None:  # noqa: F811
    """Its executor is there; with sources, which would be stored, or a class of its own, once it has one."""
    desk = clerk()
    add(desk, SET_UP)
    desk.task("r1")
    pid = desk.stands()
    assert pid in marked(desk, "set-up")
    (desk.tmp / more).touch()
    assert desk.task("r2") == f"hello by {pid}"
    pid = desk.stands()
    assert pid not in marked(desk, "set-up")
    assert pid not in marked(desk, "stored")
