"""Run as a process of its own by `user_checks`: becomes another user, and looks at paths as that one.

    python -I -m meshgate_deploy.user_look < {"user": …, "places": …}

It prints what is wrong, as JSON: null for nothing, a text where it cannot become the user.
"""

import contextlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from meshgate_agents.child import confine

READ, WRITE = "cannot read", "cannot write"
READABLE, CHANGEABLE = "can read", "can change"
NEEDED = {0: "CAP_CHOWN", 5: "CAP_KILL", 6: "CAP_SETGID", 7: "CAP_SETUID"}


@dataclass(frozen=True, slots=True)
class Places:
    """What one app is about.

    Attributes:
        read: it must be able to read.
        write: it must be able to change.
        hidden: it must not be able to read, nor to change.
        kept: it must not be able to change: the mesh runs by it.
    """

    read: tuple[str, ...]
    write: tuple[str, ...]
    hidden: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wrong:
    """What is wrong with one path, which the user cannot reach, or can."""

    how: str
    path: str


def main() -> None:
    """Imports nothing once it is the user, who may not read what this is made of."""
    given = json.loads(sys.stdin.read())
    uid, gid = given["user"]
    places = Places(**given["places"])
    if lacking := _lacking():
        print(json.dumps(f"meshgate lacks {', '.join(lacking)}"))  # noqa: T201 - the answer
        return
    try:
        confine.become(uid, gid)
    except confine.NotConfined as error:
        print(json.dumps(str(error)))  # noqa: T201 - the answer
        return
    wrong = next(wrongs(uid, places), None)
    print(json.dumps(None if wrong is None else asdict(wrong)))  # noqa: T201 - the answer


def _lacking() -> list[str]:
    """What launchers need to start programs as another user, and to end them, and this process has not."""
    lines = Path("/proc/self/status").read_text().splitlines()
    held = next(int(line.partition(":")[2], 16) for line in lines if line.startswith("CapEff:"))
    return [name for number, name in NEEDED.items() if not held >> number & 1]


def wrongs(uid: int, places: Places) -> Iterator[Wrong]:
    """All that is wrong for this process, which has that uid."""
    for path in places.read:
        if at := _barred(path, os.R_OK):
            yield Wrong(READ, at)
    for path in places.write:
        if at := _barred(path, os.W_OK):
            yield Wrong(WRITE, at)
    for path in places.hidden:
        if os.access(path, os.R_OK) or os.access(path, os.X_OK):
            yield Wrong(READABLE, path)
    for path in (*places.hidden, *places.kept):
        if at := _replaceable(path, uid):
            yield Wrong(CHANGEABLE, at)


def _barred(path: str, mode: int) -> str:
    """Where the way to a path ends for this process; empty when it may do what it is to."""
    for folder in reversed(Path(path).parents):
        if not os.access(folder, os.X_OK):
            return str(folder)
    wanted = mode | (os.X_OK if os.path.isdir(path) else 0)  # noqa: PTH112 - False for what a link hides
    return "" if os.access(path, wanted) else path


def _replaceable(path: str, uid: int) -> str:
    """What this process could change, or put something else in the place of; empty for nothing."""
    below = None
    for place in (Path(path), *Path(path).parents):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            found = place.lstat()
            sticky = bool(found.st_mode & stat.S_ISVTX) and below not in (None, uid)
            link = stat.S_ISLNK(found.st_mode)
            if found.st_uid == uid or (os.access(place, os.W_OK) and not sticky and not link):
                return str(place)
            below = found.st_uid
    return ""


if __name__ == "__main__":
    main()
