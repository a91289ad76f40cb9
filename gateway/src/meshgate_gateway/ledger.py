"""Which state of a call may follow which. Pure; the store applies each step as a compare-and-set.

(new)    -> reserved | denied | done, failed (a repeat: the first call's outcome)
(copy)   -> done | failed | denied, of another run's call: never anything that could be executed
reserved -> sent (TakeCall) | failed: never_started (sweeper, cancel) | denied (second verdict)
sent     -> sent (a repeatable tool taken again, or one that is to be reconciled) | done | failed | unknown
unknown  -> done | failed (late FinishCall, reconcile, a person)

Of a tool that its caller runs itself (`in_agent`) nothing outside that process depends:
(new)    -> sent (the permit is in the answer) | denied | done, failed (a repeat)
sent     -> sent (another attempt runs it anew) | denied (second verdict) | done | failed; never unknown
"""

from dataclasses import replace

from meshgate_gateway.model import LedgerRow, Outcome, Sealed, State

NEXT: dict[State, frozenset[State]] = {
    State.RESERVED: frozenset({State.SENT, State.FAILED, State.DENIED}),
    State.SENT: frozenset({State.SENT, State.DONE, State.FAILED, State.UNKNOWN}),
    State.UNKNOWN: frozenset({State.DONE, State.FAILED}),
    State.DONE: frozenset(),
    State.FAILED: frozenset(),
    State.DENIED: frozenset(),
}
BEGINNINGS = frozenset({State.RESERVED, State.DENIED})
OUTCOMES = frozenset({State.DONE, State.FAILED, State.UNKNOWN})
ANSWERED = frozenset({State.DONE, State.FAILED})  # an effect was tried, and what came of it is known
RUN_ENDED = "run_ended"  # error class of a call whose run ended while the agent itself ran it
SETTLED = frozenset({State.DONE, State.FAILED, State.DENIED})


def check(before: State | None, after: State) -> None:
    """Refuses a step the table does not have.

    Raises:
        RuntimeError: our own code took a wrong turn.
    """
    allowed = BEGINNINGS if before is None else NEXT[before]
    if after not in allowed:
        raise RuntimeError(f"the ledger has no step from {before} to {after}")


def check_move(before: LedgerRow, after: LedgerRow) -> None:
    """Refuses a step of a call that the table does not have.

    Raises:
        RuntimeError: our own code took a wrong turn.
    """
    if before.in_agent and after.state is State.UNKNOWN:
        raise RuntimeError("what an agent runs itself is never unknown")
    if before.in_agent and (before.state, after.state) == (State.SENT, State.DENIED):
        return
    if after.state is not before.state:
        check(before.state, after.state)


def check_new(row: LedgerRow) -> None:
    """Refuses a row that cannot be a call's first one. A repeat may begin with the first call's outcome.

    Raises:
        RuntimeError: our own code took a wrong turn.
    """
    if row.copied_from:
        if row.state not in SETTLED or (row.take and not row.in_agent):
            raise RuntimeError(f"a copied call cannot be {row.state}")
        return
    if row.in_agent and row.state is State.SENT:
        return
    if not (row.repeats and row.state in ANSWERED):
        check(None, row.state)


def taken(row: LedgerRow, *, host_instance: str, now_ms: int) -> LedgerRow:
    """The row after a take: sent, with the next take number and a fresh deadline."""
    check(row.state, State.SENT)
    return replace(
        row,
        state=State.SENT,
        take=row.take + 1,
        host_instance=host_instance,
        deadline_at_ms=now_ms + row.deadline_ms,
        updated_ms=now_ms,
    )


def handed_out(row: LedgerRow) -> LedgerRow:
    """The row of an allowed call whose caller is told to run it itself; `take` counts how often."""
    if not row.in_agent:
        raise RuntimeError("only what its caller runs itself is handed to the caller")
    return replace(row, state=State.SENT, take=row.take + 1)


def begins_again(row: LedgerRow) -> bool:
    """True for an open call that another attempt may begin, so that policy is asked once more."""
    return row.state is State.RESERVED or (row.in_agent and row.state is State.SENT)


def asked_again(row: LedgerRow, *, host_instance: str, now_ms: int, may_run: bool) -> LedgerRow:
    """The row of a call whose host is to find out what came of it: the state stays, the take is the next.

    What had not begun may begin now when `may_run`; else its deadline has passed.
    """
    if row.state not in (State.SENT, State.UNKNOWN):
        raise RuntimeError(f"nobody asks what came of a call that is {row.state}")
    deadline = now_ms + row.deadline_ms if may_run else min(row.deadline_at_ms, now_ms)
    return replace(
        row, take=row.take + 1, host_instance=host_instance, deadline_at_ms=deadline, updated_ms=now_ms
    )


def settled(row: LedgerRow, outcome: Outcome, sealed: Sealed | None, *, now_ms: int) -> LedgerRow:
    """The row after an outcome."""
    check(row.state, outcome.state)
    return replace(
        row,
        state=outcome.state,
        result=sealed,
        result_kind=outcome.result_kind,
        error_class=outcome.error_class,
        updated_ms=now_ms,
    )
