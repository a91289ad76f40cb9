"""Run by its path, in front of every program: keeps the program's orphans below the program, and confines it.

    python -I -S adopt.py DESCRIPTORS RULES COMMAND…

It makes itself a subreaper, and one that dies with the process above it, which both outlive exec, and
becomes the command. So whoever descends from the
program stays below it until it ends, and can be told from the processes of another run. A program that is
forked and not executed calls `prepare` itself.

RULES is what `child/confine.py` reads, or nothing where the manifest says `isolation: none`.
"""

import contextlib
import ctypes
import importlib.util
import os
import resource
import signal
import sys
from pathlib import Path
from types import ModuleType

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
OUT_OF_MEMORY_FIRST = "500"  # of 1000: the kernel ends the program then, not the process above it
FAILED = 125
LATER = b"MESHGATE_LATER_"  # before the names of variables that are the program's alone: see `children`
CONFINE = Path(__file__).resolve().parent.parent / "child" / "confine.py"


def prepare(descriptors: int, rules: str, confine: "ModuleType | None" = None) -> bool:
    """What holds for a program, however it begins; False when the kernel refuses, and nothing may begin.

    Args:
        descriptors: how many it may have.
        rules: what it may do.
        confine: `child/confine.py`, where it is loaded already.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
    libc = ctypes.CDLL(None)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        return False
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OUT_OF_MEMORY_FIRST)
    if rules and not _confined(rules, confine or loaded("confine", CONFINE)):
        return False
    # After that: a user namespace of its own, and another user, take the wish away.
    return bool(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0)


def main(descriptors: str, rules: str, command: list[str]) -> None:
    """Becomes the command; returns only when that is not possible."""
    above = os.getppid()
    # As it was given: an interpreter that starts in the C locale adds a variable of its own. Read first: what
    # the kernel tells of a process that has become another user is root's until the program is executed.
    given = (item.partition(b"=") for item in Path("/proc/self/environ").read_bytes().split(b"\0") if item)
    environment = {name.removeprefix(LATER): value for name, _, value in given}
    if not prepare(int(descriptors), rules) or os.getppid() != above:
        return
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 - the program itself
    except OSError as error:
        os.write(2, f"meshgate: cannot start {command[0]!r}: {error.strerror}\n".encode())


def loaded(name: str, path: Path) -> ModuleType:
    """A module by its path, under no name that another one could have.

    Raises:
        OSError: it is not there.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _confined(rules: str, confine: ModuleType) -> bool:
    """Whether this process is confined by the rules; says why when it is not."""
    try:
        confine.confine(confine.from_json(rules))
    except (confine.NotConfined, OSError) as error:
        os.write(2, f"meshgate: the program is not started: it cannot be confined: {error}\n".encode())
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
    sys.exit(FAILED)
