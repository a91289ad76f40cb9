"""When the app of a run that nobody plays is told of it, and what people see of that. Pure.

Told when it is ordered and, while nobody gives a sign of life, after pauses that double up to a day: as
long as the run is not over and its app is in the mesh. Each telling has a name of its own, so that several
gateways and sweeps tell it once.
"""

from dataclasses import dataclass

from meshgate_gateway import runs
from meshgate_gateway.model import Run

FIRST_PAUSE_MS = 4_000  # an app that takes a run is at it within a second
LONGEST_PAUSE_MS = 86_400_000  # each telling leaves a history with the durable runtime
GONE_AFTER_MS = 3_600_000  # a manifest may be wrong for a moment, and gateways differ while they are replaced


@dataclass(frozen=True, slots=True)
class Telling:
    """One time that a run's app is told of it.

    Attributes:
        name: of no other telling of the run, also after a later silence.
        number: how often it was told before, since the last sign of life.
        next_ms: when it is told once more.
    """

    name: str
    number: int
    next_ms: int


def due(run: Run, *, now_ms: int) -> Telling:
    """The telling that a run should have had by now; number 0 while nothing was missed."""
    silent_since = max(run.heartbeat_ms, run.updated_ms)
    at, pause, number = silent_since + runs.FORSAKEN_AFTER_MS[run.state], FIRST_PAUSE_MS, 0
    while at < now_ms:
        at, pause, number = at + pause, min(2 * pause, LONGEST_PAUSE_MS), number + 1
    return Telling(f"{silent_since}-{number}", number, at)


def gone(run: Run, *, now_ms: int, since_ms: int) -> bool:
    """Whether a run whose app is not in the mesh, as far as is known since then, is given up."""
    return now_ms - max(run.heartbeat_ms, run.updated_ms, since_ms) > GONE_AFTER_MS
