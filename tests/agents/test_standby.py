"""A program of an agent's app stands ready with its crew built: when it does the task, and when not."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agents.conftest import PROJECT
from fakes.fake_worker import Store
from meshgate_agents.launcher import forks
from meshgate_agents.launcher.announcing import Announcement
from meshgate_agents.launcher.children import Children
from meshgate_agents.launcher.forks import Forks
from meshgate_agents.launcher.gateway import Answer
from meshgate_agents.launcher.peers import become_subreaper, start_time
from meshgate_agents.launcher.settings import load
from meshgate_agents.worker import standbys
from meshgate_agents.worker.plays import Plays
from meshgate_identities import attestation

SECONDS = 60
GIVEN = {
    "crew": "desk",
    "agent": "the_clerk",
    "persona": {"role": "Clerk", "goal": "g", "backstory": "b"},
    "task": {"index": 0, "description": "look", "expected_output": "words"},
    "context": None,
}


class Desk(Store):
    """FAKE: it says yes to each call, and keeps what was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int, str]] = []
        self.steps: list[str] = []

    def call_tool(self, call: Any) -> Answer:
        self.calls.append((call.run_id, call.attempt, call.tool))
        return Answer(state="done", call_id="c", kind="text", result="found")

    def append(self, *, run_id: str, attempt: int, step: Any, given: Any) -> None:
        del attempt, given
        self.steps.append(f"{run_id} {step.key}")

    def hand(self, run_id: str) -> None:
        order = {"app": "clerk", "delegation": GIVEN}
        self.add(run_id)
        self.runs[run_id]["order"] = json.dumps(order).encode()


@dataclass
class Clerk:
    """The worker of an agent's app, in this process."""

    store: Desk
    plays: Plays
    tmp: Path
    said: list[str]

    def task(self, run_id: str) -> str:
        """Has a task done; what its program said."""
        self.store.hand(run_id)
        state = self.plays.play(run_id).result(SECONDS)
        assert state == "completed", (self.store.runs[run_id], self.said)
        return str(json.loads(self.store.runs[run_id]["result"])["output"]["value"])

    @property
    def imported(self) -> set[int]:
        return {int(path.name.partition("-")[2]) for path in self.tmp.glob("imported-*")}

    @property
    def standing(self) -> dict[str, int] | None:
        return json.loads((self.tmp / "clerk.ready").read_bytes()).get("standby")

    def stands(self) -> int:
        """Waits for one that stands ready; its pid."""
        one = eventually(lambda: self.plays._standbys._one, "none stands ready", self.said)
        assert one._asked.wait(SECONDS)
        assert not one.unfit()
        return int(self.standing["pid"])

    def vain(self) -> str:
        """Waits for one that is begun and can be handed no task; why."""
        one = eventually(lambda: self.plays._standbys._one, "none was begun", self.said)
        assert one._asked.wait(SECONDS)
        return str(one.unfit())


def eventually(check, what: str, more: object = ""):
    end = time.monotonic() + SECONDS
    while not (found := check()):
        assert time.monotonic() < end, (what, more)
        time.sleep(0.02)
    return found


def lives(pid: int) -> bool:
    try:
        return bool(start_time(pid))
    except ProcessLookupError:
        return False


@pytest.fixture(scope="module", autouse=True)
def subreaper() -> None:
    """As the worker's own process is."""
    become_subreaper()


@pytest.fixture
def clerk(tmp_path, listed_tools, fork_server, monkeypatch) -> Iterator[Any]:
    """Starts a worker; each setting as it is given. A second task finds one that stands ready at once."""
    monkeypatch.setattr(forks, "_check_server", lambda _: None)  # the server is this process's own
    monkeypatch.setattr(standbys, "REST_SECONDS", 0.01)
    fork_server.admit(attestation.process(os.getpid()))
    begun: list[tuple[Plays, Children]] = []

    def start(**changed: Any) -> Clerk:
        root = tmp_path / "p"
        root.mkdir()
        shutil.copy(PROJECT / "standing_crew.py", root / "our_crew.py")
        (root / "words.txt").write_text("hello")
        (tmp_path / "marks").mkdir()
        (tmp_path / "s").mkdir(mode=0o700)
        env = {
            "PATH": os.environ["PATH"], "HOME": os.environ.get("TMPDIR", "/tmp"),
            "MARKS": str(tmp_path / "marks"), "PYTHONPATH": str(PROJECT), "OTEL_SDK_DISABLED": "true",
            "CREWAI_STORAGE_DIR": str(tmp_path / "storage"), **changed.pop("env", {}),
        }  # fmt: skip
        raw = {
            "app": "clerk", "kind": "agent", "mesh": "test", "trust_domain": "test.example",
            "workload_api": "/nowhere", "gateway": {"target": "127.0.0.1:1", "server_name": "unused"},
            "project_root": str(root), "socket_dir": str(tmp_path / "s"), "tools": listed_tools,
            "expects_report": True, "env": env, "isolation": None, "backoff_seconds": 0.05, "standby": True,
            "crews": {"desk": "our_crew:crew"}, "fork_servers": {sys.executable: str(fork_server.path)},
            "colleagues": [{"crew": "desk", "agent": "the_clerk", "role": "Clerk", "app": "clerk"}],
            **changed,
        }  # fmt: skip
        (tmp_path / "clerk.json").write_text(json.dumps(raw))
        settings, store, said = load(tmp_path / "clerk.json"), Desk(), []
        children = Children(Forks(settings.fork_servers, said.append))
        plays = Plays(
            settings=settings, runs_at_once=4, command=[sys.executable, "-m", "meshgate_agent"],
            gateway=store, children=children, announcement=Announcement(tmp_path / "clerk.ready"),
        )  # fmt: skip
        plays._standbys._note = said.append
        begun.append((plays, children))
        return Clerk(store, plays, tmp_path, said)

    yield start
    for plays, children in begun:
        plays.stop()
        children.end()


def test_the_second_task_is_done_by_a_program_that_was_there_before_it(clerk) -> None:
    """It says the same, makes the same calls, in its own run; and another one stands ready then."""
    desk = clerk()
    first = desk.task("r1")
    pid = desk.stands()
    assert (desk.store.calls, pid in desk.imported) == ([("r1", 1, "desk.lookup")], True)
    second = desk.task("r2")
    assert (first.split()[:2], second) == (["hello", "by"], f"hello by {pid}")
    assert desk.store.calls[1:] == [("r2", 1, "desk.lookup")]
    keys = {run: [one.split()[1] for one in desk.store.steps if one.startswith(run)] for run in ("r1", "r2")}
    assert keys["r1"] == keys["r2"]
    eventually(lambda: not lives(pid), "it did one task, and no other")
    assert desk.stands() not in (0, pid)


def test_none_stands_before_a_first_task_or_where_it_is_not_wanted(clerk) -> None:
    """An app that nobody asks costs nothing; `standby: false` in the manifest."""
    desk = clerk(standby=False)
    desk.task("r1")
    assert desk.plays._standbys._timer is None
    desk.task("r2")
    assert (len(desk.imported), desk.standing) == (2, None)


def test_an_app_of_two_crews_builds_neither_before_there_is_a_task(clerk) -> None:
    """Which of them it will be asked for nobody knows; after some vain ones it is hardly ever tried."""
    desk = clerk(crews={"desk": "our_crew:crew", "other": "our_crew:crew"})
    for number in range(standbys.MAX_FAULTS):
        desk.task(f"r{number}")
        desk.vain()
    desk.task("r")
    assert "no program stands ready in the next 60 s: " in desk.said[-1]


def test_what_has_changed_since_the_crew_was_built_is_read_anew(clerk) -> None:
    """A file that the module read, its own source, and a module that was not there."""
    desk = clerk()
    desk.task("r1")
    pid = desk.stands()
    (desk.tmp / "p" / "words.txt").write_text("good day")
    assert desk.task("r2").startswith("good day by ")
    assert not lives(pid)
    assert "words.txt has changed since the crew was built" in "".join(desk.said)
    pid = desk.stands()
    source = desk.tmp / "p" / "our_crew.py"
    source.write_text(source.read_text().replace("{SAID} by", "{SAID} from"))
    assert desk.task("r3").startswith("good day from ")
    assert not lives(pid)
    pid = desk.stands()
    (desk.tmp / "p" / "our_settings.py").write_text("SAID = 'welcome'")
    assert desk.task("r4").startswith("welcome from ")
    assert not lives(pid)


@pytest.mark.parametrize("what", ["calls a tool", "asks a model", "raises", "ends"])
def test_a_crew_that_cannot_be_built_before_there_is_a_task(clerk, what) -> None:
    """What its module asks for at import is a step of a run: no program that is of none may take it."""
    desk = clerk(env={"AT_IMPORT": what})
    if what in ("raises", "ends"):
        desk.store.hand("r1")
        assert desk.plays.play("r1").result(SECONDS) in ("failed", "completed")
    else:
        assert desk.task("r1").startswith("hello by ")
    before = (list(desk.store.calls), list(desk.store.steps))
    one = eventually(lambda: desk.plays._standbys._one, "none was begun")
    assert one._asked.wait(SECONDS)
    assert one.unfit()
    eventually(lambda: not lives(one.child.pid), "it was not ended")
    assert (desk.store.calls, desk.store.steps) == before
    if what in ("calls a tool", "asks a model"):
        assert desk.task("r2").startswith("hello by ")


def test_one_that_dies_while_it_stands_costs_no_attempt(clerk) -> None:
    """The task is done by a fresh one, as its first attempt."""
    desk = clerk()
    desk.task("r1")
    pid = desk.stands()
    one = desk.plays._standbys._one
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: one._why, "nobody noticed")
    assert desk.task("r2").startswith("hello by ")
    assert desk.store.runs["r2"]["attempt"] == 1


def test_another_attempt_is_made_by_a_fresh_program(clerk) -> None:
    """What failed may lie in what stood ready."""
    desk = clerk()
    desk.task("r1")
    pid = desk.stands()
    desk.store.hand("r2")
    desk.store.runs["r2"]["failures"] = 1
    desk.plays._settings = dataclasses.replace(desk.plays._settings, backoff_seconds=0.01)
    assert desk.plays.play("r2").result(SECONDS) == "completed"
    assert f"by {pid}" not in desk.store.runs["r2"]["result"].decode()
    assert desk.stands() == pid


def test_another_command_is_not_done_by_it(clerk) -> None:
    """An order that names a command of its own, another folder or variables is of another program."""
    desk = clerk()
    desk.task("r1")
    pid = desk.stands()
    order = {"app": "clerk", "delegation": GIVEN}
    others = ({"command": [sys.executable, "-c", "pass"]}, {"cwd": str(desk.tmp)}, {"env": {"A": "b"}})
    for number, other in enumerate(others):
        desk.store.add(f"o{number}")
        desk.store.runs[f"o{number}"]["order"] = json.dumps(order | other).encode()
        desk.plays.play(f"o{number}").result(SECONDS)
    assert desk.stands() == pid


def test_it_is_not_kept_for_long_and_ends_with_its_worker(clerk, monkeypatch) -> None:
    """What it fetched while its crew was built gets old."""
    desk = clerk()
    monkeypatch.setattr(standbys, "LONGEST_SECONDS", 4.0)
    desk.task("r1")
    pid = desk.stands()
    eventually(lambda: desk.plays._standbys._one is None, "it was kept")
    eventually(lambda: not lives(pid), "it lives")
    assert desk.standing is None
    monkeypatch.setattr(standbys, "LONGEST_SECONDS", 300)
    desk.task("r2")
    pid = desk.stands()
    desk.plays.stop()
    eventually(lambda: not lives(pid), "it outlives its worker")
    assert list((desk.tmp / "s").iterdir()) == []


def test_tasks_at_once_share_none(clerk) -> None:
    """One takes what stands ready, the others begin programs of their own."""
    desk = clerk()
    desk.task("r0")
    pid = desk.stands()
    said: list[str] = []
    threads = [threading.Thread(target=lambda n=n: said.append(desk.task(f"r{n}"))) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    pids = [int(text.rpartition(" ")[2]) for text in said]
    assert len(set(pids)) == 3
    assert pid in pids


def test_a_task_that_comes_while_the_crew_is_built_waits_for_it(clerk, monkeypatch) -> None:
    """It began earlier than a fresh one would; but not for ever."""
    desk = clerk()
    desk.task("r1")
    desk.stands()
    one = desk.plays._standbys._one
    monkeypatch.setattr(one._asked, "wait", lambda _seconds: False)
    assert desk.task("r2").startswith("hello by ")
    assert not lives(one.child.pid)
