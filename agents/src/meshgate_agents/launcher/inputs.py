"""Files with the inputs of runs: they are there while their program is, and no longer.

A process that is killed cannot remove its own; the next one of any app does, and `meshgate up`.
"""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meshgate_agents.launcher.environment import INPUT
from meshgate_agents.launcher.peers import start_time
from meshgate_agents.launcher.places import User

_NAME = re.compile(r"input-(\d+)-(\d+)-[0-9a-f]{16}\.json")


@contextmanager
def variable(folder: Path, data: bytes | None, user: User | None = None) -> Iterator[dict[str, str]]:
    """The variable that names the file of a run's input, where it has one."""
    if data is None:
        yield {}
        return
    with written(folder, data, user) as path:
        yield {INPUT: str(path)}


@contextmanager
def written(folder: Path, data: bytes, user: User | None = None) -> Iterator[Path]:
    """A new private file while it lasts, of `user`'s or ours; its name says which process has made it."""
    me = os.getpid()
    path = Path(folder) / f"input-{me}-{start_time(me)}-{secrets.token_hex(8)}.json"
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            if user is not None:
                os.fchown(file.fileno(), *user)
        yield path
    finally:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> int:
    """Removes the files of processes that are gone; returns how many."""
    removed = 0
    for path in folder.iterdir():
        owner = _NAME.fullmatch(path.name)
        if owner and not _lives(int(owner[1]), int(owner[2])):
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def _lives(pid: int, started: int) -> bool:
    try:
        return start_time(pid) == started
    except ProcessLookupError:
        return False
