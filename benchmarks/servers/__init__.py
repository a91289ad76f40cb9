"""The processes that rows measure, each kept on its core until its parent closes the pipe."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Task:
    """What the parent asked for.

    Attributes:
        folder: ours alone; `ca` beside it holds the root.
        level: which of the guarantees are given.
        agents: how many have a policy.
    """

    folder: Path
    ca: Path
    level: str
    agents: int


def task() -> Task:
    """Reads the command line and moves to the named cores, before any thread starts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--ca", type=Path, required=True)
    parser.add_argument("--level", default="")
    parser.add_argument("--agents", type=int, default=1)
    parser.add_argument("--cores", required=True)
    given = parser.parse_args()
    os.sched_setaffinity(0, {int(core) for core in given.cores.split(",")})
    return Task(given.folder, given.ca, given.level, given.agents)


def serve_until_told(*, port: int, pids: Sequence[int] = ()) -> None:
    """Says where we listen and which processes do the work; returns when standard input ends."""
    print(json.dumps({"port": port, "pids": [os.getpid(), *pids]}), flush=True)
    sys.stdin.read()
