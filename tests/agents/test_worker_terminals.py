"""A worker plays a run at the terminal where it was asked for, as the supervisor lends it."""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fakes.fake_worker import Store, a_worker
from meshgate_agents.launcher.errors import AttemptEnded
from meshgate_agents.launcher.peers import become_subreaper
from meshgate_agents.worker.plays import Plays
from meshgate_agents.worker.terminals import terminal

if TYPE_CHECKING:
    from concurrent.futures import Future

SECONDS = 60
TELLS = "import os; print('printed', os.environ['LOOKS'], flush=True); raise SystemExit(7)"
WAITS = "import sys, time\nprint('waits', flush=True)\ntime.sleep(600)"


class Supervisor:
    """FAKE: lends one terminal to whoever asks, as often as it is asked."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._pipes = [os.pipe() for _ in range(3)]
        self._said = b""
        self.asked, self.told = list[str](), list[dict]()
        self.connection: socket.socket | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        given, out, err = self._pipes
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                line = lines.readline()
                if not line:
                    continue
                self.asked.append(json.loads(line)["run_id"])
                answer = json.dumps({"terminal": True, "env": {"LOOKS": "well"}}).encode() + b"\n"
                socket.send_fds(connection, [answer], [given[0], out[1], err[1]])
                self.connection = connection
                self.told += [json.loads(line) for line in lines]

    def signal(self, number: int) -> None:
        """Somebody there says so."""
        assert self.connection is not None
        self.connection.sendall(json.dumps({"signal": number}).encode() + b"\n")

    def fill(self) -> None:
        """Nobody reads stderr any more."""
        end = self._pipes[2][1]
        os.set_blocking(end, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(end, b"x" * 4096)
        os.set_blocking(end, True)

    def printed(self, text: str, *, errors: bool = True) -> bool:
        """Whether a program has printed it there, or its worker on stderr."""
        for end in [pipe[0] for pipe in self._pipes[1 : 3 if errors else 2]]:
            os.set_blocking(end, False)
            try:
                self._said += os.read(end, 65_536)
            except BlockingIOError:
                continue
        return text.encode() in self._said

    def close(self) -> None:
        """Ends it."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in (end for pipe in self._pipes for end in pipe):
            os.close(end)


@pytest.fixture(scope="module", autouse=True)
def subreaper() -> None:
    """As the worker's own process is."""
    become_subreaper()


@pytest.fixture
def store() -> Store:
    """Empty."""
    return Store()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    """One, in this process."""
    made = Supervisor(tmp_path / "t.sock")
    yield made
    made.close()


@pytest.fixture
def plays(store, tmp_path, supervisor, monkeypatch) -> Iterator[Plays]:
    """A worker that takes this process for the one which started it."""
    monkeypatch.setattr(os, "getppid", os.getpid)
    with a_worker(store, tmp_path, tmp_path / "t.sock") as made:
        yield made


def eventually(check, what: str):
    end = time.monotonic() + SECONDS
    while not (found := check()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return found


def test_a_run_has_the_streams_of_its_terminal(store, plays, supervisor) -> None:
    """And variables of the shell there; its exit status is told, its messages are printed."""
    store.add("r", sys.executable, "-c", TELLS)
    assert plays.play("r").result(SECONDS) == "failed"
    eventually(lambda: supervisor.told == [{"exit": 7}], "its status is told")
    assert supervisor.asked == ["r"]
    assert supervisor.printed("printed well")
    assert supervisor.printed("meshgate: run r, attempt 1, as spiffe://")


def test_what_cannot_be_started_is_told_there(store, plays, supervisor) -> None:
    """With the reason."""
    store.add("r", "/no/such/program")
    assert plays.play("r").result(SECONDS) == "failed"
    eventually(lambda: supervisor.told == [{"exit": 125}], "its status is told")
    assert supervisor.printed("cannot start '/no/such/program'")


def test_a_signal_reaches_the_program_and_cancels_the_run(store, plays, supervisor) -> None:
    """As Ctrl-C does."""
    store.add("r", sys.executable, "-c", WAITS)
    future = plays.play("r")
    eventually(lambda: supervisor.printed("waits"), "it runs")
    supervisor.signal(signal.SIGINT)
    assert future.result(SECONDS) == "cancelled"
    eventually(lambda: supervisor.told == [{"exit": 130}], "its status is told")


def cancelled_unheard(store: Store, plays: Plays, supervisor: Supervisor) -> "Future[str]":
    """A run that was cancelled at its terminal while the gateway was away."""
    store.add("r", sys.executable, "-c", WAITS)
    future = plays.play("r")
    eventually(lambda: supervisor.printed("waits"), "it runs")
    store.away = True
    supervisor.signal(signal.SIGTERM)
    eventually(lambda: supervisor.told == [{"exit": 143}], "who waits there is told at once")
    return future


def test_a_signal_is_not_forgotten_while_nobody_can_be_told(store, plays, supervisor) -> None:
    """The end could not be recorded: it is once the gateway is back, and nothing is played again."""
    future = cancelled_unheard(store, plays, supervisor)
    store.away = False
    with store.lock:
        store.runs["r"]["forsaken"] = True
    assert future.result(SECONDS) == "cancelled"
    assert (store.runs["r"]["attempt"], supervisor.asked) == (2, ["r"])


def test_a_crash_goes_on_at_the_same_terminal(store, plays, supervisor, tmp_path) -> None:
    """The next attempt prints there too, and one status is told."""
    once = (
        f"import os, pathlib; p = pathlib.Path({str(tmp_path / 'once')!r}); "
        "print('prints', p.exists(), flush=True); p.exists() or (p.touch(), os.kill(os.getpid(), 9))"
    )
    store.add("r", sys.executable, "-c", once)
    assert plays.play("r").result(SECONDS) == "completed"
    eventually(lambda: supervisor.told == [{"exit": 0}], "its status is told")
    assert supervisor.printed("prints False\nprints True")


def test_another_process_lends_no_terminal(store, supervisor, tmp_path) -> None:
    """Whoever put its socket there is not the one who started the worker; nothing is played meanwhile."""
    store.add("r", sys.executable, "-c", TELLS)
    with a_worker(store, tmp_path, tmp_path / "t.sock") as plays:
        future = plays.play("r")
        store.add("crew")  # what the app runs by itself has none, and none is asked for
        assert plays.play("crew").result(SECONDS) == "completed"
        assert not future.done()
        assert supervisor.asked == []
        assert store.runs["r"]["attempt"] == 0


def test_nothing_is_said_at_a_terminal_that_was_given_back(supervisor, tmp_path, monkeypatch) -> None:
    """What has its numbers by then is somebody else's: a conversation may end after its run."""
    monkeypatch.setattr(os, "getppid", os.getpid)
    with terminal(tmp_path / "t.sock", "r") as at:
        assert at is not None
        at.say("it is played")
    other = os.memfd_create("another run's stream")
    os.dup2(other, at.streams[2])
    try:
        at.say("a conversation broke")
        assert os.pread(other, 100, 0) == b""
    finally:
        os.close(other)
        os.close(at.streams[2])
    assert supervisor.printed("it is played")


def test_a_screen_that_stands_still_holds_nobody_up(store, plays, supervisor) -> None:
    """Ctrl-S, a pager: the program is started, and a signal is heard."""
    supervisor.fill()
    store.add("r", sys.executable, "-c", "import time; print('waits', flush=True); time.sleep(600)")
    future = plays.play("r")
    eventually(lambda: supervisor.printed("waits", errors=False), "it runs")
    supervisor.signal(signal.SIGINT)
    assert future.result(SECONDS) == "cancelled"


def test_a_run_that_goes_on_is_not_told_as_ended(store, plays, supervisor) -> None:
    """The gateway refuses its journal once: the next attempt is at the same terminal."""
    refusals, journal = [AttemptEnded("refused once")], store.journal

    def once(**asked: object) -> list:
        if refusals:
            raise refusals.pop()
        return journal(**asked)

    store.journal = once
    store.add("r", sys.executable, "-c", TELLS)
    assert plays.play("r").result(SECONDS) == "failed"
    eventually(lambda: supervisor.told == [{"exit": 7}], "its own status is told, and no other")
    assert supervisor.asked == ["r", "r"]


def test_a_cancelled_run_is_ended_whoever_has_it_by_then(store, plays, supervisor) -> None:
    """Another replica began an attempt while nobody could be told."""
    future = cancelled_unheard(store, plays, supervisor)
    with store.lock:
        store.runs["r"] |= {"attempt": 2, "state": "running", "forsaken": False}
        store.away = False
    assert future.result(SECONDS) == "cancelled"
