"""Terminals at which runs were asked for. The workers play those runs and ask for their terminals here.

An asker's three streams stay with the supervisor for as long as the run lasts, so that whichever worker plays
its next attempt gets them. Nothing about a terminal is in the run's order: without its terminal it is a run
like any other.
"""

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meshgate_agents.launcher.saying import say_soon
from meshgate_identities import attestation

from meshgate_deploy.accepting import accept_each
from meshgate_deploy.environment import ASKED
from meshgate_deploy.errors import Cancelled, DependencyUnavailable, MeshError, UsageError
from meshgate_deploy.orders import Order
from meshgate_deploy.processes import alive

Ask = Callable[[str, dict[str, Any]], dict[str, Any]]
OVER = ("completed", "failed", "cancelled")
AT_WORK = ("running", "pausing", "cancelling")
FAILED = 125
LOOK_SECONDS = 1.0  # between two looks at a run that nobody plays at its terminal
TELL_SECONDS = 3.0  # a run that begins later than this is told of
REMIND_SECONDS = 60.0
UNATTENDED_SECONDS = 60.0  # how long a gateway that takes no order is asked again where nobody sits
REPORT_SECONDS = 2.0  # from the end of a run to what its worker says of it
STOP_SECONDS = 15.0  # a program has 10 to end
REQUEST_SECONDS = 5.0
MAX_REQUEST_BYTES = 4096
_STATUS = re.compile(r"exit status (\d{1,3})$")


class Terminal:
    """One run's, from its order to its end. Safe for threads."""

    def __init__(self, order: Order, ask: Ask) -> None:
        self.order, self._ask = order, ask
        self._changed = threading.Condition()
        self._workers: list[socket.socket] = []  # a second delivery's may wait while the first plays
        self._reported: int | None = None
        self._signals: list[int] = []
        self._begun = self._ours = self._closed = False

    def say(self, text: str) -> None:
        """One line for who sits there."""
        say_soon(text, to=self.order.streams[2])

    def signal(self, number: int) -> None:
        """Ends the run: its program gets the signal, a run that has not begun is cancelled."""
        with self._changed:
            self._signals.append(number)
            for worker in self._workers:
                _send(worker, number)
            self._changed.notify_all()

    def ordered(self) -> None:
        """Has the gateway take the order; a gateway that is away is asked again.

        Raises:
            Cancelled: a signal came first.
            DependencyUnavailable: it takes none, and nobody sits here.
            UsageError: the run is over already.
            MeshError: the gateway refuses the order.
        """
        order, patience = self.order, Patience(self)
        request = {
            "app": order.app, "run_id": order.run_id, "command": order.command, "cwd": str(order.cwd),
        }  # fmt: skip
        while True:
            try:
                run = self._ask("StartRun", request)["run"]
                break
            except DependencyUnavailable as error:
                patience.spend(error)
        if run["state"] in OVER:
            raise UsageError(
                f"run {order.run_id} is over: {run['state']}",
                next_step=f"meshgate runs show {order.run_id}, or another --run-id",
            )
        with self._changed:
            self._ours = self._ours or run["state"] == "pending"

    def wait(self) -> int:
        """Waits for the end of the run; its exit status."""
        views = Views(self)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._reported is not None, LOOK_SECONDS)
                reported, self._reported = self._reported, None
                played, signals = bool(self._workers), list(self._signals)
            if reported is None and played and self._begun and not signals:
                continue
            row = self._row()
            if row is not None and row["state"] in OVER:
                return self._ended(row, reported, played=played)
            if signals and (status := self._called_off(row, signals, played=played)) is not None:
                return status
            if reported is not None and row is None:
                return reported  # its worker knows, and we cannot ask
            views.show(row, played=played)

    def serve(self, worker: socket.socket) -> None:
        """Lends the streams to a worker that plays the run, and hears how it ends there."""
        env = {name: str(value) for name, value in self.order.asker.items() if name in ASKED}
        answer = json.dumps({"terminal": True, "env": env}).encode() + b"\n"
        with self._changed:
            if self._closed:  # what has the numbers of its streams now is somebody else's
                return
            sent = socket.send_fds(worker, [answer], list(self.order.streams))
            worker.sendall(answer[sent:])
            self._workers.append(worker)
            self._ours = True
            if self._signals:  # its last worker was lost with it
                _send(worker, self._signals[-1])
        try:
            with worker.makefile("rb") as lines:
                for line in lines:
                    with self._changed:
                        self._reported = int(json.loads(line)["exit"])
                        self._changed.notify_all()
        finally:
            with self._changed:
                self._workers.remove(worker)
                self._changed.notify_all()

    def close(self) -> None:
        """Its streams are lent to nobody any more."""
        with self._changed:
            self._closed = True

    @property
    def signalled(self) -> bool:
        """Whether it is to end."""
        return bool(self._signals)

    def _row(self) -> dict[str, Any] | None:
        """The run as the gateway has it; None while nobody can say."""
        try:
            found = self._ask("ShowRun", {"run_id": self.order.run_id, "row_only": True})
        except DependencyUnavailable:
            return None
        self._begun = self._begun or int(found["run"]["attempt"]) > 0
        return dict(found["run"])

    def _ended(self, row: Mapping[str, Any], reported: int | None, *, played: bool) -> int:
        """The exit status of a run that is over: as its worker says, else as the gateway keeps it."""
        with self._changed:
            if reported is None and played:
                self._changed.wait_for(lambda: self._reported is not None, REPORT_SECONDS)
            reported = self._reported if reported is None else reported
        if reported is not None:
            return reported
        if row["state"] == "completed":
            return 0
        self.say(f"run {self.order.run_id} is {row['state']}: {row['detail']}")
        if row["state"] == "cancelled" and self._signals:
            return 128 + self._signals[-1]
        found = _STATUS.search(str(row["detail"]))
        return int(found[1]) if found and int(found[1]) else FAILED

    def _called_off(self, row: Mapping[str, Any] | None, signals: list[int], *, played: bool) -> int | None:
        """After a signal: the exit status where there is nothing more to wait for."""
        run_id, status = self.order.run_id, 128 + signals[-1]
        if not self._ours:
            self.say(f"run {run_id} goes on: meshgate runs watch {run_id}, meshgate runs cancel {run_id}")
            return status
        if row is None and not played:
            self.say(f"run {run_id} is left as it is: the gateway is away; meshgate runs cancel {run_id}")
            return status
        if row is not None and not (played and row["state"] in AT_WORK):  # no program that would hear it
            with contextlib.suppress(MeshError):  # it began, or ended, just now
                self._ask("ControlRun", {"run_id": run_id, "action": "cancel"})
        return None


def _send(worker: socket.socket, number: int) -> None:
    """Without waiting: one that reads nothing has heard enough, one that is lost has a successor."""
    with contextlib.suppress(OSError):
        worker.send(json.dumps({"signal": number}).encode() + b"\n", socket.MSG_DONTWAIT)


class Patience:
    """How long a gateway that takes no order is asked again."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._attended = any(map(os.isatty, terminal.order.streams))
        self._begun, self._tell_at = time.monotonic(), 0.0

    def spend(self, error: DependencyUnavailable) -> None:
        """Waits before the next try.

        Raises:
            Cancelled: by a signal.
            DependencyUnavailable: none is left.
        """
        terminal, now = self._terminal, time.monotonic()
        if not self._attended and now - self._begun > UNATTENDED_SECONDS:
            raise DependencyUnavailable(error.what, why=error.why, next_step=self._left()) from error
        if now >= self._tell_at:
            self._tell_at = now + REMIND_SECONDS
            terminal.say(f"waiting for the gateway, until Ctrl-C: {error.what}: {error.why}")
        give_up_at = now + LOOK_SECONDS
        while time.monotonic() < give_up_at:
            if terminal.signalled:
                raise Cancelled("a signal came before the gateway's answer", next_step=self._left())
            time.sleep(LOOK_SECONDS / 10)

    def _left(self) -> str:
        """It may have taken the order all the same."""
        return f"meshgate runs cancel {self._terminal.order.run_id}, once the gateway is back"


class Views:
    """What is told of a run that is not being played at its terminal."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._since, self._last = time.monotonic(), ""

    def show(self, row: Mapping[str, Any] | None, *, played: bool) -> None:
        """Tells what it waits for, once; not while it is about to begin."""
        text = self._text(row, played=played)
        if not text or text == self._last:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > TELL_SECONDS:
            self._last = text
            self._terminal.say(text)

    def _text(self, row: Mapping[str, Any] | None, *, played: bool) -> str:
        order = self._terminal.order
        if row is None:
            return "" if played else "waiting for the gateway"
        detail = f": {row['detail']}" if row["detail"] else ""
        if row["state"] == "pending":
            return f"run {order.run_id} waits for its turn{detail}"
        if played:
            return ""
        if row["state"] == "running":
            return f"run {order.run_id} is played without this terminal (meshgate logs {order.app})"
        return f"run {order.run_id} is {row['state']}{detail}"


class Terminals:
    """All of one mesh, and the socket where workers ask for them."""

    def __init__(self, path: Path, ask: Ask) -> None:
        self._path, self._ask = path, ask
        self._changed = threading.Condition()
        self._known: dict[str, Terminal] = {}
        self._workers: dict[attestation.Process, str] = {}
        self._closing, self._closed = False, threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def start(self) -> None:
        """Opens the socket."""
        self._path.unlink(missing_ok=True)
        self._listener.bind(str(self._path))
        self._path.chmod(0o600)
        self._listener.listen(64)
        threading.Thread(target=self._serve, name="terminals", daemon=True).start()

    def close(self) -> None:
        """Cancels what is still played at a terminal, and stops serving."""
        with self._changed:
            self._closing, known = True, list(self._known.values())
        for one in known:
            one.signal(signal.SIGTERM)
        with self._changed:
            self._changed.wait_for(lambda: not self._known, STOP_SECONDS)
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def admit(self, app: str, process: attestation.Process) -> None:
        """A worker may ask for the terminals of its app's runs."""
        with self._changed:
            self._workers = {one: of for one, of in self._workers.items() if alive(one)} | {process: app}

    @contextmanager
    def at(self, order: Order) -> Iterator[Terminal]:
        """The terminal of an order while it lasts.

        Raises:
            UsageError: the run has one already.
            DependencyUnavailable: the mesh goes down.
        """
        made = Terminal(order, self._ask)
        with self._changed:  # two that ask for one run at once: one gets it
            if self._closing:
                raise DependencyUnavailable("the mesh goes down", next_step="meshgate up")
            if order.run_id in self._known:
                raise UsageError(
                    f"run {order.run_id} is under way",
                    next_step=f"meshgate runs watch {order.run_id}, or another --run-id",
                )
            self._known[order.run_id] = made
        try:
            yield made
        finally:
            made.close()
            with self._changed:
                self._known.pop(order.run_id, None)
                self._changed.notify_all()

    def _serve(self) -> None:
        accept_each(self._listener, self._closed, self._converse)

    def _converse(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError, KeyError, TypeError, ProcessLookupError):
            app = self._workers[attestation.peer(connection).process]
            connection.settimeout(REQUEST_SECONDS)
            run_id = json.loads(_line(connection))["run_id"]
            connection.settimeout(None)
            found = self._known.get(run_id)
            if found is None or found.order.app != app:
                connection.sendall(b'{"terminal": false}\n')
            else:
                found.serve(connection)


def _line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(MAX_REQUEST_BYTES)
        line += part
        if not part or len(line) > MAX_REQUEST_BYTES:
            raise ValueError("no request")
    return line
