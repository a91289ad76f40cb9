"""What workers and launchers say in a file about what they play, checked against the processes that run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshgate_identities.attestation import Process

from meshgate_deploy.processes import alive


@dataclass(frozen=True, slots=True)
class Played:
    """A run that somebody says to play.

    Attributes:
        attempt: None before its first one, and for a replay.
        pid: of its program, which runs; None between attempts.
    """

    run_id: str
    attempt: int | None
    pid: int | None


def read(path: Path) -> list[Played]:
    """What the file says; nothing when there is none. A program that has ended is no program any more."""
    try:
        return [_played(row) for row in json.loads(path.read_bytes())["runs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def row(path: Path) -> dict[str, Any]:
    """The same for a process's row: all runs that it plays, and the programs that run now."""
    played = read(path)
    return {
        "runs": [{"run_id": one.run_id, "attempt": one.attempt} for one in played],
        "programs": [
            {"run_id": one.run_id, "attempt": one.attempt, "pid": one.pid}
            for one in played
            if one.pid is not None
        ],
    }


def _played(row: dict[str, Any]) -> Played:
    attempt = int(row["attempt"]) if "attempt" in row else None
    pid = int(row["pid"]) if "pid" in row else None
    if pid is not None and not alive(Process(pid, int(row["started"]))):
        pid = None
    return Played(run_id=str(row["run_id"]), attempt=attempt, pid=pid)
