"""Settles what a dead gateway, a lost host or a vanished caller left open. Never decides.

reserved, old enough to be forgotten by the live path  -> started again (the runtime checks)
reserved, older than anybody's patience                -> failed: never_started
sent, past its deadline and a grace                    -> read: failed (timeout), else unknown
sent, run by its caller itself, and the run has ended  -> failed: run_ended
sent or unknown, and its host can find out             -> asked, first at the deadline, ten times in two hours
a run to be cancelled that no launcher works on        -> cancelled
a run to be paused that no launcher works on           -> paused
a run that is over, what it had asked for is not yet   -> cancelled with it
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from meshgate_gateway import ledger, runs
from meshgate_gateway.decide import Permit, permit_of, question_of
from meshgate_gateway.delegations import Delegations
from meshgate_gateway.errors import Refused
from meshgate_gateway.execute import Executor
from meshgate_gateway.hosts import Hosts
from meshgate_gateway.model import LedgerRow, Outcome, State
from meshgate_gateway.passes import Pass
from meshgate_gateway.store import CallQuery, Store, Tables

RESTART_AFTER_MS = 10_000  # a lease: by then whoever reserved it would have started it
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
    delegations: Delegations
    agents: tuple[str, ...] = ()

    def sweep(self) -> int:
        """One pass; returns how many calls and runs it touched."""
        this = Pass(self.now_ms)
        ended = runs.settle_left(self.store, self.hosts.recorder, self.delegations, now_ms=this.now)
        ended += self.delegations.recall(self.store) + self._ask(this)
        return ended + sum(self._tried(self._swept, row, this) for row in self._open())

    def _open(self) -> Sequence[LedgerRow]:
        """Calls of tool hosts, and apart from them what agents run themselves: those may be open for days.

        A delegation is not among them: it ends with its run, however long that takes.
        """
        query = CallQuery(states=(State.RESERVED, State.SENT), delegated=False, limit=MAX_PER_SWEEP)
        parts = [replace(query, other_hosts=self.agents)]
        parts += [replace(query, hosts=self.agents)] if self.agents else []
        return self.store.read(lambda tables: [row for part in parts for row in tables.calls.query(part)])

    @staticmethod
    def _tried(act: Callable[[LedgerRow, Pass], bool], row: LedgerRow, this: Pass) -> bool:
        """A row that cannot be moved keeps no other from it."""
        try:
            return act(row, this)
        except Refused as error:
            _log.warning("not swept", extra={"call_id": row.call_id, "reason": error.reason})
            return False

    def _ask(self, this: Pass) -> int:
        """Asks the hosts of calls that may have begun what came of them; rarer each time, and bounded."""
        tools = sorted(self.hosts.reconciles)
        query = CallQuery(tools=tuple(tools), ask_due_ms=this.now, limit=MAX_PER_SWEEP)
        due = self.store.read(lambda tables: tables.calls.query(query)) if tools else ()
        return sum(self._tried(self._put, row, this) for row in due)

    def _put(self, row: LedgerRow, this: Pass) -> bool:
        if not this.open:
            return False  # nothing of the question is used up

        def work(tables: Tables) -> bool:
            return tables.calls.get(row.call_id) == row and tables.calls.move(
                row, ledger.put_again(row, now_ms=this.now)
            )

        if not self.store.write(work):
            return False
        return self._started(question_of(row), this)  # else the next time that it is due

    def _started(self, permit: Permit, this: Pass) -> bool:
        return this.asked(lambda: self.executor.start(permit, fresh=False), call_id=permit.call_id)

    def _swept(self, row: LedgerRow, this: Pass) -> bool:
        return self._settle_own(row) if row.in_agent else self._settle(row, this)

    def _settle(self, row: LedgerRow, this: Pass) -> bool:
        now = this.now
        if row.state is State.SENT:
            if now < row.deadline_at_ms + ledger.GRACE_MS:
                return False
            state = State.FAILED if row.effect == "read" else State.UNKNOWN
            message = b"the tool did not finish before its deadline"
            return self.hosts.expire(row, Outcome(state, message, "", "timeout"), cause="deadline")
        age = now - row.updated_ms
        if age > ledger.PATIENCE_MS:
            message = b"no tool host took the call; it has not begun"
            outcome = Outcome(State.FAILED, message, "", "never_started")
            return self.hosts.expire(row, outcome, cause="never_started")
        if age < RESTART_AFTER_MS:
            return False
        return self._started(permit_of(row), this)  # else the next sweep tries again; nothing was begun

    def _settle_own(self, row: LedgerRow) -> bool:
        """A call that its agent runs itself is open for as long as its run may go on."""
        run = self.store.read(lambda tables: tables.runs.get(row.run_id))
        if run is not None and not run.ended:
            return False
        outcome = Outcome(State.FAILED, b"its run ended before the tool did", "", ledger.RUN_ENDED)
        return self.hosts.expire(row, outcome, cause=ledger.RUN_ENDED)
