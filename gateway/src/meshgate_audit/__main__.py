"""Verifies an exported log without any running part: `python -m meshgate_audit FILE [--head SEQ:HASH]`."""

import argparse
import sys
from pathlib import Path

from meshgate_audit.chain import Head, verify

EXIT_INTEGRITY = 6


def main(argv: list[str] | None = None) -> int:
    """Reads JSON lines, prints one line, returns 0 or 6."""
    parser = argparse.ArgumentParser(prog="meshgate_audit", description=__doc__)
    parser.add_argument("file", type=Path, help="records, one JSON object per line")
    parser.add_argument("--head", help="SEQ:HASH of a head kept elsewhere; finds a cut-off tail")
    chosen = parser.parse_args(argv)
    head = None
    if chosen.head:
        seq, _, digest = chosen.head.partition(":")
        head = Head(int(seq), digest)
    with chosen.file.open("rb") as lines:
        found = verify((line for line in lines if line.strip()), head=head)
    if found.verified:
        sys.stdout.write(f"verified {found.records} records, head {found.head.seq}:{found.head.hash}\n")
        return 0
    sys.stdout.write(f"NOT VERIFIED after {found.records} records: {found.problem}\n")
    return EXIT_INTEGRITY


if __name__ == "__main__":
    sys.exit(main())
