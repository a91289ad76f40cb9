"""Group commit by leader and follower, whatever the database.

A writer that finds nobody at work leads: it commits all that is queued, each work in a savepoint of
its own, and hands the lead to the first that came meanwhile. Alone there is no thread hop, in a crowd
one sync serves all, and each follower is woken once.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from meshgate_gateway.adapters.tables import Connection
from meshgate_gateway.errors import NotStorable, StoreUnavailable
from meshgate_gateway.store import Tables

T = TypeVar("T")

MAX_BATCH = 256  # works per commit; bounds how long the first waits for the last
MAX_WAITING = 4096  # works in the queue; more is refused, never dropped


class Pending:
    """One queued work and what came of it.

    Attributes:
        wake: held until the work is done, or until its writer is to lead.
    """

    __slots__ = ("done", "error", "value", "wake", "work")

    def __init__(self, work: Callable[[Tables], Any]) -> None:
        self.work = work
        self.done = False
        self.wake = threading.Lock()
        self.wake.acquire()
        self.value: Any = None
        self.error: Exception | None = None


class GroupCommit:
    """The queue of works and who leads. Safe for threads."""

    def __init__(self, *, commit: Callable[[list[Pending]], None]) -> None:
        self._commit = commit
        self._queue = threading.Lock()
        self._waiting: deque[Pending] = deque()
        self._led = False

    @property
    def waiting(self) -> int:
        """Works that no leader has taken yet."""
        return len(self._waiting)

    def write(self, work: Callable[[Tables], T]) -> T:
        """Runs `work` in one transaction and returns once it is durable."""
        pending = Pending(work)
        with self._queue:
            if len(self._waiting) >= MAX_WAITING:
                raise StoreUnavailable(detail="too many writes are waiting")
            self._waiting.append(pending)
            leads, self._led = not self._led, True
        if not leads:
            pending.wake.acquire()
        if not pending.done:
            self._lead()
        if pending.error is not None:
            raise pending.error
        return pending.value  # type: ignore[no-any-return]

    def _lead(self) -> None:
        """Settles all that waits, the leader's own work at its head; then another leads, or nobody."""
        with self._queue:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
        try:
            self._commit(batch)
        finally:
            with self._queue:
                self._led = bool(self._waiting)
                if self._led:
                    self._waiting[0].wake.release()
            for follower in batch[1:]:
                follower.wake.release()


def run_batch(
    connection: Connection,
    batch: Sequence[Pending],
    *,
    tables: Callable[[], Tables],
    faults: type[Exception],
    own: tuple[type[Exception], ...] = (),
) -> None:
    """Runs works one after the other, each in a savepoint; whoever calls commits, then sets them done.

    Args:
        connection: in a transaction that was just begun.
        batch: what to run.
        tables: makes the tables anew; what the old ones carried is gone after a rollback.
        faults: what takes the whole transaction. Anything else that a work raises takes only its own.
        own: those of them that are a work's own all the same: the database takes no such value.
    """
    mine = tables()
    for pending in batch:
        pending.value, pending.error = None, None
        connection.execute("SAVEPOINT work")
        try:
            pending.value = _attempt(pending.work, mine, faults, own)
        except _WorkFailed as failed:
            connection.execute("ROLLBACK TO work")
            mine = tables()  # what it knew of the log's end is gone too
            pending.error = failed.cause
        connection.execute("RELEASE work")


def settle(batch: Sequence[Pending]) -> None:
    """Their commit is durable."""
    for pending in batch:
        pending.done = True


def fail(batch: Sequence[Pending], error: StoreUnavailable, cause: BaseException | None = None) -> None:
    """Their commit failed, and every one of them is told."""
    for pending in batch:
        pending.error = StoreUnavailable(detail=error.detail)
        pending.error.__cause__ = cause
        pending.done = True


class _WorkFailed(Exception):
    def __init__(self, cause: Exception) -> None:
        super().__init__(cause)
        self.cause = cause


def _attempt(
    work: Callable[[Tables], T], tables: Tables, faults: type[Exception], own: tuple[type[Exception], ...]
) -> T:
    """A work that fails takes only its own savepoint with it; a fault of the database takes all."""
    try:
        return work(tables)
    except own as error:
        raise _WorkFailed(NotStorable(error)) from error
    except faults:
        raise
    except Exception as error:
        raise _WorkFailed(error) from error
