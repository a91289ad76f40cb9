"""Settles what a dead gateway, a lost host or a vanished caller left open. Never decides.

reserved, old enough to be forgotten by the live path  -> started again (the runtime checks)
reserved, older than anybody's patience                -> failed: never_started
sent, past its deadline and a grace                    -> read: failed (timeout), else unknown
sent, run by its caller itself, and the run has ended  -> failed: run_ended
sent or unknown, and its host can find out             -> asked, first at the deadline, ten times in two hours
a run to be cancelled that no launcher works on        -> cancelled
a run to be paused that no launcher works on           -> paused
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from meshgate_gateway import ledger, runs
from meshgate_gateway.decide import permit_of, question_of
from meshgate_gateway.errors import Refused, RuntimeUnavailable
from meshgate_gateway.execute import Executor
from meshgate_gateway.hosts import Hosts
from meshgate_gateway.model import LedgerRow, Outcome, State
from meshgate_gateway.store import CallQuery, Store, Tables

RESTART_AFTER_MS = 10_000  # a lease: by then whoever reserved it would have started it
PATIENCE_MS = 600_000  # ten step deadlines of 60 s
MAX_PER_SWEEP = 500

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sweeper:
    """One pass at a time; two gateways that sweep the same row meet at its compare-and-set.

    Attributes:
        agents: apps that are no tool hosts.
    """

    store: Store
    hosts: Hosts
    executor: Executor
    now_ms: Callable[[], int]
    agents: tuple[str, ...] = ()

    def sweep(self) -> int:
        """One pass; returns how many calls and runs it touched."""
        now = self.now_ms()
        ended = runs.settle_left(self.store, self.hosts.recorder, now_ms=now) + self._ask(now)
        return ended + sum(self._tried(self._swept, row, now) for row in self._open())

    def _open(self) -> Sequence[LedgerRow]:
        """Calls of tool hosts, and apart from them what agents run themselves: those may be open for days."""
        query = CallQuery(states=(State.RESERVED, State.SENT), limit=MAX_PER_SWEEP)
        parts = [replace(query, other_hosts=self.agents)]
        parts += [replace(query, hosts=self.agents)] if self.agents else []
        return self.store.read(lambda tables: [row for part in parts for row in tables.calls.query(part)])

    @staticmethod
    def _tried(act: Callable[[LedgerRow, int], bool], row: LedgerRow, now: int) -> bool:
        """A row that cannot be moved keeps no other from it."""
        try:
            return act(row, now)
        except Refused as error:
            _log.warning("not swept", extra={"call_id": row.call_id, "reason": error.reason})
            return False

    def _ask(self, now: int) -> int:
        """Asks the hosts of calls that may have begun what came of them; rarer each time, and bounded."""
        tools = sorted(self.hosts.reconciles)
        query = CallQuery(tools=tuple(tools), ask_due_ms=now, limit=MAX_PER_SWEEP)
        due = self.store.read(lambda tables: tables.calls.query(query)) if tools else ()
        return sum(self._tried(self._put, row, now) for row in due)

    def _put(self, row: LedgerRow, now: int) -> bool:
        def work(tables: Tables) -> bool:
            return tables.calls.get(row.call_id) == row and tables.calls.move(
                row, ledger.put_again(row, now_ms=now)
            )

        if not self.store.write(work):
            return False
        try:
            self.executor.start(question_of(row), fresh=False)
        except RuntimeUnavailable:
            return False  # the next time that it is due
        return True

    def _swept(self, row: LedgerRow, now: int) -> bool:
        return self._settle_own(row) if row.in_agent else self._settle(row, now)

    def _settle(self, row: LedgerRow, now: int) -> bool:
        if row.state is State.SENT:
            if now < row.deadline_at_ms + ledger.GRACE_MS:
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
