"""Programs of agents that outlived who watched over them: ended, for nobody speaks for them any more.

A program and all that it starts stay below its launcher or worker while that lives. When it is killed, the
kernel kills the program, and what that had started, in whatever session, becomes the supervisor's. It is
known by the variable that names its private socket, and by `no_new_privs`, which a program is given before
it begins and which no process can take off: nothing else that the supervisor comes to have has it.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Collection
from pathlib import Path

from meshgate_agents.launcher.peers import children_of, descendants

PROC = Path("/proc")
SOCKET = b"MESHGATE_SOCKET="
NO_NEW_PRIVS = b"NoNewPrivs:\t1"


def end_adopted(*sockets: Path, known: Callable[[], Collection[int]] = tuple) -> int:
    """Kills programs, with all below them, that are this process's own children; returns how many.

    `sockets` are the folders in which the mesh has the sockets of its programs.
    `known` are processes that it started itself, asked after the children are.
    """
    children = children_of(os.getpid())
    ours = known()
    marked = not has_no_new_privs(os.getpid())  # where everything has it, it marks nothing
    return sum(
        _ended(pid)
        for pid in children
        if pid not in ours and (_is_program(pid, sockets) or (marked and has_no_new_privs(pid)))
    )


def end_everywhere(*sockets: Path) -> int:
    """Kills every program of the mesh, while nothing of the mesh is to run; returns how many."""
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]
    return sum(_ended(pid) for pid in pids if _is_program(pid, sockets))


def _is_program(pid: int, sockets: Collection[Path]) -> bool:
    try:
        variables = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:  # gone, or not ours to read
        return False
    ours = tuple(SOCKET + bytes(folder) + b"/" for folder in sockets)
    return any(item.startswith(ours) for item in variables)


def has_no_new_privs(pid: int) -> bool:
    """Whether a process, or one above it, gave up every way to privileges: each program of an agent did."""
    try:
        return NO_NEW_PRIVS in (PROC / str(pid) / "status").read_bytes().splitlines()
    except OSError:  # gone
        return False


def _ended(root: int) -> bool:
    """Kills a process and all below it; whoever adopted it reaps it."""
    family = (root, *descendants(root))
    if os.getpid() in family:  # a shell that a program left behind, and whoever asks sits in it
        return False
    for pid in family:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or another user's by now
            os.kill(pid, signal.SIGKILL)
    return True
