"""The supervisor's side of a fork server: asks it for processes, and knows when it is gone."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from meshgate_deploy import fork_server

IMPORT_SECONDS = 60.0  # a cold CrewAI on two busy cores takes 16 s
POLL_SECONDS = 0.1
ANSWER_SECONDS = 5.0  # a fork takes 10 ms; one that hangs is replaced


class ForkServerGone(Exception):
    """It does not answer, or does not take this request; nothing was started that knows what to be."""


@dataclass(slots=True)
class Forked:
    """A process that a fork server made: our child, though we did not fork it."""

    pid: int
    returncode: int | None = None

    def wait(self) -> int:
        """Its exit status, negative after a signal."""
        if self.returncode is None:
            try:
                _pid, status = os.waitpid(self.pid, 0)
                self.returncode = os.waitstatus_to_exitcode(status)
            except ChildProcessError:  # it ended, and a sweep over orphans was first
                self.returncode = fork_server.FAILED
        return self.returncode


@dataclass(slots=True)
class ForkServer:
    """One fork server. Safe for threads.

    Attributes:
        modules: what it has imported; of each `MODULE.__main__` it can make a process.
        start: starts it with the socket's other end; what it gives ends it.
        cancelled: set when nobody is to wait for its imports any more.
        starts: how often it was started.
    """

    modules: Sequence[str]
    start: Callable[[int], Callable[[], None]]
    cancelled: threading.Event
    starts: int = 0
    _end: Callable[[], None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _channel: socket.socket | None = None
    _ready: bool = False

    def open(self) -> None:
        """Starts it; it imports while we go on."""
        with self._lock:
            self._open()

    def fork(self, request: dict[str, Any], streams: Sequence[int], gate: int) -> int:
        """The pid of a new process that waits at the gate.

        Raises:
            ForkServerGone: there is none; the server is started again, for the next one.
        """
        with self._lock, _in_memory({**request, "supervisor": os.getpid()}) as asked:
            channel = self._channel
            if channel is None:
                raise ForkServerGone("there is none")
            try:
                self._await_ready(channel)
                socket.send_fds(channel, [fork_server.ASK], [*streams, gate, asked])
                return int(_answer(channel))
            except (OSError, ValueError) as error:  # an answer that is no number: it ended
                self._open()
                raise ForkServerGone(str(error)) from error

    @property
    def state(self) -> str:
        """See `server_rows.Server`; asks nothing of it."""
        channel = self._channel
        if channel is None or self._ready:
            return "stopped" if channel is None else "ready"
        try:
            word = channel.recv(fork_server.MAX_PID_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return "starting"
        except OSError:  # closed meanwhile
            return "stopped"
        return "ready" if word == fork_server.READY else "stopped"

    def close(self) -> None:
        """Ends it, and starts none again."""
        with self._lock:
            self._end_server()

    def _await_ready(self, channel: socket.socket) -> None:
        give_up_at = time.monotonic() + IMPORT_SECONDS
        channel.settimeout(POLL_SECONDS)
        while not self._ready:
            try:
                self._ready = _answer(channel) == fork_server.READY
            except TimeoutError:
                if self.cancelled.is_set() or time.monotonic() > give_up_at:
                    raise
            else:
                if not self._ready:
                    raise ConnectionResetError("it ended while it imported")
        channel.settimeout(ANSWER_SECONDS)

    def _end_server(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._end is not None:
            self._end()
            self._end = None

    def _open(self) -> None:
        self._end_server()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._channel, self._ready, self.starts = ours, False, self.starts + 1
            self._end = self.start(theirs.fileno())


@contextlib.contextmanager
def _in_memory(request: dict[str, Any]) -> Iterator[int]:
    """A descriptor from which the new process alone reads what it is to be."""
    descriptor = os.memfd_create("request", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, json.dumps(request).encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _answer(channel: socket.socket) -> bytes:
    """One message; empty when the server has ended."""
    return channel.recv(fork_server.MAX_PID_BYTES)
