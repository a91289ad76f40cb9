"""How much memory processes take, with all that they started."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from os import sysconf
from pathlib import Path
from typing import Any, Literal

PROC = Path("/proc")
KIB = 1024
ENDED = (FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one or several processes.

    Attributes:
        measure: `pss` shares what is shared among those who share it, so sums are true; `rss` counts it in
            each. The kernel gives the first only to who might inspect the process.
    """

    bytes: int
    measure: Literal["pss", "rss"]


class Families:
    """Which process started which, as it was when this was made."""

    def __init__(self) -> None:
        self._children: dict[int, list[int]] = {}
        for entry in PROC.iterdir():
            if entry.name.isdigit():
                with suppress(*ENDED):
                    self._children.setdefault(_parent(entry), []).append(int(entry.name))

    def parent(self, pid: int) -> int | None:
        """Which process started it, or took it over."""
        return next((parent for parent, children in self._children.items() if pid in children), None)

    def memory(self, pids: Iterable[int], *, but: Iterable[int] = ()) -> Memory | None:
        """Of the processes and all below them, each once; None when all have ended.

        Args:
            pids: of the processes.
            but: which of those below are left out, with all that is below these.
        """
        family: set[int] = set()
        left_out, waiting = set(but), list(pids)
        while waiting:
            pid = waiting.pop()
            if pid not in family and pid not in left_out:
                family.add(pid)
                waiting += self._children.get(pid, [])
        with suppress(PermissionError):
            if found := _each(family, _pss):
                return Memory(sum(found), "pss")
        found = _each(family, _rss)
        return Memory(sum(found), "rss") if found else None

    def row(self, pids: Iterable[int], *, but: Iterable[int] = ()) -> dict[str, Any] | None:
        """The same as JSON."""
        found = self.memory(pids, but=but)
        return asdict(found) if found else None


def _each(pids: Iterable[int], read: Callable[[Path], int]) -> list[int]:
    found = []
    for pid in pids:
        with suppress(*ENDED):
            found.append(read(PROC / str(pid)))
    return found


def _parent(process: Path) -> int:
    return int((process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])


def _pss(process: Path) -> int:
    rows = (line.split() for line in (process / "smaps_rollup").read_text().splitlines())
    return next((int(row[1]) * KIB for row in rows if row[0] == "Pss:"), 0)


def _rss(process: Path) -> int:
    return int((process / "statm").read_text().split()[1]) * sysconf("SC_PAGE_SIZE")
