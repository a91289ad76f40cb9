"""Settles what nobody finished in time. It never decides and never runs anything."""

import logging
import threading

from meshgate_gateway import ledger
from meshgate_gateway.broker import Books
from meshgate_gateway.errors import Conflict, Unavailable
from meshgate_gateway.hosts import record_outcome
from meshgate_gateway.ledger import LedgerRow, Settlement
from meshgate_gateway.outcomes import Outcomes
from meshgate_gateway.store import Transaction

PERIOD_SECONDS = 1.0
GRACE_MS = 2_000  # for a FinishCall that is on its way at the deadline
BATCH = 100

log = logging.getLogger(__name__)


def verdict(row: LedgerRow) -> Settlement:
    """How an overdue call ends: certainly not begun, read in vain, or unknown."""
    if row.state == "reserved":
        return Settlement("failed", error_class="never_started", message="no tool host took the call in time")
    if row.effect == "read":
        return Settlement("failed", error_class="timeout", message="the tool did not answer in time")
    return Settlement(
        "unknown", error_class="timeout", message="the tool did not answer in time; its effect is not known"
    )


class Sweeper:
    """A thread that looks once a second."""

    def __init__(self, *, books: Books, outcomes: Outcomes) -> None:
        self._books = books
        self._outcomes = outcomes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Begins sweeping."""
        self._thread.start()

    def close(self) -> None:
        """Stops after the sweep under way."""
        self._stop.set()
        self._thread.join(timeout=5)

    def sweep(self) -> int:
        """Settles every overdue call once; returns how many."""
        limit_ms = self._books.now_ms() - GRACE_MS
        rows = self._books.store.read(lambda tx: ledger.overdue(tx, limit_ms, BATCH))
        return sum(self._settle(row) for row in rows)

    def _settle(self, row: LedgerRow) -> int:
        settlement = verdict(row)

        def work(tx: Transaction) -> None:
            ledger.settle(tx, row, settlement)
            record_outcome(self._books, tx, row, settlement, "")

        try:
            self._books.store.transact(work)
        except Conflict:  # somebody finished it meanwhile: the better end
            return 0
        self._outcomes.announce()
        return 1

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_SECONDS):
            try:
                self.sweep()
            except Unavailable as error:
                log.warning("sweeper.store_unavailable", extra={"detail": error.detail})
