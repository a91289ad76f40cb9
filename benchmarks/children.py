"""Starts the processes that rows measure, and ends each by its own pid."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rows import Bench

HERE = Path(__file__).parent
END_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Served:
    """A process that serves on loopback.

    Attributes:
        pids: whatever does the work, its OPA too.
    """

    target: str
    pids: tuple[int, ...]


@contextmanager
def serving(bench: Bench, name: str, *, module: str, level: str = "") -> Iterator[Served]:
    """Runs `servers.<module>` on the served cores until the block ends. All share the CA of the row.

    Raises:
        RuntimeError: it ended before it served.
    """
    own = bench.folder / name
    own.mkdir()
    argv = [
        sys.executable, "-m", f"servers.{module}", "--folder", str(own), "--ca", str(bench.ca),
        "--level", level, "--agents", str(bench.agents),
        "--cores", ",".join(map(str, sorted(bench.cores.served))),
    ]  # fmt: skip
    log = own / "log"
    with log.open("w") as errors:
        child = subprocess.Popen(
            argv, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        line = child.stdout.readline() if child.stdout else ""
        if not line:
            raise RuntimeError(f"{name} did not start:\n{log.read_text()[-2000:]}")
        told = json.loads(line)
        yield Served(f"127.0.0.1:{told['port']}", tuple(told["pids"]))
    finally:
        _end(child)


def _end(child: subprocess.Popen[str]) -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe:
            pipe.close()
    try:
        child.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(END_SECONDS)
