"""The fourth room: starts what a Permit names, and lets callers wait for its end.

Effects are at-least-once beneath us. What makes them once is the ledger: a started call can do
nothing until its host takes it, and is taken once.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from meshgate_gateway.decide import Permit

RESTART_AFTER_SECONDS = 2.0  # a start younger than this is not doubted


class ToolRuntime(Protocol):
    """Delivers a call id to a host, at least once.

    Durability: when `dispatch` returns, the delivery survives a crash. Concurrency: safe for
    threads. The sweeper and the caller's next question retry.
    """

    def dispatch(self, call_id: str, host: str, *, fresh: bool = False) -> None:
        """Starts the call unless it is already under way.

        Args:
            call_id: the ledger's key; nothing else travels.
            host: the app that owns the tool.
            fresh: the ledger row was made by this very request, so nobody can have started it.

        Raises:
            RuntimeUnavailable: not started, as far as we know.
        """


class Executor:
    """Starts permitted calls; remembers what it started lately so that a join does not start again."""

    def __init__(self, *, runtime: ToolRuntime) -> None:
        self._runtime = runtime
        self._started: dict[str, float] = {}
        self._lock = threading.Lock()

    def start(self, permit: Permit, *, fresh: bool) -> None:
        """Starts one exact call.

        Raises:
            RuntimeUnavailable: the call stays reserved.
            RuntimeError: not given a Permit.
        """
        if not isinstance(permit, Permit):
            raise RuntimeError("execute takes a Permit")  # noqa: TRY004 - wrong order, not wrong type
        now = time.monotonic()
        with self._lock:
            last = self._started.get(permit.call_id)
            if last is not None and now - last < RESTART_AFTER_SECONDS:
                return
            self._started[permit.call_id] = now
        try:
            self._runtime.dispatch(permit.call_id, permit.host, fresh=fresh)
        except BaseException:
            self.forget(permit.call_id)
            raise

    def forget(self, call_id: str) -> None:
        """A settled call needs no memory."""
        with self._lock:
            self._started.pop(call_id, None)


class Waiters:
    """Callers that wait for a call to settle. At most `limit` wait at once, the rest ask again."""

    def __init__(self, *, limit: int) -> None:
        self._slots = threading.BoundedSemaphore(max(1, limit))
        self._lock = threading.Lock()
        self._events: dict[str, tuple[threading.Event, int]] = {}

    @contextmanager
    def expecting(self, call_id: str) -> Iterator[threading.Event]:
        """An event that is set once the call settles after this point."""
        with self._lock:
            event, count = self._events.get(call_id, (threading.Event(), 0))
            self._events[call_id] = (event, count + 1)
        try:
            yield event
        finally:
            with self._lock:
                event, count = self._events[call_id]
                if count == 1:
                    del self._events[call_id]
                else:
                    self._events[call_id] = (event, count - 1)

    def settled(self, call_id: str) -> None:
        """Wakes whoever waits for this call."""
        with self._lock:
            waiting = self._events.get(call_id)
        if waiting is not None:
            waiting[0].set()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Waits if a slot is free; False when it is not, or time is up."""
        if event.is_set():
            return True
        if not self._slots.acquire(blocking=False):
            return False
        try:
            return event.wait(seconds)
        finally:
            self._slots.release()
