"""What the programs of one process may hold of its memory and descriptors, all of them together."""

import contextlib
import resource
import threading
import time
from collections.abc import Iterator

from meshgate_agents.launcher.errors import AttemptEnded

PROCESS_BYTES = 268_435_456  # of requests that are under way; eight of the largest
SESSION_BYTES = 134_217_728  # of one run's: the others of a worker have room left
FREE_BYTES = 65_536  # a sign of life never waits; times the conversations of a session it is 8 MiB
WAIT_SECONDS = 30.0
MAX_DESCRIPTORS = 65_536  # of a larger limit we make no use


class Budget:
    """Bytes that are lent. Safe for threads."""

    def __init__(self, limit_bytes: int, *, above: "Budget | None" = None) -> None:
        self._limit, self._above = limit_bytes, above
        self._lent = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def loan(self) -> Iterator["Loan"]:
        """What is lent to one conversation goes back at its end."""
        loan = Loan(self)
        try:
            yield loan
        finally:
            loan.close()

    def take(self, size: int, *, seconds: float) -> None:
        """Waits for room.

        Raises:
            AttemptEnded: there was none in time.
        """
        give_up_at = time.monotonic() + seconds
        with self._changed:
            while self._lent + size > self._limit:
                if not self._changed.wait(max(0.0, give_up_at - time.monotonic())):
                    raise AttemptEnded(
                        f"a request of {size} bytes found no room for {seconds:g} s: {self._lent} bytes of "
                        f"requests are under way, {self._limit} at most"
                    )
            self._lent += size
        if self._above is not None:
            try:
                self._above.take(size, seconds=seconds)
            except AttemptEnded:
                self._give(size)
                raise

    def give(self, size: int) -> None:
        """Gives back what was taken."""
        self._give(size)
        if self._above is not None:
            self._above.give(size)

    def _give(self, size: int) -> None:
        with self._changed:
            self._lent -= size
            self._changed.notify_all()


class Loan:
    """Of one conversation."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self._size = budget, 0

    def take(self, size: int) -> None:
        """Room for a request of that size; small ones need none.

        Raises:
            AttemptEnded: there was none in time.
        """
        if size > FREE_BYTES:
            self._budget.take(size, seconds=WAIT_SECONDS)
            self._size += size

    def close(self) -> None:
        """Gives it back."""
        if self._size:
            self._budget.give(self._size)
        self._size = 0


PROCESS = Budget(PROCESS_BYTES)


def raise_descriptors() -> None:
    """As many descriptors as this process may have: each conversation and each program takes some.

    Programs get back what they would have had, see `adopt`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


SOFT_DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # as this process found it
