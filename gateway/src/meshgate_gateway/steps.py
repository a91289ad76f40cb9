"""The steps of a run in their one order: model replies of the journal and calls of the ledger, merged.

A step's number is its place in that order, from 1. Rows are only ever added behind, so a number
that was shown once stays.
"""

from collections.abc import Sequence

from meshgate_gateway.model import JournalRow, LedgerRow, Run, State
from meshgate_gateway.store import Tables

StepRow = JournalRow | LedgerRow

TAKEN_STATES = frozenset({State.SENT, State.DONE, State.FAILED, State.UNKNOWN})


def order(row: StepRow) -> int:
    """Sorts steps: in the order in which they were stored, whatever clocks the gateways have."""
    return row.place


def of_run(tables: Tables, run_id: str) -> list[StepRow]:
    """All steps of a run, whatever their state."""
    return sorted([*tables.journal.of_run(run_id), *tables.calls.of_run(run_id)], key=order)


def whose(run: Run, row: StepRow) -> str:
    """Who recorded a step; a fork's copies are another run's."""
    return f"attempt {row.attempt}" if row.attempt > 0 else run.origin_run


def may_have_acted(row: StepRow) -> bool:
    """True for a call that changed something, or may have: made again it may change it again."""
    if isinstance(row, JournalRow) or row.effect == "read" or row.error_class == "never_started":
        return False
    if row.in_agent:  # gone with the process that ran it
        return False
    return row.state in TAKEN_STATES and bool(row.take or row.copied_from)


def effects(rows: Sequence[StepRow], *, after: int) -> list[tuple[int, LedgerRow]]:
    """Numbers and rows of calls behind step `after` that may have acted."""
    return [
        (number, row)
        for number, row in enumerate(rows, start=1)
        if number > after and isinstance(row, LedgerRow) and may_have_acted(row)
    ]
