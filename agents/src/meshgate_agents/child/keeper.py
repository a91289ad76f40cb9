"""Between a fork server and a program: keeps one program for one launcher.

A program that is forked is no child of its launcher. Its keeper stands in: it is the program's parent, it
says how the program ended, kills what the program left behind, and when the launcher closes the connection,
or dies, it kills all that is below it. When the keeper dies the kernel kills the program.

A keeper is there before anybody asks, and its program with it: forks of a large process take time, and so
they are done when nobody waits for them. Until then both know nothing. The server hands the keeper the
connection of a launcher that may ask; when the server ends first, they end.

A conversation: the keeper says READY; the launcher sends a byte with four descriptors (the three standard
streams, and a file in memory that says what to run, which the program alone reads); the keeper answers with
the program's pid and pidfd, later with its status; the launcher closes.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import time
from typing import NamedTuple

PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36
DESCRIPTORS = 4
SWEEP_SECONDS = 5.0  # a killed process that is still there after this is stuck in the kernel
POLL_SECONDS = 0.005
FAILED = 125
READY, ASK = b"ready", b"f"


class Asked(NamedTuple):
    """What a program is to be, in the process that becomes it.

    Attributes:
        streams: stdin, stdout and stderr.
        request: a file in memory.
        keeper: the pid of its keeper.
    """

    streams: tuple[int, ...]
    request: int
    connection: socket.socket
    keeper: int


def keep(server: socket.socket) -> Asked:
    """Keeps one program to its end, and ends. Returns in the program alone, once that is asked for.

    Args:
        server: where the connection of whoever asks comes from.
    """
    asked = None
    try:
        asked = _kept(server)
    finally:
        if asked is None:
            os._exit(FAILED)
    return asked


def _kept(server: socket.socket) -> Asked | None:
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NAME, b"meshgate-keeper", 0, 0, 0)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        return None
    own, (ours, theirs) = os.getpid(), socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        server.close()
        ours.close()
        return _to_be(theirs, own)
    theirs.close()
    with contextlib.suppress(OSError):  # the launcher is gone, or the program: nobody hears it
        _serve(server, ours, pid)
    _end_all()
    return None


def _to_be(keeper: socket.socket, own: int) -> Asked | None:
    """What the program is to be; None when it is not asked for."""
    with keeper:
        data, descriptors, _, _ = socket.recv_fds(keeper, len(ASK), DESCRIPTORS + 1)
    if not data or len(descriptors) != DESCRIPTORS + 1:
        return None
    connection, *streams, request = descriptors
    return Asked(tuple(streams), request, socket.socket(fileno=connection), own)


def _serve(server: socket.socket, program: socket.socket, pid: int) -> None:
    """Waits for a launcher, has the program become what that asks for, and keeps it."""
    with server, program:
        _, taken, _, _ = socket.recv_fds(server, len(ASK), 1)
        if not taken:
            return
        connection = socket.socket(fileno=taken[0])
        connection.sendall(READY)
        data, descriptors, _, _ = socket.recv_fds(connection, len(ASK), DESCRIPTORS)
        if not data or len(descriptors) != DESCRIPTORS:  # it did not wait for us
            return
        with contextlib.suppress(OSError):  # both do it, so that it is done before anybody signals the group
            os.setpgid(pid, pid)
        socket.send_fds(program, [ASK], [connection.fileno(), *descriptors])
        for descriptor in descriptors:
            os.close(descriptor)
    _watch(connection, pid)


def _watch(connection: socket.socket, pid: int) -> None:
    """Until the launcher has heard how the program ended, or wants no more of it."""
    pidfd = os.pidfd_open(pid)
    about = json.dumps({"pid": pid, "keeper": os.getpid()}).encode()
    socket.send_fds(connection, [about], [pidfd])
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.register(connection, select.POLLIN)
    if connection.fileno() in {descriptor for descriptor, _ in poller.poll()}:
        return
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # its pid stays taken until we end
    _sweep(pid)
    status = 0 if ended is None else ended.si_status
    if ended is not None and ended.si_code != os.CLD_EXITED:
        status = -status
    connection.sendall(json.dumps({"status": status}).encode())
    connection.recv(1)


def _sweep(program: int) -> None:
    """Kills what an ended program left: we are the next that adopts."""
    give_up_at = time.monotonic() + SWEEP_SECONDS
    while (left := [pid for pid in _children() if pid != program]) and time.monotonic() < give_up_at:
        for pid in left:
            _kill(pid)
        time.sleep(POLL_SECONDS)


def _end_all() -> None:
    give_up_at = time.monotonic() + SWEEP_SECONDS
    while (left := _children()) and time.monotonic() < give_up_at:
        for pid in left:
            _kill(pid)
        time.sleep(POLL_SECONDS)


def _kill(pid: int) -> None:
    """Kills a child, which cannot be another by now: we alone reap it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, os.WNOHANG)


def _children() -> list[int]:
    found, own = [], str(os.getpid())
    for name in os.listdir("/proc"):  # noqa: PTH208 - as light as can be
        if name.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{name}/stat", errors="replace") as file:  # noqa: PTH123 - see above
                    fields = file.read().rpartition(")")[2].split()
                if fields[1] == own:
                    found.append(int(name))
    return found
