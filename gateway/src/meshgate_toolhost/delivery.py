"""Outcomes on their way to the gateway: at once, else again and again, also after a restart."""

import logging
import threading
from dataclasses import replace

from meshgate_toolhost.errors import CallRefused, GatewayUnavailable, LedgerUnavailable
from meshgate_toolhost.finished import FinishedLedger
from meshgate_toolhost.gateway import Gateway
from meshgate_toolhost.model import Failure, Finished, Result

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 0.5  # a run may stand still for just this outcome

_log = logging.getLogger(__name__)


class Delivery:
    """Sends FinishCall; one background thread repeats what found no gateway."""

    def __init__(self, *, gateway: Gateway, finished: FinishedLedger) -> None:
        self._gateway = gateway
        self._finished = finished
        self._lock = threading.Lock()
        self._waiting: dict[str, Finished] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="delivery", daemon=True)

    def start(self) -> int:
        """Begins, with what an earlier process left; returns how many those are.

        Raises:
            LedgerUnavailable: the ledger cannot be read.
        """
        left = self._finished.undelivered()
        with self._lock:
            self._waiting.update({one.call_id: one for one in left})
        if left:
            self._wake.set()
        self._thread.start()
        return len(left)

    def close(self) -> None:
        """Stops repeating; what waits stays in the ledger."""
        self._stop.set()
        self._wake.set()

    def deliver_or_keep(self, finished: Finished) -> None:
        """Sends an outcome now, or leaves it to the background."""
        try:
            self.deliver(finished)
        except GatewayUnavailable as error:
            _log.warning("finish.waits", extra={"call_id": finished.call_id, "error": str(error)})
            with self._lock:
                self._waiting[finished.call_id] = finished
            self._wake.set()

    def deliver(self, finished: Finished) -> bool:
        """Sends an outcome once.

        Returns:
            True when the gateway has it, or will never take an outcome of this call; False when
            it wants it under another take.

        Raises:
            GatewayUnavailable: no verdict.
        """
        try:
            self._send(finished)
        except CallRefused as error:
            _log.warning("finish.refused", extra={"call_id": finished.call_id, "reason": error.reason})
            if error.reason == "take_superseded":
                return False
        try:
            self._finished.delivered(finished)
        except LedgerUnavailable as error:
            _log.error("ledger.unavailable", extra={"call_id": finished.call_id, "error": str(error)})
        return True

    def _send(self, finished: Finished) -> None:
        try:
            self._gateway.finish(finished)
        except CallRefused as error:
            if not (error.invalid and isinstance(finished.outcome, Result)):
                raise
            failure = Failure("result_refused", f"the tool ran; its result was refused: {error.reason}")
            self._gateway.finish(replace(finished, outcome=failure))

    def _repeat(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            while not self._stop.is_set() and not self._round():
                self._stop.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            pause = FIRST_PAUSE_SECONDS

    def _round(self) -> bool:
        """Tries everything that waits; True when nothing is left."""
        with self._lock:
            waiting = list(self._waiting.values())
        for finished in waiting:
            try:
                self.deliver(finished)
            except GatewayUnavailable:
                return False
            with self._lock:
                if self._waiting.get(finished.call_id) == finished:
                    del self._waiting[finished.call_id]
        with self._lock:
            return not self._waiting
