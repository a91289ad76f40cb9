"""Terminals at which runs were asked for: their streams, what is said there, and how a run ends there.

Whoever asks for a run with `meshgate run` gave the supervisor three streams. The worker that plays the run
asks for them there; while the connection lasts, signals come over it, and the exit status goes back.
Without such a terminal a run's program has nothing to read and prints to the app's log.
"""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from meshgate_agents.launcher import peers
from meshgate_agents.launcher.errors import LauncherError, PeerRefused
from meshgate_agents.launcher.saying import say_soon

STREAMS = 3
MAX_LINE_BYTES = 65_536
ANSWER_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class Terminal:
    """One run's. Safe for threads.

    Attributes:
        streams: stdin, stdout and stderr.
        env: variables of the shell there, over the order's own.
    """

    streams: tuple[int, int, int]
    env: Mapping[str, str]
    connection: socket.socket
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closed: bool = False

    def say(self, text: str) -> None:
        """One line for people. Not once it is given back: what has its numbers then is somebody else's."""
        with self._lock:
            if not self._closed:
                say_soon(text, to=self.streams[2])

    def close(self) -> None:
        """From now on nothing is said there."""
        with self._lock:
            self._closed = True

    def listen(self, deliver: Callable[[int], None]) -> None:
        """Hands signals on from now on, each as soon as it comes."""
        threading.Thread(target=self._listen, args=(deliver,), daemon=True).start()

    def ended(self, status: int) -> None:
        """The run is over, and this is its exit status."""
        with contextlib.suppress(OSError):  # the supervisor is gone: nobody waits
            self.connection.sendall(json.dumps({"exit": status}).encode() + b"\n")

    def _listen(self, deliver: Callable[[int], None]) -> None:
        with contextlib.suppress(OSError, ValueError), self.connection.makefile("rb") as lines:
            for line in lines:
                deliver(int(json.loads(line)["signal"]))


@contextmanager
def terminal(path: Path | None, run_id: str) -> Iterator[Terminal | None]:
    """The run's terminal while it is played here; None for a run without one.

    Args:
        path: where the supervisor is asked; None where there is none.
        run_id: which run.

    Raises:
        LauncherError: nobody could say; asked again later.
    """
    with contextlib.ExitStack() as held:
        if path is None:
            yield None
            return
        connection = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            found = _asked(connection, path, run_id, held)
        except (OSError, ValueError, KeyError, TypeError, PeerRefused) as error:
            raise LauncherError(f"whether the run has a terminal is not known: {error!r}") from error
        held.callback(_hang_up, connection)
        if found is not None:
            held.callback(found.close)  # first of all
        yield found


def _hang_up(connection: socket.socket) -> None:
    """Wakes who listens; a socket is not closed while somebody does."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _asked(connection: socket.socket, path: Path, run_id: str, held: contextlib.ExitStack) -> Terminal | None:
    connection.settimeout(ANSWER_SECONDS)
    connection.connect(str(path))
    peers.admit(connection, lambda pid: pid == os.getppid(), os.getuid())
    connection.sendall(json.dumps({"run_id": run_id}).encode() + b"\n")
    line = bytearray()
    streams: list[int] = []
    while not line.endswith(b"\n"):
        part, descriptors, _, _ = socket.recv_fds(connection, MAX_LINE_BYTES, STREAMS)
        for descriptor in descriptors:
            held.callback(os.close, descriptor)
        streams += descriptors
        line += part
        if not part or len(line) > MAX_LINE_BYTES:
            raise ValueError("the answer ended in its middle")
    answer = json.loads(line)
    if not answer["terminal"]:
        return None
    given, out, err = streams
    connection.settimeout(None)
    env = {str(name): str(value) for name, value in answer["env"].items()}
    return Terminal((given, out, err), env, connection)
