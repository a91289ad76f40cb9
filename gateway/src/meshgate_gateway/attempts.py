"""How attempts of a run end, and which of them count against its bound. Pure."""

from dataclasses import replace

from meshgate_gateway.model import Run

HELD = frozenset({"waiting", "paused", "cancelling", "copying"})  # no attempt begins


def acts(run: Run, number: int) -> bool:
    """Whether that attempt of the run is at work and may begin something: not over, superseded or held up."""
    return bool(run.launcher) and run.attempt == number and not run.ended and run.state not in HELD


def begun(run: Run, launcher: str, *, now_ms: int) -> Run:
    """The run with its next attempt, which every older one is superseded by."""
    before = ended(run, lost=True) if run.launcher else run
    return replace(
        before,
        state="running",
        attempt=run.attempt + 1,
        begun_steps=run.recorded_steps,
        launcher=launcher,
        detail="",
        updated_ms=now_ms,
        heartbeat_ms=now_ms,
    )


def ended(run: Run, *, crashed: bool = False, lost: bool = False) -> Run:
    """The run without its current attempt. How many failed is kept here, so that it outlives every worker.

    A worker that dies takes attempts with it that were well: only those in a row without a new step count.
    """
    moved = run.recorded_steps > run.begun_steps
    in_a_row = (0 if moved else run.lost) + (lost and not moved)
    return replace(run, launcher="", crashes=run.crashes + (crashed and bool(run.launcher)), lost=in_a_row)


def cancelled(run: Run, why: str) -> Run:
    """The run as it is once it is to be cancelled: over at once, unless somebody is at it."""
    idle = run.state in ("pending", "paused") or not run.attempt
    return replace(run, state="cancelled" if idle else "cancelling", detail=why)


def seen(run: Run) -> Run:
    """The run as it is if nobody is at its attempt any more."""
    return ended(run, lost=True) if run.launcher and run.state == "running" else run


def failures(run: Run) -> int:
    """Attempts that count against the run's bound, one of which nobody has heard for long included."""
    after = seen(run)
    return after.crashes + after.lost
