"""A process that has imported what others need, and becomes them by fork. The supervisor alone asks it.

    python -I -u -m meshgate_deploy.fork_server DESCRIPTOR FOLDER MODULE…

A process of ours spends most of its start on imports: forked from here it begins without them, and shares
their memory with the others. This process opens nothing and holds no secret: it has one socket to the
supervisor, one thread, and an environment that says nothing. Like the processes that it becomes it is
undumpable, for whoever could look into it could change what they are.

A request is one byte with five descriptors: the three standard streams, a pipe, and a file in memory that
says in JSON what to run. Only the new process reads that file: this one never sees an environment, so that
nothing of one process is left in its memory for the next. The new process waits at the pipe until the
supervisor knows it; without a word it ends. It is no child of this process but of the supervisor, a
subreaper: one between them ends at once.

FOLDER is the project's: it stands on the command line so that `ps` shows whose process this is.
"""

import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from meshgate_identities.hardening import refuse_inspection

MAX_PID_BYTES = 64
DESCRIPTORS = 5
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME = 1, 4, 15
FAILED = 125
READY, ASK, GO = b"ready", b"f", b"g"


def main() -> None:
    """Imports, then serves until the supervisor is gone."""
    descriptor, _folder, *modules = sys.argv[1:]
    refuse_inspection()
    for module in modules:
        importlib.import_module(module)
    if threading.active_count() != 1:
        sys.exit(f"an import started threads: {threading.enumerate()}")
    known = _threads()
    gc.collect()
    gc.freeze()  # a collection would write to every page that is shared
    with socket.socket(fileno=int(descriptor)) as channel:
        channel.sendall(READY)
        while (descriptors := _receive(channel)) is not None:
            if _threads() > known:  # fewer: OpenBLAS ends its own before a fork, and knows how to begin again
                sys.exit("a thread appeared: a fork would lose it")
            _fork(channel, descriptors)


def _receive(channel: socket.socket) -> list[int] | None:
    """The descriptors of one request; None when the supervisor is gone."""
    data, descriptors, _, _ = socket.recv_fds(channel, len(ASK), DESCRIPTORS)
    if not data:
        return None
    if len(descriptors) != DESCRIPTORS:
        sys.exit(f"a request with {len(descriptors)} descriptors")
    return descriptors


def _fork(channel: socket.socket, descriptors: list[int]) -> None:
    """Makes the process and, once it is the supervisor's child, tells its pid."""
    hear, say = os.pipe()
    between = os.fork()
    if not between:
        made = os.fork()
        if not made:
            channel.close()
            os.close(hear)
            os.close(say)
            _become(descriptors)
        os.write(say, str(made).encode())
        os._exit(0)
    for descriptor in (say, *descriptors):
        os.close(descriptor)
    os.waitpid(between, 0)
    channel.sendall(os.read(hear, MAX_PID_BYTES))
    os.close(hear)


def _become(descriptors: list[int]) -> NoReturn:
    """The new process, once it is known."""
    os.setsid()
    *streams, gate, asked = descriptors
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    if os.read(gate, 1) != GO:
        os._exit(FAILED)
    os.close(gate)
    request = _read(asked)
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, int(request["death_signal"]), 0, 0, 0)
    if os.getppid() != request["supervisor"]:  # it died before that
        signal.raise_signal(signal.SIGKILL)
    libc.prctl(PR_SET_NAME, str(request["name"]).encode()[:15], 0, 0, 0)
    if request["user_code"]:  # as it would be had it been executed; ours refuse inspection by themselves
        libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    _draw_anew()
    sys.argv = list(request["argv"])
    sys.exit(sys.modules[f"{sys.argv[0]}.__main__"].main())


def _read(descriptor: int) -> dict[str, Any]:
    with os.fdopen(descriptor, "rb") as file:
        return dict(json.load(file))


def _draw_anew() -> None:
    """NumPy's own generator was seeded before the fork; Python's starts anew in each process by itself."""
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


if __name__ == "__main__":
    main()
