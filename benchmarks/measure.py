"""What a row is made of: series of repeats, a goal, and the ratio of a subject to its baseline."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Measured = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Series:
    """One number, measured several times."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one: a disturbed repeat does not move it."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The smallest."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest."""
        return max(self.values)

    def times(self, factor: float) -> "Series":
        """The same in another unit."""
        return Series(tuple(value * factor for value in self.values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What must hold; each limit that is set. Limits on ratios are on their median.

    Attributes:
        most, added_most: in the row's unit.
    """

    most: float | None = None
    ratio_most: float | None = None
    ratio_least: float | None = None
    added_most: float | None = None

    def text(self, unit: str) -> str:
        """As people write it."""
        parts = [
            f"<= {self.most:g} {unit}" if self.most is not None else "",
            f"<= {self.ratio_most:g}x" if self.ratio_most is not None else "",
            f">= {self.ratio_least:g}x" if self.ratio_least is not None else "",
            f"<= +{self.added_most:g} {unit}" if self.added_most is not None else "",
        ]
        return " and ".join(part for part in parts if part)

    def met(self, *, value: float, ratio: float | None, added: float | None) -> bool:
        """Whether every limit holds."""
        return (
            (self.most is None or value <= self.most)
            and (self.ratio_most is None or (ratio is not None and ratio <= self.ratio_most))
            and (self.ratio_least is None or (ratio is not None and ratio >= self.ratio_least))
            and (self.added_most is None or (added is not None and added <= self.added_most))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        baseline: measured beside the subject, repeat by repeat; None where nothing compares.
        notes: how it was measured, and which end was busy.
    """

    name: str
    unit: str
    subject: Series
    baseline: Series | None = None
    goal: Goal | None = None
    notes: str = ""

    @property
    def ratios(self) -> Series | None:
        """Subject to baseline within each repeat: both saw the machine in the same state."""
        if self.baseline is None:
            return None
        pairs = zip(self.subject.values, self.baseline.values, strict=True)
        return Series(tuple(subject / baseline for subject, baseline in pairs))

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        if self.goal is None:
            return None
        ratios, value = self.ratios, self.subject.median
        added = None if self.baseline is None else value - self.baseline.median
        return self.goal.met(value=value, ratio=ratios.median if ratios else None, added=added)

    def as_json(self) -> dict[str, object]:
        """The row for other programs."""
        ratios = self.ratios
        return {
            "row": self.name,
            "value": round(self.subject.median, 4),
            "baseline": round(self.baseline.median, 4) if self.baseline else None,
            "ratio": round(ratios.median, 4) if ratios else None,
            "goal": self.goal.text(self.unit) if self.goal else None,
            "met": self.met,
            "unit": self.unit,
            "min": round(self.subject.low, 4),
            "max": round(self.subject.high, 4),
            "ratio_min": round(ratios.low, 4) if ratios else None,
            "ratio_max": round(ratios.high, 4) if ratios else None,
            "repeats": len(self.subject.values),
            "notes": self.notes,
        }


class Repeats:
    """What several subjects gave, repeat by repeat."""

    def __init__(self, taken: Mapping[str, Sequence[Measured]]) -> None:
        self._taken = taken

    def series(self, subject: str, number: str) -> Series:
        """One number of one subject over all repeats."""
        return Series(tuple(one[number] for one in self._taken[subject]))

    def median(self, subject: str, number: str) -> float:
        """The middle one."""
        return self.series(subject, number).median


def interleave(repeats: int, subjects: Mapping[str, Callable[[], Measured]]) -> Repeats:
    """Measures every subject once, then all again: a machine that drifts drifts under all of them."""
    taken: dict[str, list[Measured]] = {name: [] for name in subjects}
    for _ in range(repeats):
        for name, measure in subjects.items():
            taken[name].append(measure())
    return Repeats(taken)


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which `part` of them lie, the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
