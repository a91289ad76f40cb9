"""Run by its path, in front of every program: keeps the program's orphans below the program.

    python -I -S adopt.py DESCRIPTORS COMMAND…

It makes itself a subreaper, and one that dies with the process above it, which both outlive exec, and
becomes the command. So whoever descends from the
program stays below it until it ends, and can be told from the processes of another run. A program that is
forked and not executed calls `prepare` itself.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
OUT_OF_MEMORY_FIRST = "500"  # of 1000: the kernel ends the program then, not the process above it
FAILED = 125


def prepare(descriptors: int) -> bool:
    """What holds for a program, however it begins; False when the kernel refuses, and nothing may begin."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
    libc = ctypes.CDLL(None)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        return False
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        return False
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OUT_OF_MEMORY_FIRST)
    return True


def main(descriptors: str, command: list[str]) -> None:
    """Becomes the command; returns only when that is not possible."""
    if not prepare(int(descriptors)):
        return
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    # As it was given: an interpreter that starts in the C locale adds a variable of its own.
    given = (item.partition(b"=") for item in Path("/proc/self/environ").read_bytes().split(b"\0") if item)
    environment = {name: value for name, _, value in given}
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 - the program itself
    except OSError as error:
        os.write(2, f"meshgate: cannot start {command[0]!r}: {error.strerror}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
    sys.exit(FAILED)
