"""The machine a figure was taken on, and how work is kept apart on it."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import Series

FSYNC_TRIES = 200
PAGE = b"x" * 4096
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores the generator of load uses, and which whatever it measures.

    Attributes:
        apart: False on one core, where nothing can be kept apart.
    """

    generator: frozenset[int]
    served: frozenset[int]
    everything: frozenset[int]

    @classmethod
    def chosen(cls) -> "Cores":
        """The last core we may use generates, the one before it serves."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(frozenset(usable[-1:]), frozenset(usable[-2:-1] or usable), frozenset(usable))

    @property
    def apart(self) -> bool:
        """Whether the two share no core."""
        return not self.generator & self.served

    def pin_generator(self) -> None:
        """Keeps the calling thread, and threads it starts from now on, on the generator's core."""
        os.sched_setaffinity(0, self.generator)

    def free(self) -> None:
        """Lets the calling thread, and what it starts from now on, use every core again."""
        os.sched_setaffinity(0, self.everything)


def fsync_milliseconds(folder: Path) -> Series:
    """What one synced append of a page costs where the stores will lie."""
    path, took = folder / "fsync.probe", []
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        for _ in range(FSYNC_TRIES):
            os.write(descriptor, PAGE)
            begun = time.perf_counter()
            os.fdatasync(descriptor)
            took.append((time.perf_counter() - begun) * 1000)
    finally:
        os.close(descriptor)
        path.unlink()
    return Series(tuple(took))


def cpu_seconds(pids: Sequence[int]) -> float:
    """Processor time that these processes have used up to now."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_SECOND


def load_average() -> float:
    """Processes that wanted a core during the last minute, ours among them."""
    return os.getloadavg()[0]
