"""The rows: each module has `measure(bench)`, which gives the lines of one kind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import Cores
from measure import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every row is given.

    Attributes:
        folder: empty, ours, removed afterwards. Its path is short: sockets lie in it.
        say: progress for people.
    """

    folder: Path
    cores: Cores
    repeats: int
    quick: bool
    say: Callable[[str], None]

    @property
    def ca(self) -> Path:
        """Where the row's root lies."""
        return self.folder / "ca"

    @property
    def agents(self) -> int:
        """How many agents have a policy: 200 x 20 tools are 4,000 grants."""
        return 10 if self.quick else 200

    def count(self, full: int, quick: int) -> int:
        """How many calls one measurement makes."""
        return quick if self.quick else full


Measure = Callable[[Bench], Sequence[Row]]
