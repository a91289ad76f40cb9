"""Which state of a call may follow which. Pure; the store applies each step as a compare-and-set.

(new)    -> reserved | denied | done, failed (a repeat: the first call's outcome)
(copy)   -> done | failed | denied, of another run's call: never anything that could be executed
reserved -> sent (TakeCall) | failed: never_started (sweeper, cancel) | denied (second verdict)
sent     -> sent (a repeatable tool taken again, or one that is to be reconciled) | done | failed | unknown
unknown  -> done | failed (late FinishCall, reconcile, a person)
What was sent begins once more only after a second verdict: denied it is unknown, or failed if it reads.

Of a tool that its caller runs itself (`in_agent`) nothing outside that process depends:
(new)    -> sent (the permit is in the answer) | denied | done, failed (a repeat)
sent     -> sent (another attempt runs it anew) | denied (second verdict) | done | failed; never unknown

Of a task given to another agent (`delegates`) the callee's run is what is under way:
reserved -> sent (the run's first attempt) | failed (the run ended before) | denied (second verdict)
sent     -> done | failed, with the end of that run; never unknown
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
TIMEOUT = "timeout"  # error class of a body that did not end before its deadline
RUN_ENDED = "run_ended"  # error class of a call whose run ended while the agent itself ran it
SETTLED = frozenset({State.DONE, State.FAILED, State.DENIED})
GRACE_MS = 5_000  # a host's FinishCall may be on its way; its clock may go a little wrong
PATIENCE_MS = 600_000  # ten step deadlines of 60 s; nothing begins on a decision that is older
NOT_BEGUN = "not_begun"  # the error class of a host that found out so
ASK_AGAIN_MS = 15_000  # longer than an answer of `reconcile` may take; twice that the next time, and so on
MAX_ASKS = 10  # over two hours; then a person, or a host that comes back


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
    if before.delegates and after.state is State.UNKNOWN:
        raise RuntimeError("what becomes of a delegation, its run says")
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
    return _running(
        replace(row, state=State.SENT, take=row.take + 1, host_instance=host_instance, updated_ms=now_ms),
        now_ms=now_ms,
    )


def handed_out(row: LedgerRow) -> LedgerRow:
    """The row of an allowed call whose caller is told to run it itself; `take` counts how often."""
    if not row.in_agent:
        raise RuntimeError("only what its caller runs itself is handed to the caller")
    return replace(row, state=State.SENT, take=row.take + 1)


def begun(row: LedgerRow, *, now_ms: int) -> LedgerRow:
    """The row of a delegation whose run has begun: from here on it may have acted."""
    check(row.state, State.SENT)
    return replace(row, state=State.SENT, take=row.take + 1, updated_ms=now_ms)


def begins_again(row: LedgerRow) -> bool:
    """True for an open call that another attempt may begin, so that policy is asked once more."""
    return row.state is State.RESERVED or (row.in_agent and row.state is State.SENT)


def _running(row: LedgerRow, *, now_ms: int) -> LedgerRow:
    """Its host may be at work on it from now to its deadline; then it is asked about, if nobody told."""
    deadline = now_ms + row.deadline_ms
    due = 0 if row.repeatable else deadline + GRACE_MS
    return replace(row, deadline_at_ms=deadline, busy_until_ms=deadline, asks=0, next_ask_ms=due)


def asked_again(
    row: LedgerRow, *, host_instance: str, now_ms: int, may_run: bool, over: bool = False
) -> LedgerRow:
    """The row of a call whose host is to find out what came of it: the state stays, the take is the next.

    What had not begun may begin now when `may_run`; when it is `over` nobody waits for it any more.
    """
    if row.state not in (State.SENT, State.UNKNOWN):
        raise RuntimeError(f"nobody asks what came of a call that is {row.state}")
    after = replace(row, take=row.take + 1, host_instance=host_instance, asked_ms=now_ms, updated_ms=now_ms)
    if may_run:
        begins = _running(after, now_ms=now_ms)
        # Nobody else may be at it: that this host has not begun it is believed when it says so.
        return replace(begins, asks=row.asks, asked_ms=begins.busy_until_ms + GRACE_MS)
    return replace(after, deadline_at_ms=min(row.deadline_at_ms, now_ms)) if over else after


def quiet(row: LedgerRow, *, now_ms: int) -> bool:
    """Whether every process that was told to run it is past its deadline, so that none may still begin it."""
    return now_ms >= row.busy_until_ms + GRACE_MS


def believed(row: LedgerRow, outcome: Outcome) -> bool:
    """False for "it had not begun" of a host that was asked while an earlier one could still be at it."""
    if not outcome.reconciled or outcome.error_class != NOT_BEGUN:
        return True
    return quiet(row, now_ms=row.asked_ms)


def put_again(row: LedgerRow, *, now_ms: int) -> LedgerRow:
    """The row as its host is asked once more: later each time, and in the end no more.

    The first time, a call that is not yet held to be lost is given the time for an answer.
    """
    asks = row.asks + 1
    due = now_ms + ASK_AGAIN_MS * 2 ** (asks - 1)
    first = row.state is State.SENT and not row.asks
    return replace(
        row,
        asks=asks,
        next_ask_ms=due if asks < MAX_ASKS else 0,
        deadline_at_ms=due - GRACE_MS if first else row.deadline_at_ms,
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
        next_ask_ms=row.next_ask_ms if outcome.state is State.UNKNOWN else 0,
    )
