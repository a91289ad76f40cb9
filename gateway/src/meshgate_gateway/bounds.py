"""How much one run, and one app's runs together, may hold. Past a bound a step is refused, and recorded.

A run's journal is read whole by each new attempt, and an app that starts runs without end would fill
the store for all. Counted in the transaction that writes; an outcome is never refused, because its
effect has happened: it counts, and the next step is refused.
"""

from dataclasses import dataclass, replace

from meshgate_gateway.errors import Conflict
from meshgate_gateway.model import LedgerRow, Run
from meshgate_gateway.store import Tables

MAX_RUN_STEPS = 10_000  # model replies and calls; all of them are read at once
MAX_RUN_BYTES = 268_435_456  # of clear text; a launcher holds the journal in memory, twice while it reads
MAX_OPEN_RUNS = 1_000  # of one app, not ended; ten times what one machine has launchers for


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds in force."""

    run_steps: int = MAX_RUN_STEPS
    run_bytes: int = MAX_RUN_BYTES
    open_runs: int = MAX_OPEN_RUNS

    def add_call(self, tables: Tables, row: LedgerRow) -> None:
        """Stores a new call as a step of its run.

        Raises:
            Conflict: its run is full.
        """
        run = tables.runs.get(row.run_id) if row.run_id else None
        if run is not None:
            size = row.arguments.size_bytes
            place = self.add_step(tables, run, size, call_id=row.call_id, tool=row.tool)
            row = replace(row, place=place)
        tables.calls.insert(row)

    def add_step(
        self, tables: Tables, run: Run, size_bytes: int, *, call_id: str = "", tool: str = ""
    ) -> int:
        """Counts one more step of a run; its place among them, by no clock.

        Raises:
            Conflict: the run is full.
        """
        if run.recorded_steps >= self.run_steps:
            held = f"{run.run_id} holds {run.recorded_steps} steps, {self.run_steps} at most"
            raise Conflict("run_steps_limit", call_id=call_id, tool=tool, detail=held)
        if run.recorded_bytes + size_bytes > self.run_bytes:
            held = f"{run.run_id} holds {run.recorded_bytes} bytes, {self.run_bytes} at most"
            raise Conflict("run_bytes_limit", call_id=call_id, tool=tool, detail=held)
        tables.runs.grow(run.run_id, steps=1, size_bytes=size_bytes)
        return run.recorded_steps + 1

    def check_open(self, tables: Tables, app: str) -> None:
        """Is there room for one more run of the app?

        Raises:
            Conflict: too many of its runs have not ended.
        """
        count = tables.runs.open(app)
        if count >= self.open_runs:
            raise Conflict("open_runs_limit", detail=f"{count} runs of {app} have not ended")


DEFAULT_BOUNDS = Bounds()
