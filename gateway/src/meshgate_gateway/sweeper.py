"""Settles what a dead gateway, a lost host or a vanished caller left open. Never decides.

reserved, old enough to be forgotten by the live path  -> started again (the runtime checks)
reserved, older than anybody's patience                -> failed: never_started
sent, past its deadline and a grace                    -> read: failed (timeout), else unknown
sent, run by its caller itself, and the run has ended  -> failed: run_ended
a run to be cancelled that no launcher works on        -> cancelled
a run to be paused that no launcher works on           -> paused
"""

from collections.abc import Callable
from dataclasses import dataclass

from meshgate_gateway import ledger, runs
from meshgate_gateway.decide import permit_of
from meshgate_gateway.errors import RuntimeUnavailable
from meshgate_gateway.execute import Executor
from meshgate_gateway.hosts import Hosts
from meshgate_gateway.model import LedgerRow, Outcome, State
from meshgate_gateway.store import CallQuery, Store

RESTART_AFTER_MS = 10_000  # a lease: by then whoever reserved it would have started it
PATIENCE_MS = 600_000  # ten step deadlines of 60 s
GRACE_MS = 5_000  # a host's FinishCall may be on its way
MAX_PER_SWEEP = 500


@dataclass(frozen=True, slots=True)
class Sweeper:
    """One pass at a time; two gateways that sweep the same row meet at its compare-and-set."""

    store: Store
    hosts: Hosts
    executor: Executor
    now_ms: Callable[[], int]

    def sweep(self) -> int:
        """One pass; returns how many calls and runs it touched."""
        now = self.now_ms()
        ended = runs.settle_left(self.store, self.hosts.recorder, now_ms=now)
        query = CallQuery(states=(State.RESERVED, State.SENT), limit=MAX_PER_SWEEP)
        rows = self.store.read(lambda tables: tables.calls.query(query))
        return ended + sum(self._settle_own(row) if row.in_agent else self._settle(row, now) for row in rows)

    def _settle(self, row: LedgerRow, now: int) -> bool:
        if row.state is State.SENT:
            if now < row.deadline_at_ms + GRACE_MS:
                return False
            state = State.FAILED if row.effect == "read" else State.UNKNOWN
            message = b"the tool did not finish before its deadline"
            return self.hosts.expire(row, Outcome(state, message, "", "timeout"), cause="deadline")
        age = now - row.updated_ms
        if age > PATIENCE_MS:
            message = b"no tool host took the call; it has not begun"
            outcome = Outcome(State.FAILED, message, "", "never_started")
            return self.hosts.expire(row, outcome, cause="never_started")
        if age < RESTART_AFTER_MS:
            return False
        try:
            self.executor.start(permit_of(row), fresh=False)
        except RuntimeUnavailable:
            return False  # the next sweep tries again; nothing was begun
        return True

    def _settle_own(self, row: LedgerRow) -> bool:
        """A call that its agent runs itself is open for as long as its run may go on."""
        run = self.store.read(lambda tables: tables.runs.get(row.run_id))
        if run is not None and not run.ended:
            return False
        outcome = Outcome(State.FAILED, b"its run ended before the tool did", "", ledger.RUN_ENDED)
        return self.hosts.expire(row, outcome, cause=ledger.RUN_ENDED)
