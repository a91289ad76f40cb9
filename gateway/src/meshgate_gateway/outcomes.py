"""Wakes those who wait for a call. The store is the truth; this only saves polling."""

import threading

POLL_SECONDS = 0.25  # another gateway may settle the call


class Outcomes:
    """One condition for all calls: waking everybody is cheaper than a lock per call."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._version = 0

    def announce(self) -> None:
        """Some call was settled."""
        with self._condition:
            self._version += 1
            self._condition.notify_all()

    def version(self) -> int:
        """Grows with each announcement; read it before looking at the store."""
        return self._version

    def wait(self, seen: int, timeout_seconds: float) -> None:
        """Returns at the next announcement after `seen`, or after the timeout or one poll."""
        with self._condition:
            self._condition.wait_for(lambda: self._version != seen, min(timeout_seconds, POLL_SECONDS))
