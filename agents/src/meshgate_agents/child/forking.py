"""A process that has imported CrewAI, and from which programs are forked. Launchers ask it.

    python -m meshgate_forks CONTROL LISTENER FOLDER MODULE…

Run by the program's own interpreter, as a program is: with our interception, but not connected to any
launcher, so that a call of a tool or a model ends it. It reads no file of the project, holds no secret, and
is undumpable, for whoever could look into it could change what programs are.

CONTROL is a socket to the supervisor, which says who may ask: `PID START`, one message each. LISTENER is
where they ask; the supervisor opened it, so that the kernel names the supervisor to whoever connects.
Each that may ask gets a keeper (see there), forked from here, and that a program; the next one is ready
already. FOLDER is the project's: it
stands on the command line so that `ps` shows whose process this is.
"""

import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable

from . import install, keeper
from .becoming import Front, become
from .preloaded import Preloaded, preload

PR_SET_DUMPABLE = 4
SO_PEERPIDFD = 77  # Linux 6.5; the socket module does not name it
MAX_WORD_BYTES = 64
READY = b"ready"


def main(words: list[str]) -> Callable[[], None] | None:
    """Imports, then serves until the supervisor is gone.

    Returns:
        Nothing in the server; in a process that was forked from it, what begins the program.
    """
    control, listener, _folder, *modules = words
    if ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        sys.exit("this process cannot be kept from inspection")
    install.postpone()
    preloaded, front = preload(modules), Front()
    if threading.active_count() != 1:
        sys.exit(f"an import started threads: {threading.enumerate()}")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here asks how keepers end
    gc.collect()
    gc.freeze()  # a collection would write to every page that is shared
    with socket.socket(fileno=int(control)) as to_supervisor, socket.socket(fileno=int(listener)) as asked:
        to_supervisor.sendall(READY)
        server = _serve(to_supervisor, asked, Spare(_threads()))
    return None if server is None else _program(server, preloaded, front)


def _program(server: socket.socket, preloaded: Preloaded, front: Front) -> Callable[[], None]:
    return become(keeper.keep(server), preloaded, front)


class Spare:
    """The next keeper, which waits for a connection.

    Args:
        threads: how many this process has. None may come: a fork would lose it.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._to: socket.socket | None = None

    def ready(self) -> socket.socket | None:
        """Forks one where there is none; gives that one, in it alone, where its connection will come from.

        Where no process is to be had there is none, and whoever asks next sees the connection closed.
        """
        if self._to is not None:
            return None
        if _threads() > self._threads:  # fewer: OpenBLAS ends its own before a fork, and begins again
            sys.exit("a thread appeared: a fork would lose it")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            if not os.fork():
                ours.close()
                return theirs
        except BlockingIOError:
            ours.close()
        else:
            self._to = ours
        theirs.close()
        return None

    def take(self, connection: socket.socket) -> bool:
        """Hands the connection on; False when there is none, or it was killed."""
        to, self._to = self._to, None
        if to is None:
            return False
        with to, contextlib.suppress(OSError):
            socket.send_fds(to, [keeper.ASK], [connection.fileno()])
            return True
        return False


def _serve(control: socket.socket, listener: socket.socket, spare: Spare) -> socket.socket | None:
    """Forks keepers; returns in each of them with where it is told of, and when the supervisor is gone."""
    admitted: dict[int, int] = {}
    poller = select.poll()
    for one in (control, listener):
        poller.register(one, select.POLLIN)
    while True:
        if (own := spare.ready()) is not None:
            return own
        ready = {descriptor for descriptor, _ in poller.poll()}
        if control.fileno() in ready:
            word = control.recv(MAX_WORD_BYTES)
            if not word:
                return None
            pid, started = map(int, word.split())
            admitted = {known: at for known, at in admitted.items() if _start(known) == at}
            admitted[pid] = started
            continue  # whoever asks may have been told of just now
        connection, _ = listener.accept()
        with connection:
            if _admits(connection, admitted):
                taken = spare.take(connection)
                if not taken and (own := spare.ready()) is not None:
                    return own
                if not taken:
                    spare.take(connection)


def _admits(connection: socket.socket, admitted: dict[int, int]) -> bool:
    """Whether the supervisor told of just the process that connected. A descendant of it is another one."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", credentials)
    pidfd = _pidfd(connection, pid)
    if pidfd is None:
        return False
    try:
        known = uid == os.getuid() and pid in admitted and _start(pid) == admitted[pid]
        if not known:
            os.write(2, f"refused to fork for pid {pid}: it is no launcher of this mesh\n".encode())
        return known and not _readable(pidfd)  # it lives: the pid meant it all along
    finally:
        os.close(pidfd)


def _pidfd(connection: socket.socket, pid: int) -> int | None:
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
        return int.from_bytes(data, sys.byteorder, signed=True)
    except OSError:  # it ended; or before Linux 6.5: the start time alone stands in
        with contextlib.suppress(OSError):
            return os.pidfd_open(pid)
    return None


def _readable(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))


def _start(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 for none."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:  # noqa: PTH123 - as light as can be
            return int(file.read().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - as light as can be
