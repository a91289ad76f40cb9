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
        run_id: None for a program that stands ready for a task.
        attempt: None before its first one, and for a replay.
        pid: of its program, which runs; None between attempts.
    """

    run_id: str | None
    attempt: int | None
    pid: int | None


def read(path: Path) -> list[Played]:
    """What the file says; nothing when there is none. A program that has ended is no program any more."""
    try:
        told = json.loads(path.read_bytes())
        played = [_played(row) for row in told["runs"]]
        stands = Played(run_id=None, attempt=None, pid=_pid(told.get("standby") or {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return played if stands.pid is None else [*played, stands]


def row(path: Path) -> dict[str, Any]:
    """The same for a process's row: all runs that it plays, and the programs that run now.

    A program that stands ready for a next task is of no run.
    """
    played = read(path)
    return {
        "runs": [{"run_id": one.run_id, "attempt": one.attempt} for one in played if one.run_id is not None],
        "programs": [
            {"run_id": one.run_id, "attempt": one.attempt, "pid": one.pid}
            for one in played
            if one.pid is not None
        ],
    }


def _played(row: dict[str, Any]) -> Played:
    attempt = int(row["attempt"]) if "attempt" in row else None
    return Played(run_id=str(row["run_id"]), attempt=attempt, pid=_pid(row))


def _pid(row: dict[str, Any]) -> int | None:
    pid = int(row["pid"]) if "pid" in row else None
    return pid if pid is not None and alive(Process(pid, int(row["started"]))) else None
