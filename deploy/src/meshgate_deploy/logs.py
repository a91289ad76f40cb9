"""`meshgate logs`: the ends of log files, and what is added to them."""

import sys
import time
from pathlib import Path

from meshgate_deploy.errors import NotFound
from meshgate_deploy.state import State

POLL_SECONDS = 0.2
TAIL_BYTES = 262_144


def print_logs(state: State, names: list[str], *, follow: bool, lines: int) -> None:
    """Prints logs, each line with its process's name; follows them until interrupted.

    Raises:
        NotFound: there is no log of that name.
    """
    offsets: dict[Path, int] = {}
    for path in _paths(state, names):
        offsets[path] = _print_tail(path, lines)
    while follow:
        for path in _paths(state, names):
            offsets[path] = _print_new(path, offsets.get(path, 0))
        sys.stdout.flush()
        time.sleep(POLL_SECONDS)


def _paths(state: State, names: list[str]) -> list[Path]:
    known = {path.stem: path for path in sorted(state.logs.glob("*.log"))}
    if not names:
        return list(known.values())
    for name in names:
        if name not in known:
            raise NotFound(
                f"no log of {name!r}",
                why="there are: " + (", ".join(known) or "none"),
                next_step="meshgate ps",
            )
    return [known[name] for name in names]


def _print_tail(path: Path, lines: int) -> int:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    _print(path, text.splitlines()[-lines:] if lines else [])
    return size


def _print_new(path: Path, offset: int) -> int:
    with path.open("rb") as file:
        if file.seek(0, 2) < offset:  # it was cut meanwhile
            offset = 0
        file.seek(offset)
        data = file.read()
    whole, end, _rest = data.rpartition(b"\n")
    _print(path, whole.decode("utf-8", "replace").splitlines() if end else [])
    return offset + len(whole) + len(end)


def _print(path: Path, lines: list[str]) -> None:
    for line in lines:
        sys.stdout.write(f"{path.stem}  {line}\n")
