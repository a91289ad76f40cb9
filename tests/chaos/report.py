"""The report: one file that parts add to, as JSON for machines and as a table for people."""

import hashlib
import json
import os
import platform
import statistics
import string
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.pairs import PHASES, POSTGRESQL, SPLIT_PHASES, SQLITE, Pair, every_pair, impossible
from chaos.part import DESK, Part

VERSION = 1
GOAL_SECONDS = {
    "child": 4.0, "gateway": 1.0, "toolhost": 2.0,
    "agent-daprd": 5.0, "gateway-daprd": 5.0, "host-daprd": 5.0,
    "crew-child": 4.0, "agent-child": 4.0, "split-gateway": 1.0, "split-toolhost": 2.0,
    "crew-daprd": 5.0, "split-daprd": 5.0,
}  # fmt: skip
ANYTHING_SECONDS = 25.0
SUMS = ("lost", "unrecorded", "doubled", "unknown", "runs", "effects")


class NotResumable(Exception):
    """The report is of another configuration: its figures and ours do not add up."""


@dataclass
class Report:
    """What all parts gave.

    Attributes:
        kills: per counted kill its pair and, where no other fault overlaid it, its recovery in seconds.
        missed: kills that did not reach their phase, with the reason.
    """

    seed: int
    config: str
    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SUMS, 0))
    kills: list[dict[str, Any]] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def fresh(cls, seed: int) -> "Report":
        """With nothing in it."""
        return cls(seed, configuration())

    @classmethod
    def load(cls, path: Path) -> "Report":
        """Goes on with what is there.

        Raises:
            NotResumable: it was made with another configuration.
        """
        held = json.loads(path.read_text())
        if held.get("config") != configuration():
            raise NotResumable(f"{path} was made with another version of the desk or the checker")
        made = cls(held["seed"], held["config"])
        made.sums = {name: held[name] for name in SUMS}
        made.kills, made.missed, made.findings = held["each"], held["missed"], held["findings"]
        made.parts = held["parts"]
        return made

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        draft = path.with_name(f".{path.name}.part")
        draft.write_text(json.dumps(self.as_dict(), indent=1) + "\n")
        draft.replace(path)

    def add(self, part: Part) -> None:
        """A part that was judged."""
        verdict = part.verdict
        for name in SUMS:
            self.sums[name] += verdict[name]
        counted = set(verdict["counted"])
        for kill in part.kills:
            if kill["kill"] in counted:
                names = ("victim", "signal", "phase", "tool")
                seconds = verdict["recovery"].get(str(kill["kill"]))
                self.kills.append({**{name: kill[name] for name in names}, "seconds": seconds})
        self.missed += [*part.missed, *verdict["missed"].values()]
        self.findings += verdict["findings"]
        if not part.verified:
            self.findings.append("lost: the records do not verify")
            self.sums["lost"] += 1
        self.parts.append(
            {"seconds": round(part.seconds, 1), "kills": len(counted), "store": part.store,
             "load": round(os.getloadavg()[1], 1)}
        )  # fmt: skip

    @property
    def good(self) -> bool:
        """Nothing lost, unrecorded or doubled."""
        return not (self.sums["lost"] or self.sums["unrecorded"] or self.sums["doubled"])

    @property
    def store(self) -> str:
        """What decides which pairs exist: SQLite only where no part had a server."""
        stores = {part["store"] for part in self.parts}
        return SQLITE if stores == {SQLITE} else POSTGRESQL

    def counts(self) -> dict[Pair, int]:
        """How many kills of each pair count."""
        found: dict[Pair, int] = defaultdict(int)
        for kill in self.kills:
            found[Pair(kill["victim"], kill["signal"], kill["phase"])] += 1
        return found

    def recovery(self) -> dict[str, dict[str, Any]]:
        """Per victim: percentiles of what was measured alone, and how many that were."""
        seconds: dict[str, list[float]] = defaultdict(list)
        for kill in self.kills:
            if kill["seconds"] is not None:
                seconds[Pair(kill["victim"], kill["signal"], kill["phase"]).label].append(kill["seconds"])
        return {
            label: {
                "p50": percentile(values, 50), "p95": percentile(values, 95), "samples": len(values),
                "goal": GOAL_SECONDS.get(label, ANYTHING_SECONDS),
            }
            for label, values in sorted(seconds.items())
        }  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """For `--json`, and the file that a later part resumes."""
        return {
            "kills": len(self.kills), **self.sums, "recovery": self.recovery(),
            "pairs": [self._pair_row(pair) for pair in every_pair()],
            "missed": self.missed, "findings": self.findings, "parts": self.parts,
            "version": VERSION, "seed": self.seed, "config": self.config, "machine": machine(),
            "each": self.kills,
        }  # fmt: skip

    def _pair_row(self, pair: Pair) -> dict[str, Any]:
        count, why = self.counts()[pair], impossible(pair, store=self.store)
        row = {"victim": pair.victim, "signal": pair.signal, "phase": pair.phase, "kills": count}
        return {**row, "cannot_exist": why} if why else row

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{len(self.kills)} kills that count, {self.sums['runs']} runs, {self.sums['effects']} payments"
        yield (
            f"lost {self.sums['lost']}   executed unrecorded {self.sums['unrecorded']}   "
            f"doubled {self.sums['doubled']}   reported unknown {self.sums['unknown']}"
        )
        yield from self.findings
        yield ""
        yield from self._table()
        yield ""
        yield f"{'recovery, seconds':26}{'p50':>7}{'p95':>7}{'goal':>7}{'samples':>9}"
        for label, row in self.recovery().items():
            yield f"{label:26}{row['p50']:7.1f}{row['p95']:7.1f}{row['goal']:7.1f}{row['samples']:9}"
        if self.missed:
            yield f"\n{len(self.missed)} kills missed their phase and do not count, e.g. {self.missed[0]}"

    def _table(self) -> Iterator[str]:
        counts, notes = self.counts(), dict[str, str]()
        for split, phases in ((False, PHASES), (True, SPLIT_PHASES)):
            yield f"{'of a split crew' if split else '':26}" + _cells(p.replace("_", " ") for p in phases)
            for label, row in _by_label(split=split).items():
                cells = []
                for pair in row:
                    why = impossible(pair, store=self.store)
                    free = string.ascii_lowercase[len(notes)]
                    mark = notes.setdefault(why, free) if why and not counts[pair] else ""
                    cells.append(f"({mark})" if mark else str(counts[pair]))
                yield f"{label:26}" + _cells(cells)
        for why, mark in notes.items():
            yield f"({mark}) {why}"


def percentile(values: Sequence[float], percent: int) -> float:
    """By linear interpolation; a single value is all of them."""
    if len(values) == 1:
        return round(values[0], 3)
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 3)


def configuration() -> str:
    """A digest of everything that says what is killed, how, and what is wrong."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    names = [
        "checker.py",
        "verdict.py",
        "pairs.py",
        "phases.py",
        "lanes.py",
        "split_phases.py",
        "split_lane.py",
    ]
    files = [here / name for name in names] + sorted(p for p in DESK.rglob("*") if p.suffix != ".pyc")
    for path in files:
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def machine() -> dict[str, Any]:
    """Where it ran."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpus": os.cpu_count(), "memory_gib": round(pages * size / 2**30, 1),
        "system": platform.platform(), "python": platform.python_version(),
    }  # fmt: skip


def _by_label(*, split: bool) -> dict[str, list[Pair]]:
    rows: dict[str, list[Pair]] = defaultdict(list)
    for pair in every_pair():
        if pair.split == split:
            rows[pair.label].append(pair)
    return rows


def _cells(texts: Iterable[str]) -> str:
    return "".join(f"{text:>19}" for text in texts)
