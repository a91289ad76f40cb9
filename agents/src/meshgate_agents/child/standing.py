"""A program of an agent's app that builds its crew before there is a task, and then waits for one.

The launcher says in its answer to the report that this is such a program, and hands it a task later. What was
read while the crew was built must still be so then: the launcher is told of it, and looks again.
"""

import os
import sys
import time
import zlib
from typing import TYPE_CHECKING, Any

from . import attempt, colleagues, executors, memories
from .channel import Channel
from .framing import Message

if TYPE_CHECKING:
    from collections.abc import Callable

ELSEWHERE = ("/proc/", "/sys/", "/dev/")  # nothing that stays as it is
LISTED = ("os.listdir", "os.scandir")
TICK_NS = 10_000_000  # by as much a file's time may be behind the clock
CHANGED = (0, 0, -1)  # no file has such a size
FINDERS = "<frozen importlib"  # looks through folders for modules alone
SOURCE = ".py"
CACHE = "__pycache__"  # made from a source, which is looked at

# Path, inode, time of change in ns, size; zeros where there was nothing. Of a path that ends with
# a slash what could be imported from that folder: zero, a sum over the names, how many.
Seen = tuple[str, int, int, int]


class _Told:
    stands = False


_told = _Told()


def learn(answer: Message) -> None:
    """The launcher's word, once per process."""
    _told.stands = answer.get("standby") is True


def crew(build: "Callable[[str], Any]", channel: Channel) -> "tuple[Any, Any]":
    """The crew, built from its reference, and the task that came then; twice None where it is not to stand.

    Args:
        build: makes the crew of a reference.
        channel: where the task comes from.
    """
    found = colleagues.only_crew() if _told.stands else None
    if found is None:
        return None, None
    name, reference = found
    colleagues.works_for(name)
    watched = Look()
    watched.begin()
    made = build(reference)
    if memories.has_any(made):
        channel.ask({"op": "remembers"})  # ends this program
    executors.prepare(made)
    answer = channel.ask({"op": "task", "read": watched.end()})
    attempt.learn(answer)
    colleagues.works_for(name)
    return made, answer.get("given")


class Look:
    """Notes what is read from `begin` to `end`: files, folders, and the sources of modules."""

    def __init__(self) -> None:
        self._paths: dict[str, Seen] = {}
        self._began = 0
        self._on = False
        self._modules: set[str] = set()

    def begin(self) -> None:
        """From now on."""
        self._modules, self._began = set(sys.modules), time.time_ns() - TICK_NS
        self._on = True
        sys.addaudithook(self._note)  # for as long as the process lives

    def end(self) -> "list[Seen]":
        """All of it, as it was when it was first read."""
        self._on = False
        sources = {
            (source := os.path.abspath(path)): self._source(source)  # noqa: PTH100 - text
            for name, module in list(sys.modules.items())
            if name not in self._modules and (path := getattr(module, "__file__", None))
        }
        folders = {path: look(path) for path in _own()}
        found = sorted((folders | sources | self._paths).items())
        return [seen for path, seen in found if not path.startswith(ELSEWHERE) and CACHE not in path]

    def _source(self, path: str) -> Seen:
        """As it is now; nothing that it will ever be where it has changed since it may have been imported."""
        seen = look(path)
        return seen if seen[2] < self._began else (path, *CHANGED)

    def _note(self, event: str, given: "tuple[Any, ...]") -> None:
        if not self._on:
            return
        if event == "open":
            path, _mode, flags = given
            if not isinstance(flags, int) or flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in LISTED:
            path = given[0]
            if sys._getframe(1).f_code.co_filename.startswith(FINDERS):  # noqa: SLF001 - who asks
                return
        else:
            return
        if isinstance(path, (str, bytes)):
            read = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - text
        elif path is None:
            read = os.getcwd()  # noqa: PTH109 - text
        else:
            return
        if read not in self._paths:
            self._paths[read] = look(read)


def look(path: str) -> Seen:
    """What tells a file or folder that was changed or replaced; also asked by the launcher."""
    try:
        if path.endswith(os.sep):
            names = _modules(path)
            return path, 0, zlib.crc32(os.fsencode("/".join(names))), len(names)
        found = os.stat(path)  # noqa: PTH116 - text
    except (OSError, ValueError):
        return path, 0, 0, 0
    return path, found.st_ino, found.st_ctime_ns, found.st_size


def _own() -> "set[str]":
    """The folders of the project from which modules are imported."""
    root = os.path.join(os.path.abspath(os.environ.get("MESHGATE_PROJECT_ROOT", ".")), "")  # noqa: PTH100, PTH118
    folders = {os.path.join(os.path.abspath(path), "") for path in sys.path}  # noqa: PTH100, PTH118 - text
    return {folder for folder in folders if folder.startswith(root)}


def _modules(folder: str) -> "list[str]":
    """Of sources and of folders, which may be packages."""
    with os.scandir(folder) as entries:
        found = [one.name for one in entries if one.name.endswith(SOURCE) or one.is_dir()]
    return sorted(name for name in found if name != CACHE)
