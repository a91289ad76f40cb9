"""Measures meshgate against bare baselines. See README.md beside it."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from machine import Cores, fsync_milliseconds, load_average
from measure import Row
from rows import Bench, Measure, agents, brokered, decision, delegation, durable, forks, guarantees, runs

ROWS: dict[str, Measure] = {
    "brokered": brokered.measure,
    "durable": durable.measure,
    "decision": decision.measure,
    "guarantees": guarantees.measure,
    "runs": runs.measure,
    "forks": forks.measure,
    "delegation": delegation.measure,
    "agents": agents.measure,
}
REPEATS, QUICK_REPEATS = 5, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the rows asked for; 0 also where a goal is missed: this reports, it does not judge."""
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few calls: shows that it runs, not how fast")
    parser.add_argument("--only", choices=sorted(ROWS), action="append", help="only these rows")
    parser.add_argument("--json", action="store_true", help="one JSON object per row on standard output")
    given = parser.parse_args(argv)
    cores = Cores.chosen()
    with tempfile.TemporaryDirectory(prefix="mgb-") as temporary:
        folder = Path(temporary)
        _say(_machine(cores, folder))
        for name in given.only or ROWS:
            own = folder / name
            own.mkdir()
            begun = time.monotonic()
            rows = _measured(name, Bench(
                folder=own, cores=cores, repeats=QUICK_REPEATS if given.quick else REPEATS,
                quick=given.quick, say=_say,
            ))  # fmt: skip
            for row in rows:
                print(json.dumps(row.as_json()) if given.json else line(row), flush=True)
            _say(f"{name}: {time.monotonic() - begun:.1f} s, load average {load_average():.1f}")
    return 0


def _measured(name: str, bench: Bench) -> Sequence[Row]:
    bench.cores.pin_generator()
    try:
        with _temporary_files_in(bench.folder):
            return ROWS[name](bench)
    finally:
        bench.cores.free()


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """CrewAI leaves lock files wherever TMPDIR says."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["TMPDIR"]
        if before is not None:
            os.environ["TMPDIR"] = before


def _machine(cores: Cores, folder: Path) -> str:
    fsync = fsync_milliseconds(folder)
    pinned = f"generator on {sorted(cores.generator)}, servers on {sorted(cores.served)}"
    return (
        f"{os.cpu_count()} cores ({len(cores.everything)} usable; {pinned}); "
        f"fsync of 4 KiB {fsync.median:.3f} ms ({fsync.low:.3f}-{fsync.high:.3f}); "
        f"Python {sys.version.split()[0]}; load average {load_average():.1f}"
    )


def line(row: Row) -> str:
    """The row for people."""
    subject, baseline, ratios = row.subject, row.baseline, row.ratios
    text = f"{row.name:<24}{subject.median:>10.4g} {row.unit} ({subject.low:.4g}-{subject.high:.4g})"
    if baseline and ratios:
        text += f"  baseline {baseline.median:.4g} ({baseline.low:.4g}-{baseline.high:.4g})"
        text += f"  ratio {ratios.median:.3g}x ({ratios.low:.3g}-{ratios.high:.3g})"
    if row.goal:
        text += f"  goal {row.goal.text(row.unit)}: {'met' if row.met else 'MISSED'}"
    return f"{text}\n{'':<24}{row.notes}" if row.notes else text


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
