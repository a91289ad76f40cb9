"""How much one run, one app's runs together, and all below one run, may hold.

Past a bound a step is refused, and recorded.

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
MAX_DELEGATED = MAX_RUN_STEPS  # below one run, over its life; each is a process and a history; crews make tens


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds in force."""

    run_steps: int = MAX_RUN_STEPS
    run_bytes: int = MAX_RUN_BYTES
    open_runs: int = MAX_OPEN_RUNS
    delegated: int = MAX_DELEGATED

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

    def check_open(self, tables: Tables, app: str) -> int:
        """Is there room for one more run of the app?

        Returns:
            For how many.

        Raises:
            Conflict: too many of its runs have not ended.
        """
        count = tables.runs.open(app)
        if count >= self.open_runs:
            raise Conflict("open_runs_limit", detail=f"{count} runs of {app} have not ended")
        return self.open_runs - count

    def check_share(self, tables: Tables, row: LedgerRow, app: str) -> None:
        """Is there room for one more run of the app that this call's caller asks for?

        No caller may hold more of an app's open runs than it leaves free. One that is alone gets half of
        them; of n that all want what they can get each gets 1 / (n + 1), and as much is left. So nobody
        fills an app, and whoever has few runs there gets another. A fixed part would be too small for a
        crew that is alone, or a few callers would use all parts up.

        Raises:
            Conflict: too many of its runs have not ended, or too many that this caller asked for.
        """
        free = self.check_open(tables, app)
        count = tables.runs.open(app, caller=row.caller)
        if count >= free:
            held = f"{count} runs of {app} that {row.caller} asked for have not ended, {free} are left free"
            raise Conflict("open_runs_share", call_id=row.call_id, tool=row.tool, detail=held)

    def add_delegation(self, tables: Tables, row: LedgerRow, root: str) -> None:
        """Counts one more delegation below a run that nobody delegated, however deep it is made.

        Raises:
            Conflict: so many were made there already.
        """
        run = tables.runs.get(root)
        if run is None:
            raise RuntimeError("a chain begins with a run")
        if run.delegated >= self.delegated:
            held = f"{run.delegated} delegations were made below {root}, {self.delegated} at most"
            raise Conflict("delegations_limit", call_id=row.call_id, tool=row.tool, detail=held)
        tables.runs.grow(root, delegated=1)


DEFAULT_BOUNDS = Bounds()
