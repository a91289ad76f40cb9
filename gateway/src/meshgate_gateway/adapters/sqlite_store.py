"""The store on SQLite: WAL, every commit synced, group commit by leader and follower.

A writer that finds nobody at work leads: it runs all that is queued in one transaction, each
work in a savepoint of its own, commits once, and hands the lead to the first that came meanwhile.
Alone there is no thread hop, in a crowd one sync serves all, and each follower is woken once.
After any fault of the file the connection is dropped and never used again; `probe` opens a new
one and checks the end of the log.
"""

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from meshgate_audit.chain import GENESIS, Head, verify

from meshgate_gateway.adapters.sqlite_tables import SCHEMA, SqliteTables
from meshgate_gateway.errors import StoreUnavailable
from meshgate_gateway.store import RecordQuery, Tables

T = TypeVar("T")

BUSY_SECONDS = 2.0  # another process holds the write lock: an operator's backup, not a peer
CHECKED_TAIL = 256  # records whose links are checked when the file is opened again
MAX_BATCH = 256  # works per commit; bounds how long the first waits for the last
MAX_WAITING = 4096  # works in the queue; more is refused, never dropped


class _Pending:
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


class SqliteStore:
    """Implements `store.Store`."""

    def __init__(self, *, path: Path, max_pages: int = 0) -> None:
        self._path = path
        self._max_pages = max_pages
        self._connected = threading.Lock()  # who may use the writing connection
        self._queue = threading.Lock()
        self._waiting: deque[_Pending] = deque()
        self._led = False
        self._local = threading.local()
        self._generation = 0
        self._readers: list[sqlite3.Connection] = []
        self._writer: sqlite3.Connection | None = None
        self._closed = False
        self.probe()

    def write(self, work: Callable[[Tables], T]) -> T:
        """Runs `work` in one transaction and returns once it is durable."""
        pending = _Pending(work)
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
            with self._connected:
                self._commit(batch)
        finally:
            with self._queue:
                self._led = bool(self._waiting)
                if self._led:
                    self._waiting[0].wake.release()
            for follower in batch[1:]:
                follower.wake.release()

    def _commit(self, batch: list[_Pending]) -> None:
        if self._writer is None:
            _fail(batch, StoreUnavailable(detail="the store is closed after a fault"))
            return
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            self._run(self._writer, batch)
            self._writer.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            self._drop()
            _fail(batch, StoreUnavailable(detail=f"not durable: {error}"), error)
        except BaseException as error:
            self._drop()
            _fail(batch, StoreUnavailable(detail="interrupted"), error)
            raise
        else:
            for pending in batch:
                pending.done = True

    @staticmethod
    def _run(connection: sqlite3.Connection, batch: list[_Pending]) -> None:
        tables = SqliteTables(connection)
        for pending in batch:
            connection.execute("SAVEPOINT work")
            try:
                pending.value = _attempt(pending.work, tables)
            except _WorkFailed as failed:
                connection.execute("ROLLBACK TO work")
                tables = SqliteTables(connection)  # what it knew of the log's end is gone too
                pending.error = failed.cause
            connection.execute("RELEASE work")

    def read(self, work: Callable[[Tables], T]) -> T:
        """Runs `work` on committed state, on a connection of the thread's own."""
        try:
            connection = self._reader()
            connection.execute("BEGIN")
            try:
                return work(SqliteTables(connection))
            finally:
                connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(detail=f"not readable: {error}") from error

    def probe(self) -> None:
        """Reopens after a failure, checks the newest records, and writes."""
        with self._connected:
            if self._closed:
                raise StoreUnavailable(detail="closed")
            try:
                if self._writer is None:
                    self._writer = self._open()
                    _check_tail(self._writer)
                self._writer.execute("BEGIN IMMEDIATE")
                self._writer.execute("INSERT OR REPLACE INTO meta VALUES ('probe', datetime('now'))")
                self._writer.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                self._drop()
                raise StoreUnavailable(detail=f"the write probe failed: {error}") from error
            except StoreUnavailable:
                self._drop()
                raise

    def close(self) -> None:
        """Ends the store."""
        with self._connected:
            self._closed = True
            self._drop()
            for reader in self._readers:
                reader.close()
            self._readers.clear()

    def _open(self) -> sqlite3.Connection:
        connection = self._connect()
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.executescript(SCHEMA)
        if self._max_pages:
            connection.execute(f"PRAGMA max_page_count = {int(self._max_pages)}")
        self._path.chmod(0o600)
        return connection

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )

    def _reader(self) -> sqlite3.Connection:
        if self._writer is None:
            raise StoreUnavailable(detail="the store is closed after a fault")
        mine: tuple[int, sqlite3.Connection] | None = getattr(self._local, "reader", None)
        if mine is None or mine[0] != self._generation:
            if mine is not None:
                mine[1].close()
            mine = (self._generation, self._connect())
            mine[1].execute("PRAGMA query_only = ON")
            self._local.reader = mine
            self._readers.append(mine[1])
        return mine[1]

    def _drop(self) -> None:
        """Never retries on a descriptor that failed: the kernel may have dropped its pages."""
        self._generation += 1
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


class _WorkFailed(Exception):
    def __init__(self, cause: Exception) -> None:
        super().__init__(cause)
        self.cause = cause


def _attempt(work: Callable[[Tables], T], tables: Tables) -> T:
    """A work that fails takes only its own savepoint with it; a fault of the file takes all."""
    try:
        return work(tables)
    except sqlite3.Error:
        raise
    except Exception as error:
        raise _WorkFailed(error) from error


def _fail(batch: list[_Pending], error: StoreUnavailable, cause: BaseException | None = None) -> None:
    for pending in batch:
        pending.error = StoreUnavailable(detail=error.detail)
        pending.error.__cause__ = cause
        pending.done = True


def _check_tail(connection: sqlite3.Connection) -> None:
    """The newest records must still be linked; a hole here means the file was changed."""
    records = SqliteTables(connection).records
    head = records.head()
    first = max(0, head.seq - CHECKED_TAIL)
    before = connection.execute("SELECT seq, hash FROM records WHERE seq = ?", (first,)).fetchone()
    tail = records.query(RecordQuery(after_seq=first, limit=CHECKED_TAIL))
    found = verify((body for _, body in tail), after=Head(*before) if before else Head(0, GENESIS), head=head)
    if not found.verified:
        raise StoreUnavailable(detail=f"the log does not verify: {found.problem}")
