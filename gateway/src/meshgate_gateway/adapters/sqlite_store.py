"""The store on SQLite: WAL, every commit synced, group commit by leader and follower.

After any fault of the file the connection is dropped and never used again; `probe` opens a new
one and checks the end of the log.
"""

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from meshgate_gateway.adapters.group_commit import GroupCommit, Pending, fail, run_batch, settle
from meshgate_gateway.adapters.sqlite_tables import SCHEMA, sqlite_tables, upgrade
from meshgate_gateway.adapters.tables import PROBE, check_tail
from meshgate_gateway.errors import NotStorable, StoreUnavailable
from meshgate_gateway.store import Tables

T = TypeVar("T")

# What a value does, not the file: a constraint, a text that is too long, a number of more than 64 bits.
_OWN = (sqlite3.DataError, sqlite3.IntegrityError, OverflowError)
BUSY_SECONDS = 2.0  # another process holds the write lock: an operator's backup, not a peer


class SqliteStore:
    """Implements `store.Store`."""

    def __init__(self, *, path: Path, max_pages: int = 0) -> None:
        self._path = path
        self._max_pages = max_pages
        self._connected = threading.Lock()  # who may use the writing connection
        self._works = GroupCommit(commit=self._commit)
        self._local = threading.local()
        self._generation = 0
        self._readers: list[sqlite3.Connection] = []
        self._writer: sqlite3.Connection | None = None
        self._closed = False
        self.probe()

    def write(self, work: Callable[[Tables], T]) -> T:
        """Runs `work` in one transaction and returns once it is durable."""
        return self._works.write(work)

    def _commit(self, batch: list[Pending]) -> None:
        with self._connected:
            writer = self._writer
            if writer is None:
                fail(batch, StoreUnavailable(detail="the store is closed after a fault"))
                return
            try:
                writer.execute("BEGIN IMMEDIATE")
                run_batch(writer, batch, tables=lambda: sqlite_tables(writer), faults=sqlite3.Error, own=_OWN)
                writer.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                self._drop()
                fail(batch, StoreUnavailable(detail=f"not durable: {error}"), error)
            except BaseException as error:
                self._drop()
                fail(batch, StoreUnavailable(detail="interrupted"), error)
                raise
            else:
                settle(batch)

    def read(self, work: Callable[[Tables], T]) -> T:
        """Runs `work` on committed state, on a connection of the thread's own."""
        try:
            connection = self._reader()
            connection.execute("BEGIN")
            try:
                return work(sqlite_tables(connection))
            finally:
                connection.execute("COMMIT")
        except _OWN as error:
            raise NotStorable(error) from error
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
                    check_tail(self._writer)
                self._writer.execute("BEGIN IMMEDIATE")
                self._writer.execute(PROBE, (str(time.time_ns()),))
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
        upgrade(connection)
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
