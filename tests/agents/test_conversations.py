"""The private socket of a run: connections that stay, and model calls that begin without a question."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from meshgate_agents.child import channel as channels
from meshgate_agents.child.channel import Channel
from meshgate_agents.child.framing import receive, send
from meshgate_agents.launcher import conversations
from meshgate_agents.launcher.gateway import Entry
from meshgate_agents.launcher.session import Attempt, Session
from meshgate_agents.launcher.tools import ToolMap

if TYPE_CHECKING:
    from meshgate_agents.launcher.errors import AttemptEnded

STEP = {"key": "ab" * 32, "scope": "cd" * 32, "turn": 0}
OTHER = {"key": "ef" * 32, "scope": "cd" * 32, "turn": 1}
ALIVE = {"op": "alive"}


class Appending:
    """A gateway that takes model steps."""

    def __init__(self) -> None:
        self.appended: list[str] = []

    def append(self, *, step: Any, **_: Any) -> None:
        """Remembers which."""
        self.appended.append(step.key)


class Served:
    """A session with a socket that this very process is admitted to."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, journal: Any = ()) -> None:
        self.admitted: list[int] = []
        self.ended: list[AttemptEnded] = []
        self.gateway = Appending()
        monkeypatch.setattr(conversations, "admit", self._admit)
        self.session = Session(
            gateway=self.gateway, tools=ToolMap(entries=()), attempt=Attempt("run-1", 1), journal=journal,
            unavailable_seconds=1.0, on_end=self.ended.append, note=lambda _: None,
        )  # fmt: skip
        self.path = str(self.session.listen(folder))
        self.channel = Channel(socket_path=self.path)

    def _admit(self, *_: Any) -> int:
        self.admitted.append(1)
        return os.getpid()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Without a journal."""
    one = Served(tmp_path, monkeypatch)
    yield one
    one.session.close()


def test_one_connection_serves_request_after_request(served: Served) -> None:
    """A process that asks one thing after another is admitted once."""
    for _ in range(5):
        assert served.channel.ask(ALIVE) == {"state": "ok"}
    assert len(served.admitted) == 1


def test_few_connections_rest(served: Served) -> None:
    """Many threads at once are served, and no more than two of their connections stay."""
    begun = [served.channel._connected() for _ in range(6)]
    for connection in begun:
        served.channel._asked(connection, ALIVE)
    assert [one.fileno() >= 0 for one in begun].count(True) == channels.MAX_AT_REST


def test_a_connection_stays_only_while_there_is_room(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit an answer says that it is the last, and the connection ends."""
    monkeypatch.setattr(conversations, "MAX_KEPT", 1)
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.settimeout(20)
        first.connect(served.path)
        send(first, ALIVE)
        assert receive(first) == {"state": "ok", "keep": True}
        second.settimeout(20)
        second.connect(served.path)
        send(second, ALIVE)
        assert receive(second) == {"state": "ok", "keep": False}
        assert second.recv(1) == b""


def test_a_closed_session_ends_what_rests(served: Served) -> None:
    """No thread and no connection outlives it."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        peer.connect(served.path)
        send(peer, ALIVE)
        assert receive(peer) == {"state": "ok", "keep": True}
        served.session.close()
        assert peer.recv(1) == b""


def test_a_fork_has_connections_of_its_own(served: Served) -> None:
    """What the parent keeps is not the child's, which would read the parent's answers."""
    begun = served.channel.begin({"op": "model", "step": STEP, "wait": False})
    assert begun is not None
    served.channel.ask(ALIVE)
    pid = os.fork()
    if pid == 0:
        told = {"op": "reply", "step": STEP, "request": "{}", "reply": "{}"}
        os._exit(0 if served.channel.ask(ALIVE) and begun.ask(told)["state"] == "ok" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (len(served.admitted), served.gateway.appended) == (3, [STEP["key"]])


def test_a_model_call_begins_without_a_question_once_nothing_is_recorded(served: Served) -> None:
    """The first one asks; those after it only tell, and their reply is recorded all the same."""
    assert served.channel.ask({"op": "model", "step": STEP}) == {"state": "live", "fresh": True}
    told = {"op": "reply", "step": STEP, "request": "{}", "reply": "{}"}
    assert served.channel.ask(told) == {"state": "ok", "fresh": True}
    begun = served.channel.begin({"op": "model", "step": OTHER, "wait": False})
    assert begun is not None
    assert begun.ask({**told, "step": OTHER}) == {"state": "ok", "fresh": True}
    assert served.gateway.appended == [STEP["key"], OTHER["key"]]


def test_while_something_is_recorded_every_model_call_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only when all of the journal was asked for can nothing of it be missed."""
    held = [Entry(key=one["key"], reply=b"{}", answer=None) for one in (STEP, OTHER)]
    served = Served(tmp_path, monkeypatch, journal=held)
    live = {**STEP, "key": "12" * 32}
    assert served.channel.ask({"op": "model", "step": live}) == {"state": "live", "fresh": False}
    for one in (STEP, OTHER):
        assert served.channel.ask({"op": "model", "step": one})["state"] == "recorded"
    told = {"op": "reply", "step": live, "request": "{}", "reply": "{}"}
    assert served.channel.ask(told) == {"state": "ok", "fresh": True}
    served.session.close()


def test_a_paused_run_begins_no_model_call(served: Served) -> None:
    """The reply that is under way is recorded, and says that the next call has to ask."""
    assert served.channel.ask({"op": "model", "step": STEP})["fresh"] is True
    assert served.session.pause() is False
    told = {"op": "reply", "step": STEP, "request": "{}", "reply": "{}"}
    assert served.channel.ask(told) == {"state": "ok", "fresh": False}
    assert served.session.pause() is True
    asked = threading.Thread(target=served.channel.begin, args=({"op": "model", "step": OTHER},), daemon=True)
    asked.start()
    asked.join(20)
    assert served.session.pause() is True, "begun all the same"


def test_a_process_begins_so_many_at_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds a thread of the launcher; what comes beyond asks, as before."""
    monkeypatch.setattr(channels, "MAX_BEGUN", 1)
    begun = served.channel.begin({"op": "model", "step": STEP, "wait": False})
    assert begun is not None
    assert served.channel.begin({"op": "model", "step": OTHER, "wait": False}) is None
    assert begun.ask({"op": "gave_up", "step": STEP}) == {"state": "ok"}
    again = served.channel.begin({"op": "model", "step": OTHER, "wait": False})
    assert again is not None
    assert again.ask({"op": "gave_up", "step": OTHER}) == {"state": "ok"}


@pytest.mark.parametrize("fault", ["no JSON", "interrupted", "not connected"])
def test_what_could_not_begin_takes_no_place(
    served: Served, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Else a program that was interrupted often enough would begin nothing more without a question."""
    request: dict[str, Any] = {"op": "model", "step": STEP, "wait": False}
    served.channel.ask(ALIVE)
    with monkeypatch.context() as broken:
        if fault == "interrupted":
            broken.setattr(channels, "send", _interrupted)
        elif fault == "not connected":
            broken.setattr(served.channel, "_connected", _interrupted)
        else:
            request["step"] = {**STEP, "turn": float("nan")}
        for _ in range(channels.MAX_BEGUN + 1):
            with pytest.raises((KeyboardInterrupt, ValueError)):
                served.channel.begin(request)
    begun = served.channel.begin({"op": "model", "step": STEP, "wait": False})
    assert begun is not None
    assert begun.ask({"op": "gave_up", "step": STEP}) == {"state": "ok"}


def test_a_connection_is_closed_when_a_request_was_cut_off(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher would read the next request as the rest of it."""
    cut: list[socket.socket] = []

    def half(connection: socket.socket, _message: Any) -> None:
        connection.sendall(b"\0\0")
        cut.append(connection)
        raise KeyboardInterrupt

    served.channel.ask(ALIVE)
    with monkeypatch.context() as broken:
        broken.setattr(channels, "send", half)
        with pytest.raises(KeyboardInterrupt):
            served.channel.ask(ALIVE)
    assert [connection.fileno() for connection in cut] == [-1]
    assert served.channel.ask(ALIVE) == {"state": "ok"}


def _interrupted(*_: Any) -> Any:
    raise KeyboardInterrupt
