"""A second call with equal arguments in one task of a run: what its tool's `repeat` makes of it.

allow -> it is a call of its own
same  -> it is answered with the first call's outcome, once that is settled; never a second effect
deny  -> it is refused

Which task a call belongs to is what the agent's process says: this keeps a guardrail's retry from
paying twice, it is no defence against that process. A first call that was denied, or has certainly
not begun, counts for nothing; one that failed counts, since it may have had an effect.
"""

from dataclasses import replace

from meshgate_gateway import ledger
from meshgate_gateway.model import Caller, CallRequest, LedgerRow, State, Tool
from meshgate_gateway.payloads import Vault
from meshgate_gateway.store import CallQuery, Tables

DENIED = "repeat_denied"


def likeness(vault: Vault, *, caller: Caller, request: CallRequest, tool: Tool, arguments: bytes) -> str:
    """Equal for equal calls of one task of a run; empty outside of a task, where none is a repeat."""
    if not (request.run_id and request.task):
        return ""
    names = (caller.spiffe_id, request.run_id, request.task, tool.id)
    return vault.likeness(*(name.encode() for name in names), arguments)


def first(tables: Tables, like: str, *, attempt: int) -> LedgerRow | None:
    """The call that others with this likeness repeat; whether it is settled is not looked at."""
    rows = tables.calls.query(CallQuery(likeness=like)) if like else ()
    counted = [row for row in rows if not row.repeats and _counts(row, attempt)]
    return counted[-1] if counted else None


def _counts(row: LedgerRow, attempt: int) -> bool:
    if row.in_agent and row.state is State.SENT and row.attempt != attempt:
        return False  # it ran in a process that is gone, and its effect with it
    return row.state is not State.DENIED and row.error_class != "never_started"


def joins(tool: Tool, earlier: LedgerRow) -> bool:
    """True when the repeat has to wait for the first call's outcome."""
    return tool.repeat == "same" and earlier.state not in ledger.ANSWERED


def judged(row: LedgerRow, tool: Tool, earlier: LedgerRow) -> LedgerRow:
    """The row of a permitted call that repeats `earlier`, and need not wait for it."""
    named = replace(row, repeats=earlier.call_id)
    if tool.repeat == "allow":
        return named
    if tool.repeat == "deny":
        return replace(named, state=State.DENIED, reasons=(DENIED,))
    return replace(
        named,
        state=earlier.state,
        result=earlier.result,
        result_kind=earlier.result_kind,
        error_class=earlier.error_class,
    )
