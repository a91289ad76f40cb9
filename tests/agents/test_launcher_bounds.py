"""What a launcher does at its bounds, and when two things come at once."""

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from meshgate_agents.child.framing import receive, send
from meshgate_agents.launcher import conversations, recorded, supervise
from meshgate_agents.launcher import session as sessions
from meshgate_agents.launcher.calling import Attempt
from meshgate_agents.launcher.children import Children, Program
from meshgate_agents.launcher.errors import Differs, RunHeld
from meshgate_agents.launcher.gateway import Begun, Entry
from meshgate_agents.launcher.launch import Launch
from meshgate_agents.launcher.ready import Start
from meshgate_agents.launcher.session import Session
from meshgate_agents.launcher.supervise import Supervisor
from meshgate_agents.launcher.tools import ToolMap

PROGRAM = str(Path(__file__).parent / "project" / "durable.py")
STEP = {"key": "ab" * 32, "scope": "cd" * 32, "turn": 0}


class Remembering:
    """A gateway that must not be asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda **_: self.asked.append(name)


def made(gateway: Any, **more: Any) -> Session:
    """A session without a launcher."""
    return Session(
        gateway=gateway, tools=ToolMap(entries=()), attempt=Attempt("run-1", 1), unavailable_seconds=1.0,
        on_end=lambda _: None, note=lambda _: None, **{"journal": (), **more},
    )  # fmt: skip


def eventually(check: Any, seconds: float = 20.0) -> None:
    """Polls until it holds."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "did not come to pass"
        time.sleep(0.01)


def test_a_session_holds_so_many_conversations(tmp_path, monkeypatch) -> None:
    """A child that connects without end gets no further thread; one that ends makes room."""
    admitted: list[int] = []
    monkeypatch.setattr(conversations, "MAX_CONVERSATIONS", 2)
    monkeypatch.setattr(conversations, "admit", lambda *_: admitted.append(1) or os.getpid())
    session = made(Remembering())
    path = str(session.listen(tmp_path))
    peers = [socket.socket(socket.AF_UNIX) for _ in range(6)]
    try:
        for peer in peers:
            peer.connect(path)
        eventually(lambda: len(admitted) == 2 and session._conversations._room._value == 0)
        send(peers[5], {"op": "alive"})
        for silent in peers[:4]:
            silent.close()
        peers[5].settimeout(20)
        assert receive(peers[5]) == {"state": "ok", "keep": True}
    finally:
        for peer in peers:
            peer.close()
        session.close()


def test_a_step_that_holds_others_does_not_hold_up_a_pause() -> None:
    """What is looked for is not yet under way: a pause waits for no step that waits for the pause."""
    session = made(Remembering())
    assert session.answer({"op": "seek", "step": STEP}, 1) == {"state": "live"}
    assert session.pause()


def test_a_recorded_step_answers_for_what_was_asked_within_it() -> None:
    """All of its own scope, and nothing of another one; a replay that asks for it has asked for them."""
    within = [Entry(key=str(n), reply=b"{}", answer=None, scope=STEP["scope"]) for n in range(2)]
    other = Entry(key="other", reply=b"{}", answer=None, scope="ef" * 32)
    outer = Entry(key=STEP["key"], reply=b"{}", answer=None, scope=STEP["scope"])
    session = made(Remembering(), live_steps=False, journal=[*within, other, outer])
    assert session.answer({"op": "seek", "step": STEP}, 1)["state"] == "recorded"
    assert (session.unasked, session.steps) == (1, 3)


def test_a_replay_does_not_save() -> None:
    """A recall or a save that is not on record is a difference."""
    with pytest.raises(Differs):
        made(Remembering(), live_steps=False).answer({"op": "seek", "step": STEP}, 1)


def test_a_call_under_way_is_no_answer_and_is_left_out_until_it_is_asked_for(monkeypatch) -> None:
    """Of an earlier attempt: nothing is answered from it, and another call of its tool is told of it."""
    monkeypatch.setattr(recorded, "STRAY_SECONDS", 0.0)
    held = recorded.Recorded([Entry(key="k", reply=None, answer=None, effect_of="orders.refund")])
    stopped = threading.Event()

    def left(tool: str) -> str:
        return held.left_out(tool, busy=lambda: False, stopped=stopped)

    assert (held.get("k"), held.unasked, left("orders.refund"), left("orders.ship")) == (None, 0, "k", "")
    held.asked_live("k", "orders.refund")
    assert left("orders.refund") == ""


@pytest.mark.parametrize("operation", ["reply", "gave_up"])
def test_a_replay_writes_no_reply(operation) -> None:
    """Neither of a step that it holds, nor of one that it does not: a difference, or a broken journal."""
    gateway = Remembering()
    session = made(gateway, live_steps=False)
    with pytest.raises(Differs):
        session.answer({"op": operation, "step": STEP, "reply": "{}"}, 1)
    held = made(gateway, live_steps=False, journal=[Entry(key=STEP["key"], reply=b"{}", answer=None)])
    assert held.answer({"op": "model", "step": STEP}, 1)["state"] == "recorded"
    with pytest.raises(sessions.AttemptEnded):
        held.answer({"op": operation, "step": STEP, "reply": "{}"}, 1)
    assert gateway.asked == []


@pytest.mark.parametrize("first", ["reason", "end"])
def test_a_reason_that_came_before_the_end_is_heard(first) -> None:
    """The child is reaped before the queue is read: what was said until then counts, later words do not."""
    supervisor = Supervisor(Children())
    held = RunHeld("the run waits")

    def started(child: Any) -> None:
        if first == "end":
            supervisor._events.put(supervise._ENDED)
        supervisor.end(held)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    program = Program(command=(sys.executable, "-c", "raise SystemExit(3)"))
    ending = supervisor.run(Start(program, os.environ, "").by(supervisor._children), on_start=started)
    assert (ending.status, ending.fatal) == (3, held if first == "reason" else None)


def not_started(supervisor: Supervisor) -> supervise.Ending:
    """Runs a program that must not be."""

    def started(_child: Any) -> None:
        pytest.fail("it was started")

    program = Program(command=(sys.executable, "-c", "pass"))
    return supervisor.run(Start(program, os.environ, "").by(supervisor._children), on_start=started)


def test_what_is_to_end_already_is_not_started() -> None:
    """A reason for this attempt, or a signal, also one from before it; but no reason of the last one."""
    supervisor, held = Supervisor(Children()), RunHeld("the run waits")
    supervisor.end(RunHeld("an earlier one"))
    supervisor.expect()
    supervisor.end(held)
    assert not_started(supervisor) == supervise.Ending(125, 0, cancelled=False, fatal=held)
    supervisor._events.put(15)
    supervisor.expect()
    assert not_started(supervisor) == supervise.Ending(125, 0, cancelled=True, fatal=None)


def test_a_program_that_leaves_its_group_is_killed_all_the_same() -> None:
    """The end of an attempt reaches the process, whatever group it put itself into."""
    supervisor = Supervisor(Children())
    leave = (
        "import os, time; pid = os.fork(); pid or time.sleep(600); os.setpgid(pid, pid); os.setpgid(0, pid)"
    )
    program = Program(command=(sys.executable, "-c", leave + "; time.sleep(600)"))

    def started(child: Any) -> None:
        eventually(lambda: os.getpgid(child.pid) != child.pid)
        supervisor.end(RunHeld("the run waits"))

    ending = supervisor.run(Start(program, os.environ, "").by(supervisor._children), on_start=started)
    assert (ending.signal, str(ending.fatal)) == (9, "the run waits")


def test_a_closed_session_lets_go(tmp_path) -> None:
    """Its thread ends: a worker plays many, and each holds a journal."""
    before = set(threading.enumerate())
    session = made(Remembering())
    session.listen(tmp_path)
    own = [thread for thread in threading.enumerate() if thread not in before]
    session.close()
    eventually(lambda: own and not any(thread.is_alive() for thread in own))


def test_a_closed_session_leaves_no_folder(tmp_path) -> None:
    """A worker makes one per attempt; what a program put beside the socket is no reason to fail."""
    session = made(Remembering())
    path = session.listen(tmp_path)
    assert path.exists()
    session.close()
    assert list(tmp_path.iterdir()) == []
    odd = made(Remembering())
    path = odd.listen(tmp_path)
    (path.parent / "beside").touch()
    odd.close()
    assert list(path.parent.iterdir()) == [path.parent / "beside"]


@pytest.mark.parametrize("step", ["bind", "listen"])
def test_a_socket_that_cannot_be_opened_leaves_nothing(tmp_path, monkeypatch, step) -> None:
    """The machine is out of something: the attempt ends, and its folder and descriptor go with it."""
    opened: list[socket.socket] = []

    class Broken(socket.socket):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            opened.append(self)

    def fail(*_given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Broken, step, fail)
    monkeypatch.setattr(conversations.socket, "socket", Broken)
    session = made(Remembering())
    with pytest.raises(OSError, match="No space left"):
        session.listen(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert [one.fileno() for one in opened] == [-1]
    session.close()


def test_a_run_of_a_worker_is_replayed_with_its_input(desk) -> None:
    """Command, folder, variables and input as the gateway keeps them; nothing is written there."""
    script = "import os; print(os.getcwd(), os.environ['B'], open(os.environ['MESHGATE_INPUT']).read())"
    folder = desk.tmp / "own"
    folder.mkdir()
    order = {
        "input": {"a": 1},
        "command": [sys.executable, "-c", script],
        "cwd": str(folder),
        "env": {"B": "c"},
    }
    desk.gateway.given = json.dumps(order).encode()
    ended = desk.run("false", run_id="r", replay=True)
    assert (ended.status, ended.out.strip()) == (0, f'{folder} c {{"a": 1}}')
    assert (desk.gateway.runs, desk.gateway.finished, desk.gateway.ended) == ([], [], [])
    assert list((desk.tmp / "s").iterdir()) == []


@pytest.mark.parametrize("reason", ["run_steps_limit", "delegations_limit"])
def test_a_full_run_fails_with_its_reason(desk, reason) -> None:
    """No further attempt would come further: one attempt, the gateway's word in the run's end."""
    desk.gateway.behave = lambda _seen, _nth: grpc.StatusCode.FAILED_PRECONDITION
    desk.gateway.reason = reason
    ended = desk.run(sys.executable, PROGRAM, "native", backoff_seconds=0.05)
    assert ended.status == 125
    ((state, detail),) = desk.gateway.finished
    assert state == "failed"
    assert reason in detail
    assert desk.gateway.ended == []
    assert desk.gateway.journal  # what was recorded stays


def test_a_run_that_is_held_up_is_looked_at_ever_more_rarely(monkeypatch) -> None:
    """Each look is a refusal on record, and a run may be held up for days."""
    held, rests = iter([None] * 7 + [Begun(1, 0)]), []
    settings: Any = SimpleNamespace(run_id="run-1", app="desk", attempts=5)
    launch = Launch(
        settings=settings, gateway=Remembering(), program=Program(command=("x",)), children=Children()
    )
    monkeypatch.setattr(launch, "_begin", lambda _: next(held))
    monkeypatch.setattr(launch, "_play", lambda attempt, first: attempt.number)
    monkeypatch.setattr(launch._supervisor, "rest", rests.append)
    assert launch._next() == 1
    assert rests == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
