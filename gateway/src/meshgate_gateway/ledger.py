"""The states of calls. Every change is a compare-and-set on the state it leaves.

(new) -> reserved | denied        reserved: certainly not begun
reserved -> sent | failed         sent: may have begun
sent -> sent                      a second take, of an idempotent or reading tool only
sent -> done | failed | unknown
unknown -> done | failed          a late FinishCall
"""

import json
from dataclasses import dataclass
from typing import Final

from meshgate_gateway.calls import ToolCall
from meshgate_gateway.errors import Conflict
from meshgate_gateway.store import Row, Transaction

SETTLED: Final = frozenset({"done", "failed", "denied", "unknown"})
_COLUMNS = (
    "call_id, caller, run_id, attempt, step_key, tool, host, args_sha256, definition_sha256, effect,"
    " idempotent, decision_id, policy_revision, reasons, state, args_payload, deadline_ms, tool_seconds,"
    " take, host_instance, result_kind, result_payload, error_class, message, created_ms"
)


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One call as it stands. Times are Unix milliseconds; payloads are ids."""

    call_id: str
    caller: str
    run_id: str
    attempt: int
    step_key: str
    tool: str
    host: str
    args_sha256: str
    definition_sha256: str
    effect: str
    idempotent: int
    decision_id: str
    policy_revision: str
    reasons: str
    state: str
    args_payload: str
    deadline_ms: int
    tool_seconds: float
    take: int
    host_instance: str
    result_kind: str
    result_payload: str
    error_class: str
    message: str
    created_ms: int

    @property
    def reason_ids(self) -> tuple[str, ...]:
        """Why it was denied."""
        return tuple(json.loads(self.reasons))


@dataclass(frozen=True, slots=True)
class Opening:
    """How a call enters the ledger: `reserved` or `denied`."""

    state: str
    decision_id: str
    policy_revision: str
    reasons: tuple[str, ...]
    args_payload: str
    deadline_ms: int
    created_ms: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a call ends: `done`, `failed` or `unknown`."""

    state: str
    result_kind: str = ""
    result_payload: str = ""
    error_class: str = ""
    message: str = ""


def find(tx: Transaction, call_id: str) -> LedgerRow | None:
    """The row of one call."""
    rows = tx.execute(f"SELECT {_COLUMNS} FROM calls WHERE call_id = ?", (call_id,))  # noqa: S608 - constant
    return _row(rows[0]) if rows else None


def open_call(tx: Transaction, call: ToolCall, opening: Opening) -> bool:
    """Inserts the row; false when the id is already there."""
    marks = ", ".join("?" * 25)
    values = (
        call.call_id, call.caller, call.run.id if call.run else "", call.run.attempt if call.run else 0,
        call.step_key, call.tool.id, call.tool.host, call.args_sha256, call.tool.definition_sha256,
        call.tool.effect, int(call.tool.idempotent), opening.decision_id, opening.policy_revision,
        json.dumps(opening.reasons), opening.state, opening.args_payload, opening.deadline_ms,
        call.tool.deadline_seconds, 0, "", "", "", "", "", opening.created_ms,
    )  # fmt: skip
    return (
        tx.changed(f"INSERT INTO calls ({_COLUMNS}) VALUES ({marks}) ON CONFLICT DO NOTHING", values)  # noqa: S608
        == 1
    )


def take(tx: Transaction, row: LedgerRow, host_instance: str, deadline_ms: int) -> int:
    """Moves to `sent` and returns the number of the take.

    Raises:
        Conflict: the state changed meanwhile.
    """
    changed = tx.changed(
        "UPDATE calls SET state = 'sent', take = take + 1, host_instance = ?, deadline_ms = ?"
        " WHERE call_id = ? AND state = ? AND take = ?",
        (host_instance, deadline_ms, row.call_id, row.state, row.take),
    )
    if changed != 1:
        raise Conflict("call_not_open", "the call is no longer open")
    return row.take + 1


def settle(tx: Transaction, row: LedgerRow, settlement: Settlement) -> None:
    """Ends the call from the state that `row` shows.

    Raises:
        Conflict: the state changed meanwhile.
    """
    changed = tx.changed(
        "UPDATE calls SET state = ?, result_kind = ?, result_payload = ?, error_class = ?, message = ?"
        " WHERE call_id = ? AND state = ? AND take = ?",
        (
            settlement.state, settlement.result_kind, settlement.result_payload, settlement.error_class,
            settlement.message, row.call_id, row.state, row.take,
        ),
    )  # fmt: skip
    if changed != 1:
        raise Conflict("call_settled", "the call was settled meanwhile")


def overdue(tx: Transaction, now_ms: int, limit: int) -> list[LedgerRow]:
    """Open calls past their deadline."""
    rows = tx.execute(
        f"SELECT {_COLUMNS} FROM calls WHERE state IN ('reserved', 'sent') AND deadline_ms < ?"  # noqa: S608
        " ORDER BY deadline_ms LIMIT ?",
        (now_ms, limit),
    )
    return [_row(row) for row in rows]


def recent(tx: Transaction, run_id: str, limit: int) -> list[LedgerRow]:
    """The newest calls, of one run or of all."""
    rows = tx.execute(
        f"SELECT {_COLUMNS} FROM calls WHERE ? IN ('', run_id) ORDER BY created_ms DESC, rowid DESC LIMIT ?",  # noqa: S608
        (run_id, limit),
    )
    return [_row(row) for row in rows]


def _row(values: Row) -> LedgerRow:
    return LedgerRow(*values)
