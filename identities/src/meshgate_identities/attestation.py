"""Which process is at the other end of a Unix socket? The kernel's word, nothing else (Linux)."""

import os
import select
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, overload

SO_PEERPIDFD = 77  # Linux 6.5; not named in Python's socket module yet
_UCRED = struct.Struct("3i")


class Connected(Protocol):
    """A connected Unix socket: Python's own, or asyncio's guarded view of one."""

    @overload
    def getsockopt(self, level: int, optname: int, /) -> int: ...
    @overload
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Process:
    """One process, told apart from a later one with the same pid.

    Attributes:
        pid: its process id.
        start_ticks: when it started, in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    """

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected a socket, and its user."""

    process: Process
    uid: int


def process(pid: int) -> Process:
    """Describes a process that is alive now.

    Raises:
        ProcessLookupError: there is none.
    """
    return Process(pid=pid, start_ticks=int(_stat(pid)[19]))


def parent(pid: int) -> int:
    """The parent's pid, 0 for init.

    Raises:
        ProcessLookupError: there is no such process.
    """
    return int(_stat(pid)[1])


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(pid) from error
    # The command may hold spaces and brackets: fields are counted after the last bracket.
    return text.rpartition(")")[2].split()


def has_ended(pidfd: int) -> bool:
    """Whether the process of a pidfd has ended, reaped or not: its pidfd is then readable."""
    poll = select.poll()  # not select(), which fails on descriptors above 1023
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def check_kernel() -> None:
    """Asks whether this kernel can name a socket's peer safely.

    Raises:
        OSError: it cannot; Linux 6.5 is needed.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        try:
            os.close(ours.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
        except OSError as error:
            problem = "the kernel gives no SO_PEERPIDFD; Linux 6.5 or newer is needed"
            raise OSError(error.errno, problem) from error


def peer(sock: Connected) -> Peer:
    """Names the process that connected, as the kernel noted it when it did.

    The pidfd pins the process while its start time is read, so a reused pid cannot take its place.
    Does not see who holds the descriptor now: a socket handed on still speaks for its opener.

    Raises:
        ProcessLookupError: it ended already.
    """
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _gid = _UCRED.unpack(raw)
    pidfd = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    try:
        found = process(pid)
        if has_ended(pidfd):
            raise ProcessLookupError(pid)
    finally:
        os.close(pidfd)
    return Peer(process=found, uid=uid)


def is_descendant(pid: int, ancestor: Process) -> bool:
    """Whether `pid` is `ancestor` or came from it, along the chain of living parents.

    False only when the chain was walked to its end: a process that ends meanwhile could hide where the
    one below it came from.

    Raises:
        ProcessLookupError: a process on the way ended, or its pid was given to a younger one.
    """
    born = process(pid).start_ticks
    while pid > 1:
        if pid == ancestor.pid:
            return process(pid) == ancestor
        above = parent(pid)
        if above <= 1:
            return False
        before, born = born, process(above).start_ticks
        if born > before or parent(pid) != above:
            raise ProcessLookupError(pid)
        pid = above
    return False
