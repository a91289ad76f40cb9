"""The store on SQLite: WAL, synchronous=FULL, and group commit.

Group commit: callers queue their work and then race for the writer's lock; who gets it commits
all that is queued with one sync, and the others find theirs done. Alone, a caller pays no hop.
"""

import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from meshgate_gateway.errors import Unavailable
from meshgate_gateway.schema import STATEMENTS

T = TypeVar("T")
BUSY_MS = 2_000
MAX_GROUP = 256


class _Transaction:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Sequence[Any]]:
        return self._connection.execute(sql, parameters).fetchall()

    def changed(self, sql: str, parameters: Sequence[object] = ()) -> int:
        return self._connection.execute(sql, parameters).rowcount


class SqliteStore:
    """One database file. Safe for threads; one writer at a time, readers beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: list[tuple[Callable[[Any], Any], Future[Any]]] = []
        self._queue_lock = threading.Lock()
        self._writer_lock = threading.Lock()
        self._readers = threading.local()
        self._writer: sqlite3.Connection | None = None
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._writer_lock:
            connection = self._open_writer()
            for statement in STATEMENTS:
                connection.execute(statement)
        path.chmod(0o600)

    def transact(self, work: Callable[[_Transaction], T]) -> T:
        """See `Store.transact`."""
        future: Future[T] = Future()
        with self._queue_lock:
            self._queue.append((work, future))
        with self._writer_lock:
            if not future.done():
                self._commit_group()
        return future.result()

    def read(self, work: Callable[[_Transaction], T]) -> T:
        """See `Store.read`."""
        try:
            connection: sqlite3.Connection | None = getattr(self._readers, "connection", None)
            if connection is None:
                connection = self._connect()
                connection.execute("PRAGMA query_only=ON")
                self._readers.connection = connection
            return work(_Transaction(connection))
        except sqlite3.Error as error:
            raise Unavailable("store_unavailable", f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """See `Store.close`. Readers of other threads close with them."""
        with self._writer_lock:
            self._drop_writer()

    def _commit_group(self) -> None:
        with self._queue_lock:
            group, self._queue = self._queue[:MAX_GROUP], self._queue[MAX_GROUP:]
        done: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            connection = self._writer or self._open_writer()
            connection.execute("BEGIN IMMEDIATE")
            for work, future in group:
                done.append((future, *self._run(connection, work)))
            connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            # After a failed sync the descriptor is not trusted again: open a new one next time.
            self._drop_writer()
            failure = Unavailable("store_unavailable", f"{type(error).__name__}: {error}")
            failure.__cause__ = error
            for _, future in group:
                future.set_exception(failure)
            return
        for future, value, problem in done:
            if problem is None:
                future.set_result(value)
            else:
                future.set_exception(problem)

    @staticmethod
    def _run(connection: sqlite3.Connection, work: Callable[[Any], Any]) -> tuple[Any, BaseException | None]:
        """One caller's share of the group: its failure undoes its own statements only."""
        connection.execute("SAVEPOINT work")
        try:
            value = work(_Transaction(connection))
        except BaseException as problem:
            if isinstance(problem, sqlite3.Error) and not isinstance(problem, sqlite3.IntegrityError):
                raise
            connection.execute("ROLLBACK TO work")
            connection.execute("RELEASE work")
            return None, problem
        connection.execute("RELEASE work")
        return value, None

    def _open_writer(self) -> sqlite3.Connection:
        connection = self._connect()
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        self._writer = connection
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        return connection

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
