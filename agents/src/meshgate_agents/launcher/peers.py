"""Who is at the other end of the socket: only the processes of the run that it serves are admitted."""

import ctypes
import errno
import os
import select
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from meshgate_agents.launcher.errors import PeerRefused

SO_PEERPIDFD = 77  # Linux 6.5; the socket module does not name it
PR_SET_CHILD_SUBREAPER = 36
MAX_DEPTH = 1_000  # a chain of parents longer than this is no honest one
PROC = Path("/proc")


def become_subreaper() -> None:
    """Makes orphaned descendants children of this process, so that none can slip out of the tree.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def admit(connection: socket.socket, belongs: Callable[[int], bool], expected: int) -> int:
    """The peer's pid, when it lives, has the expected uid, and belongs to whom the socket serves.

    The kernel gives pid and pidfd of the process that connected. The pidfd proves, after `belongs` has
    walked up the chain of parents, that the pid meant that process all along.

    Raises:
        PeerRefused: it is not, or it is gone.
    """
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid: int
    pid, uid, _gid = struct.unpack("3i", credentials)
    if uid != expected:
        raise PeerRefused(f"pid {pid} has uid {uid}, not {expected}")
    pidfd = _peer_pidfd(connection, pid)
    try:
        if not belongs(pid):
            raise PeerRefused(f"pid {pid} is no process of this run")
        if _ended(pidfd):
            raise PeerRefused(f"pid {pid} has ended")
    finally:
        os.close(pidfd)
    return pid


def _peer_pidfd(connection: socket.socket, pid: int) -> int:
    try:
        data: bytes = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
        return int.from_bytes(data, sys.byteorder, signed=True)
    except OSError as error:
        if error.errno not in (errno.ENOPROTOOPT, errno.EINVAL):
            raise PeerRefused(f"pid {pid} has ended") from error
    try:  # before Linux 6.5: the start time, taken twice around the opening, stands in
        before = start_time(pid)
        pidfd = os.pidfd_open(pid)
        same = start_time(pid) == before
    except (OSError, ProcessLookupError) as error:
        raise PeerRefused(f"pid {pid} has ended") from error
    if not same:
        os.close(pidfd)
        raise PeerRefused(f"pid {pid} was given to another process")
    return pidfd


def _ended(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def descends(pid: int, ancestor: int) -> bool:
    """Whether `ancestor` is above `pid`; a parent that is younger than its child is no parent."""
    for _ in range(MAX_DEPTH):
        if pid == ancestor:
            return True
        try:
            parent, started = _stat(pid)
            if parent <= 1 or _stat(parent)[1] > started:
                return False
        except ProcessLookupError:
            return False
        pid = parent
    return False


def descendants(ancestor: int) -> list[int]:
    """Every living process below `ancestor`, zombies left out."""
    parents: dict[int, int] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = _stat(int(entry.name))[0]
            except ProcessLookupError:
                continue
    below, border = [], [ancestor]
    while border:
        border = [pid for pid, parent in parents.items() if parent in border and pid != ancestor]
        below += border
    return below


def children_of(parent: int) -> list[int]:
    """Every process whose parent is this one, zombies too."""
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                fields = _fields(int(entry.name))
            except ProcessLookupError:
                continue
            if int(fields[1]) == parent:
                found.append(int(entry.name))
    return found


def start_time(pid: int) -> int:
    """Clock ticks since boot at which a process started.

    Raises:
        ProcessLookupError: there is no such process.
    """
    return _stat(pid)[1]


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the kernel says of how a process does.

    Attributes:
        started: clock ticks since boot, see `start_time`.
        runnable: whether it runs or waits for a processor. A stopped one does neither.
        ticks: of processor time that all its threads have used.
    """

    started: int
    runnable: bool
    ticks: int


def pulse(pid: int) -> Pulse:
    """How a process does.

    Raises:
        ProcessLookupError: there is no such process.
    """
    started, fields = _stat(pid)[1], _fields(pid)
    return Pulse(started, fields[0] == "R", int(fields[11]) + int(fields[12]))


def _stat(pid: int) -> tuple[int, int]:
    """Parent and start time; a zombie counts as gone."""
    fields = _fields(pid)
    if fields[0] in ("Z", "X"):
        raise ProcessLookupError(f"process {pid} has ended")
    return int(fields[1]), int(fields[19])


def _fields(pid: int) -> list[str]:
    """Of `stat`, from the state on; the name before it may hold spaces and brackets."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError as error:
        raise ProcessLookupError(f"no process {pid}") from error
    return text[text.rindex(")") + 2 :].split()
