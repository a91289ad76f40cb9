"""What the ledger says of a call, as its caller is told. Pure."""

from dataclasses import replace

from meshgate_gateway.model import Answer, LedgerRow, State

OPEN = frozenset({State.RESERVED, State.SENT})


def answer_of(row: LedgerRow, text: bytes | None) -> Answer:
    """What the ledger says of a call; `text` is its result or failure in clear text, where there is one."""
    base = Answer(row.call_id, row.state, row.decision_id)
    if row.state is State.DENIED:
        return replace(base, reasons=row.reasons, message=denial(row))
    if row.state in OPEN or text is None:
        return replace(base, error_class=row.error_class)
    if row.state is State.DONE:
        return replace(base, result_kind=row.result_kind, result=text)
    return replace(base, error_class=row.error_class, message=text.decode())


def denial(row: LedgerRow) -> str:
    """The one line that a model sees: stable, without rule internals or argument values."""
    reason = ", ".join(row.reasons)
    if row.detail:
        return f"denied [{row.decision_id}]: {reason} ({row.detail}); correct the arguments"
    return f"denied [{row.decision_id}]: {reason}; do not retry"
