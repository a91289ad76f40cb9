"""The steps of a run in their one order: model replies of the journal and calls of the ledger, merged.

A step's number is its place in that order, from 1. Rows are only ever added behind, so a number
that was shown once stays.
"""

from collections.abc import Sequence

from meshgate_gateway.errors import Conflict
from meshgate_gateway.model import JournalRow, LedgerRow, State
from meshgate_gateway.store import CallQuery, Tables

StepRow = JournalRow | LedgerRow

MAX_CALLS = 10_000  # of one run; the most that one answer of the store holds
TAKEN_STATES = frozenset({State.SENT, State.DONE, State.FAILED, State.UNKNOWN})


def order(row: StepRow) -> tuple[int, int, bool, str]:
    """Sorts steps: by time; in one millisecond by turn, where calls come before the next reply."""
    return (row.created_ms, row.turn, isinstance(row, JournalRow), row.step_key)


def of_run(tables: Tables, run_id: str) -> list[StepRow]:
    """All steps of a run, whatever their state."""
    calls = tables.calls.query(CallQuery(run_id=run_id, limit=MAX_CALLS))
    return sorted([*tables.journal.of_run(run_id), *calls], key=order)


def all_of_run(tables: Tables, run_id: str) -> list[StepRow]:
    """The same, for who must not miss one.

    Raises:
        Conflict: the run has more calls than can be read at once.
    """
    rows = of_run(tables, run_id)
    if sum(isinstance(row, LedgerRow) for row in rows) >= MAX_CALLS:
        raise Conflict("run_too_long", detail=f"{run_id} has {MAX_CALLS} calls or more")
    return rows


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
