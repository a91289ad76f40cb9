"""`./dev chaos`: kills every part of a real mesh, again and again, and says what became of it."""

import argparse
import json
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from chaos import part
from chaos.pairs import SQLITE, STORES, Pair, possible, quick, quick_postgresql, shuffled
from chaos.report import NotResumable, Report

PART_KILLS = 100  # a mesh of its own for each hundred: records and journals of one part stay small
FULL_KILLS = 1000
REPORT = Path("chaos-report.json")
USAGE, FAILURE, INTERRUPTED, TERMINATED = 2, 1, 130, 143


def main() -> int:
    """0 when nothing was lost, unrecorded or doubled; 130 after Ctrl-C, with a report to resume."""
    options = _options()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(TERMINATED)
    )  # through every `finally`: no process stays
    path = options.resume or options.report
    try:
        report = Report.load(path) if options.resume and path.exists() else Report.fresh(options.seed)
    except NotResumable as error:
        sys.stderr.write(f"chaos: {error}; begin a new one with --report FILE\n")
        return USAGE
    status = _play(report, options, path)
    if options.json:
        sys.stdout.write(json.dumps(report.as_dict(), indent=1) + "\n")
    else:
        sys.stdout.write("\n".join(report.lines()) + "\n")
    if status == INTERRUPTED:
        again = f"./dev chaos --kills {options.kills} --resume {path}"
        sys.stderr.write(f"chaos: interrupted; go on with {again}\n")
    return status or (0 if report.good else FAILURE)


def _play(report: Report, options: argparse.Namespace, path: Path) -> int:
    """Part after part; each is in the file before the next begins."""
    begun = time.monotonic()
    while (left := options.kills - len(report.kills)) > 0:
        done = len(report.parts)
        store = options.store or (SQLITE if options.quick else STORES[done % len(STORES)])
        pairs = _quick(report, store) if options.quick else chosen(report, min(PART_KILLS, left), store)
        say = _progress(begun, len(report.kills), len(pairs) if options.quick else options.kills)
        say(f"part {done + 1}: bringing a mesh on {store} up for {len(pairs)} kills")
        try:
            with part.folder() as root:
                came = part.play(root, pairs, turn=0 if options.quick else done, say=say, store=store)
                if came.verdict["findings"]:
                    say(f"kept for a look: {_keep(root, path)}")
        except KeyboardInterrupt:
            report.save(path)
            return INTERRUPTED
        report.add(came)
        report.save(path)
        if came.interrupted:
            return INTERRUPTED
        if options.quick:
            break
    return 0


def _quick(report: Report, store: str) -> list[Pair]:
    return shuffled(quick() if store == SQLITE else [*quick(), *quick_postgresql()], report.seed)


def chosen(report: Report, count: int, store: str) -> list[Pair]:
    """The pairs of a store with the fewest kills so far, in an order that the seed gives."""
    counts, drawn = report.counts(), random.Random(report.seed + len(report.parts))
    pairs = possible(store=store)
    drawn.shuffle(pairs)
    made: list[Pair] = []
    for _ in range(count):
        rarest = min(pairs, key=lambda pair: counts[pair])
        counts[rarest] += 1
        made.append(rarest)
    drawn.shuffle(made)
    return made


def _keep(root: Path, path: Path) -> Path:
    """Logs of a part in which something was found, beside the report."""
    import shutil

    kept = path.with_suffix("").absolute() / root.name
    skipped = shutil.ignore_patterns("*.sock", "s", "run", "ca", "__pycache__")
    shutil.copytree(root, kept, ignore=skipped, dirs_exist_ok=True)
    return kept


def _progress(begun: float, before: int, wanted: int) -> Callable[[str], None]:
    """One line a kill, with the time and how far it is."""
    made = before

    def say(text: str) -> None:
        nonlocal made
        made += text.startswith("  ")
        sys.stderr.write(f"{time.monotonic() - begun:7.0f} s  {made:4}/{wanted}  {text.strip()}\n")
        sys.stderr.flush()

    return say


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev chaos", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="each pair of the quick set once")
    parser.add_argument("--kills", type=int, default=FULL_KILLS, help="until so many count (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--store", choices=STORES, help="of every part; without it parts take turns, a quick set is on SQLite"
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON on standard output")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="add to this report")
    parser.add_argument("--report", type=Path, default=REPORT, help="where a new report goes (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
