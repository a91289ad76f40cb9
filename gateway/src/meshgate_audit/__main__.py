"""Verifies an exported log, or the archive of a run, without any running part.

`python -m meshgate_audit FILE [--after SEQ:HASH] [--head SEQ:HASH]` or `python -m meshgate_audit RUN.tar.gz`.
"""

import argparse
import sys
from pathlib import Path

from meshgate_audit.archive import Broken, verify_archive
from meshgate_audit.chain import GENESIS, Head, verify

EXIT_NOT_FOUND, EXIT_INTEGRITY = 4, 6


def main(argv: list[str] | None = None) -> int:
    """Reads JSON lines, prints one line, returns 0 or 6; 4 for a file that cannot be read."""
    parser = argparse.ArgumentParser(prog="meshgate_audit", description=__doc__)
    parser.add_argument("file", type=Path, help="records, one JSON object per line; or a run's archive")
    parser.add_argument(
        "--after", type=_head, help="SEQ:HASH of the record before the first, for a part of a log"
    )
    parser.add_argument("--head", type=_head, help="SEQ:HASH of a head kept elsewhere; finds a cut-off tail")
    chosen = parser.parse_args(argv)
    try:
        chosen.file.open("rb").close()
    except OSError as error:
        sys.stderr.write(f"meshgate_audit: {chosen.file} cannot be read: {error.strerror}\n")
        return EXIT_NOT_FOUND
    if chosen.file.name.endswith(".tar.gz"):
        return _archive(chosen.file)
    with chosen.file.open("rb") as lines:
        kept = (line for line in lines if line.strip())
        found = verify(kept, after=chosen.after or Head(0, GENESIS), head=chosen.head)
    if found.verified:
        sys.stdout.write(f"verified {found.records} records, head {found.head.seq}:{found.head.hash}\n")
        return 0
    sys.stdout.write(f"NOT VERIFIED after {found.records} records: {found.problem}\n")
    return EXIT_INTEGRITY


def _head(text: str) -> Head:
    seq, _, digest = text.partition(":")
    return Head(int(seq), digest)


def _archive(path: Path) -> int:
    try:
        found = verify_archive(path)
    except Broken as broken:
        sys.stdout.write(f"NOT VERIFIED: {broken}\n")
        return EXIT_INTEGRITY
    head = f"{found.head.seq}:{found.head.hash}"
    sys.stdout.write(
        f"verified run {found.run_id}: {found.steps} steps, {found.records} records, head {head}, "
        f"digest {found.digest}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
