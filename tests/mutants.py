"""Removes one security check at a time and asks whether its test goes red.

`tests/mutants.toml` lists the checks: `id`, `file`, `line` (the exact source text that is
replaced, once), `replace`, `test` (a pytest node id). Each mutant is tried on a copy of the
working tree's file and the original is put back, also after Ctrl-C.
"""

import argparse
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS_PER_MUTANT = 300


@dataclass(frozen=True, slots=True)
class Mutant:
    """One check, how to remove it, and the test that must notice."""

    id: str
    file: str
    line: str
    replace: str
    test: str


def load(path: Path) -> list[Mutant]:
    """Reads the list; a malformed entry is an error that names it."""
    rows = tomllib.loads(path.read_text()).get("mutant", [])
    return [Mutant(**row) for row in rows]


def survives(mutant: Mutant) -> str | None:
    """Tries one mutant; returns what is wrong, or None when the test went red."""
    path = ROOT / mutant.file
    original = path.read_text()
    if original.count(mutant.line) != 1:
        return f"its line occurs {original.count(mutant.line)} times in {mutant.file}"
    try:
        path.write_text(original.replace(mutant.line, mutant.replace))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutant.test],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS_PER_MUTANT,
        )
    finally:
        path.write_text(original)
    if done.returncode == 1:
        return None
    return f"{mutant.test} ended with {done.returncode}, 1 (a failed test) was expected"


def main() -> int:
    """Runs all mutants, or those named; returns 1 when one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*", help="only these mutants")
    chosen = parser.parse_args().ids
    mutants = [m for m in load(ROOT / "tests" / "mutants.toml") if not chosen or m.id in chosen]
    survivors = 0
    for mutant in mutants:
        problem = survives(mutant)
        survivors += problem is not None
        print(
            f"{'SURVIVED' if problem else 'killed':9}{mutant.id}{': ' + problem if problem else ''}",
            flush=True,
        )
    print(f"{len(mutants) - survivors} passed, {survivors} failed")
    return 1 if survivors or not mutants else 0


if __name__ == "__main__":
    sys.exit(main())
