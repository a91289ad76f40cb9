"""The supervisor's side of runs at a terminal: who is lent its streams, and how the run's end is told."""

import errno
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from meshgate_deploy import terminals as kept
from meshgate_deploy.accepting import accept_each
from meshgate_deploy.errors import Cancelled, DependencyUnavailable, MeshError, UsageError
from meshgate_deploy.orders import Order, forward
from meshgate_deploy.terminals import Terminal, Terminals
from meshgate_identities import attestation

SECONDS = 20


class Gateway:
    """FAKE: one run, as an operator sees it."""

    def __init__(self) -> None:
        self.state, self.attempt, self.detail = "pending", 0, ""
        self.away = self.slow = False  # slow: a cancelled run takes its time
        self.asked = list[str]()
        self.looked = threading.Condition()

    def __call__(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        with self.looked:
            self.asked.append(method)
            self.looked.notify_all()
            if self.away:
                raise DependencyUnavailable("the gateway did not answer", why="says the test")
            if method == "ControlRun":
                assert request == {"run_id": "r", "action": "cancel"}
                self.state = self.state if self.slow else "cancelled"
            return {"run": {"state": self.state, "attempt": str(self.attempt), "detail": self.detail}}

    def until(self, times: int) -> None:
        """Waits until it was asked that often."""
        with self.looked:
            assert self.looked.wait_for(lambda: len(self.asked) >= times, SECONDS)


class Seat:
    """An order with pipes for its streams, and who waits at it."""

    def __init__(self, mine: Terminals, pool: ThreadPoolExecutor) -> None:
        self._pipes = [os.pipe() for _ in range(3)]
        given, out, err = self._pipes
        self.order = Order(
            app="desk", run_id="r", command=("x",), cwd=Path("/"),
            asker={"PATH": "/bin", "TERM": "vt100", "SECRET": "s"}, streams=(given[0], out[1], err[1]),
        )  # fmt: skip
        self.terminal: Future[Terminal] = Future()
        self.status: Future[int] = pool.submit(self._attend, mine)

    def _attend(self, mine: Terminals) -> int:
        with mine.at(self.order) as terminal:
            self.terminal.set_result(terminal)
            terminal.ordered()
            return terminal.wait()

    def signal(self, number: int) -> None:
        """What somebody there does."""
        self.terminal.result(SECONDS).signal(number)

    def told(self) -> str:
        """What stands on its screen."""
        os.set_blocking(self._pipes[2][0], False)
        try:
            return os.read(self._pipes[2][0], 65_536).decode()
        except BlockingIOError:
            return ""

    def printed(self) -> bytes:
        """What a program printed."""
        return os.read(self._pipes[1][0], 100)

    def close(self) -> None:
        """Closes the pipes."""
        for end in (end for pipe in self._pipes for end in pipe):
            os.close(end)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Gateway:
    """With a run that waits for its worker; looks and reminders follow closely."""
    for name in ("LOOK_SECONDS", "TELL_SECONDS", "REPORT_SECONDS"):
        monkeypatch.setattr(kept, name, 0.05)
    return Gateway()


@pytest.fixture
def mine(gateway: Gateway, tmp_path: Path) -> Iterator[Terminals]:
    """The terminals of a mesh in which this process is the worker of `desk`."""
    made = Terminals(tmp_path / "t.sock", gateway)
    made.start()
    made.admit("desk", attestation.process(os.getpid()))
    yield made
    made.close()


@pytest.fixture
def sit(mine: Terminals, gateway: Gateway) -> Iterator[Callable[[], Seat]]:
    """Sits down at a terminal. In the end every run is over."""
    seats: list[Seat] = []
    with ThreadPoolExecutor() as pool:

        def seat() -> Seat:
            seats.append(Seat(mine, pool))
            return seats[-1]

        try:
            yield seat
        finally:
            gateway.state, gateway.away = "completed", False
            mine.close()
    for one in seats:
        one.close()


class Worker:
    """What a worker does."""

    def __init__(self, tmp_path: Path) -> None:
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connection.settimeout(SECONDS)
        self.connection.connect(str(tmp_path / "t.sock"))
        self.streams: list[int] = []

    def ask(self, run_id: str = "r") -> dict[str, Any]:
        """Asks for a run's terminal."""
        try:
            self.connection.sendall(json.dumps({"run_id": run_id}).encode() + b"\n")
            data, self.streams, _, _ = socket.recv_fds(self.connection, 65_536, 3)
        except (BrokenPipeError, ConnectionResetError):  # closed before our question, or with it unread
            return {}
        return dict(json.loads(data)) if data else {}

    def heard(self) -> dict[str, int]:
        """What comes next."""
        return dict(json.loads(self.connection.recv(100).splitlines()[0]))

    def ended(self, status: int) -> None:
        """The run is over."""
        self.connection.sendall(json.dumps({"exit": status}).encode() + b"\n")

    def close(self) -> None:
        """It is lost."""
        for stream in self.streams:
            os.close(stream)
        self.connection.close()


@pytest.fixture
def work(mine: Terminals, tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    """Makes workers."""
    made: list[Worker] = []

    def worker() -> Worker:
        made.append(Worker(tmp_path))
        return made[-1]

    yield worker
    for one in made:
        one.close()


def test_a_worker_is_lent_the_streams_and_tells_the_status(sit, work, gateway) -> None:
    """With the variables of the shell that a program may have, and no other; signals come over."""
    seat, worker = sit(), work()
    seat.terminal.result(SECONDS)
    assert worker.ask() == {"terminal": True, "env": {"PATH": "/bin", "TERM": "vt100"}}
    os.write(worker.streams[1], b"printed")
    assert seat.printed() == b"printed"
    gateway.state, gateway.attempt = "running", 1
    seat.signal(signal.SIGINT)
    assert worker.heard() == {"signal": 2}
    gateway.state = "failed"
    worker.ended(7)
    assert seat.status.result(SECONDS) == 7


def test_who_was_not_admitted_is_told_nothing(mine, sit, work) -> None:
    """Another process of the same user; a worker of another app gets no terminal of this one."""
    seat = sit()
    seat.terminal.result(SECONDS)
    mine._workers.clear()
    worker = work()
    assert (worker.ask(), worker.streams) == ({}, [])
    mine.admit("other", attestation.process(os.getpid()))
    other = work()
    assert (other.ask(), other.streams) == ({"terminal": False}, [])


def test_a_run_without_a_terminal_has_none(work) -> None:
    """It is played all the same."""
    worker = work()
    assert (worker.ask("detached"), worker.streams) == ({"terminal": False}, [])


def test_the_next_worker_gets_them_and_hears_what_was_said(sit, work, gateway) -> None:
    """The first is lost after the signal: it would never reach the program otherwise."""
    seat, lost = sit(), work()
    seat.terminal.result(SECONDS)
    lost.ask()
    gateway.state, gateway.attempt, gateway.slow = "running", 1, True
    seat.signal(signal.SIGTERM)
    lost.connection.shutdown(socket.SHUT_RDWR)
    following = work()
    assert following.ask()["terminal"]
    assert following.heard() == {"signal": 15}
    gateway.state = "cancelled"
    following.ended(143)
    assert seat.status.result(SECONDS) == 143


@pytest.mark.parametrize(
    ("state", "detail", "status"),
    [("completed", "", 0), ("failed", "exit status 3", 3), ("failed", "given up after 5 attempts", 125),
     ("cancelled", "cancelled by an operator", 125)],
)  # fmt: skip
def test_a_run_that_ended_elsewhere_ends_here(sit, gateway, state, detail, status) -> None:
    """As the gateway keeps it; what else than its own end is said."""
    seat = sit()
    gateway.until(2)
    gateway.state, gateway.detail, gateway.attempt = state, detail, 1
    assert seat.status.result(SECONDS) == status
    assert (f"run r is {state}: {detail}" in seat.told()) == (state != "completed")


def test_a_run_that_has_not_begun_is_cancelled_by_a_signal(sit, work, gateway) -> None:
    """Whether a worker has it in its queue or none does."""
    seat, worker = sit(), work()
    seat.terminal.result(SECONDS)
    worker.ask()
    seat.signal(signal.SIGINT)
    assert seat.status.result(SECONDS) == 130
    assert gateway.state == "cancelled"


def test_a_run_whose_worker_is_lost_is_cancelled_by_a_signal(sit, work, gateway) -> None:
    """Nobody is there to hand it on to."""
    seat, worker = sit(), work()
    seat.terminal.result(SECONDS)
    worker.ask()
    gateway.state, gateway.attempt = "running", 1
    worker.connection.shutdown(socket.SHUT_RDWR)
    seat.signal(signal.SIGINT)
    assert seat.status.result(SECONDS) == 130
    assert gateway.state == "cancelled"


def test_a_run_of_somebody_else_is_left_alone(sit, gateway) -> None:
    """It was under way before: a signal ends the waiting, not the run."""
    gateway.state, gateway.attempt = "running", 1
    seat = sit()
    gateway.until(2)
    seat.signal(signal.SIGINT)
    assert seat.status.result(SECONDS) == 130
    assert "run r goes on" in seat.told()
    assert "ControlRun" not in gateway.asked


def test_a_gateway_that_is_away_is_asked_again(sit, gateway) -> None:
    """Then the order is taken, once."""
    gateway.away = True
    seat = sit()
    gateway.until(3)
    assert not seat.status.done()
    gateway.away = False
    gateway.until(len(gateway.asked) + 2)
    assert "waiting for the gateway, until Ctrl-C" in seat.told()
    gateway.state = "completed"
    assert seat.status.result(SECONDS) == 0


def test_without_anybody_there_it_is_not_asked_for_ever(sit, gateway, monkeypatch) -> None:
    """A script is told."""
    monkeypatch.setattr(kept, "UNATTENDED_SECONDS", 0.2)
    gateway.away = True
    with pytest.raises(DependencyUnavailable):
        sit().status.result(SECONDS)


def test_a_signal_ends_the_waiting_for_a_gateway(sit, gateway) -> None:
    """Nothing was begun, and that is said."""
    gateway.away = True
    seat = sit()
    gateway.until(1)
    seat.signal(signal.SIGINT)
    with pytest.raises(Cancelled) as raised:
        seat.status.result(SECONDS)
    assert raised.value.next_step.startswith("meshgate runs cancel r")  # it may have taken the order


def test_with_gateway_and_worker_away_a_signal_leaves_the_run(sit, gateway) -> None:
    """Nobody can be told: how to end it is said."""
    seat = sit()
    gateway.until(2)
    gateway.away = True
    seat.signal(signal.SIGINT)
    assert seat.status.result(SECONDS) == 130
    assert "meshgate runs cancel r" in seat.told()


def test_one_run_has_one_terminal(sit) -> None:
    """The second is refused, and the first keeps it."""
    first = sit()
    first.terminal.result(SECONDS)
    with pytest.raises(UsageError, match="run r is under way"):
        sit().status.result(SECONDS)
    assert not first.status.done()


def test_a_run_that_is_over_has_none(sit, gateway) -> None:
    """The same id again."""
    gateway.state = "failed"
    with pytest.raises(UsageError, match="run r is over: failed"):
        sit().status.result(SECONDS)


def test_what_the_gateway_refuses_is_told(sit, gateway, monkeypatch) -> None:
    """At once."""

    def refuse(*_: object) -> dict[str, Any]:
        raise MeshError("another input")

    monkeypatch.setattr(Gateway, "__call__", refuse)
    with pytest.raises(MeshError, match="another input"):
        sit().status.result(SECONDS)


def test_a_mesh_that_goes_down_ends_its_runs(mine, sit, work, gateway) -> None:
    """The program is told, and none begins any more."""
    seat, worker = sit(), work()
    seat.terminal.result(SECONDS)
    worker.ask()
    gateway.state, gateway.attempt = "running", 1
    with ThreadPoolExecutor() as pool:
        closed = pool.submit(mine.close)
        assert worker.heard() == {"signal": 15}
        gateway.state = "cancelled"
        worker.ended(143)
        closed.result(SECONDS)
    assert seat.status.result(SECONDS) == 143
    with pytest.raises(DependencyUnavailable, match="goes down"):
        sit().status.result(SECONDS)


def test_a_run_that_waits_says_so_once(sit, gateway) -> None:
    """What it waits for, and not again and again."""
    gateway.detail = "told again 2 times"
    seat = sit()
    gateway.until(20)
    assert seat.told().count("run r waits for its turn: told again 2 times") == 1
    gateway.state = "completed"
    assert seat.status.result(SECONDS) == 0


def test_a_second_worker_takes_the_first_ones_place_from_nobody(sit, work, gateway) -> None:
    """A second delivery waits while the first plays: both hear a signal, no stale word ends the waiting."""
    seat, first, second = sit(), work(), work()
    seat.terminal.result(SECONDS)
    first.ask()
    gateway.state, gateway.attempt, gateway.slow = "running", 1, True
    second.ask()
    asked = len(gateway.asked)
    second.ended(125)  # it was superseded
    gateway.until(asked + 1)
    second.connection.shutdown(socket.SHUT_RDWR)
    seat.signal(signal.SIGINT)
    assert first.heard() == {"signal": 2}
    assert not seat.status.done()
    assert "without this terminal" not in seat.told()
    gateway.state = "completed"
    first.ended(0)
    assert seat.status.result(SECONDS) == 0


@pytest.mark.parametrize("state", ["paused", "waiting", "restarting", "suspect"])
def test_a_run_without_a_program_is_cancelled_by_a_signal(sit, work, gateway, state) -> None:
    """Its worker has it, and nothing of it runs: nobody there would hear the signal."""
    seat, worker = sit(), work()
    seat.terminal.result(SECONDS)
    worker.ask()
    gateway.state, gateway.attempt = state, 1
    seat.signal(signal.SIGINT)
    assert seat.status.result(SECONDS) == 130
    assert gateway.state == "cancelled"


def test_streams_are_lent_to_nobody_once_the_run_is_over(mine, sit, gateway) -> None:
    """Their numbers may be another run's by then."""
    seat = sit()
    terminal = seat.terminal.result(SECONDS)
    gateway.until(2)
    gateway.state = "completed"
    assert seat.status.result(SECONDS) == 0
    ours, theirs = socket.socketpair()
    with ours, theirs:
        terminal.serve(ours)  # the worker had asked just before
        ours.shutdown(socket.SHUT_RDWR)
        assert socket.recv_fds(theirs, 100, 3)[:2] == (b"", [])


def test_a_worker_that_reads_nothing_holds_nobody_up(mine, sit, work, gateway) -> None:
    """However often somebody presses Ctrl-C."""
    seat, worker = sit(), work()
    seat.terminal.result(SECONDS)
    worker.ask()
    gateway.state, gateway.attempt = "running", 1
    for _ in range(2000):
        seat.signal(signal.SIGINT)
    mine.admit("other", attestation.process(os.getpid()))
    gateway.state = "cancelled"
    assert seat.status.result(SECONDS) == 130


def test_an_asker_who_dies_with_answers_unread_has_gone_away() -> None:
    """Its end of the connection is reset, not closed."""
    ours, theirs = socket.socketpair()
    heard: list[int] = []
    with ours:
        ours.sendall(b"{}\n")
        theirs.close()
        forward(ours, heard.append)
    assert heard == [signal.SIGTERM]


def test_a_moment_without_descriptors_ends_no_serving(mine, sit, work, monkeypatch) -> None:
    """Whoever connects meanwhile is served afterwards."""
    refused = threading.Event()
    accept = mine._listener.accept

    class Poor:
        """The listener, out of descriptors once."""

        def accept(self) -> Any:
            if not refused.is_set():
                refused.set()
                raise OSError(errno.EMFILE, "Too many open files")
            return accept()

    closed, taken = threading.Event(), threading.Event()
    thread = threading.Thread(target=accept_each, args=(Poor(), closed, lambda _: taken.set()), daemon=True)
    thread.start()
    assert refused.wait(SECONDS)
    while not taken.is_set():  # the fixture's own server may take one first
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
            asker.connect(str(mine._path))
            taken.wait(0.05)
    closed.set()
