"""Starts what a Permit allows, and nothing else."""

import logging
import threading
import time
from typing import Protocol

from meshgate_gateway.decide import Permit
from meshgate_gateway.errors import Unavailable
from meshgate_gateway.ledger import LedgerRow

REDISPATCH_SECONDS = 2.0  # a joined call is driven again after this, should its gateway have died

log = logging.getLogger(__name__)


class ToolRuntime(Protocol):
    """Carries a call's id to the tool's host, at least once.

    `dispatch` must be safe to repeat for the same id; it returns when the runtime has accepted
    the id durably, not when the tool has run. It raises Unavailable when it cannot.
    """

    def dispatch(self, call_id: str, host: str) -> None:
        """Hands the id over.

        Raises:
            Unavailable: not accepted.
        """


class Executor:
    """Dispatches permits, and joined calls whose first dispatch may have been lost."""

    def __init__(self, *, runtime: ToolRuntime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()
        self._driven: dict[str, float] = {}

    def execute(self, permit: Permit) -> None:
        """Starts the permitted call.

        Raises:
            Unavailable: the runtime did not take it; the ledger row stays `reserved`.
        """
        self._drive(permit.call.call_id, permit.call.tool.host)

    def drive_again(self, row: LedgerRow) -> None:
        """Dispatches an already decided call once more, unless this process just did.

        Raises:
            Unavailable: the runtime did not take it.
        """
        with self._lock:
            last = self._driven.get(row.call_id, 0.0)
        if time.monotonic() - last > REDISPATCH_SECONDS:
            self._drive(row.call_id, row.host)

    def forget(self, call_id: str) -> None:
        """Drops what is remembered of a settled call."""
        with self._lock:
            self._driven.pop(call_id, None)

    def _drive(self, call_id: str, host: str) -> None:
        with self._lock:
            self._driven[call_id] = time.monotonic()
        try:
            self._runtime.dispatch(call_id, host)
        except Unavailable:
            self.forget(call_id)
            raise
