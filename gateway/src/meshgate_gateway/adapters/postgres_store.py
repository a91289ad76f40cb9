"""The store on PostgreSQL: several gateways on one database, group commit, one pipeline per commit.

Every write transaction first takes one advisory lock of the database, so works of all gateways run one
after the other and the log has one end. The lock goes when the commit is durable, or with the connection.
After any fault all connections are dropped and never used again; `probe` opens new ones, brings the schema
up to date and checks the end of the log. Every wait is bounded, see `postgres_connection.py`.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, LiteralString, TypeVar

import psycopg
from meshgate_audit.chain import GENESIS, Head
from psycopg import Connection
from psycopg_pool import ConnectionPool

from meshgate_gateway.adapters.group_commit import GroupCommit, Pending, fail, run_batch, settle
from meshgate_gateway.adapters.postgres_connection import PARAMETERS, Bounded
from meshgate_gateway.adapters.postgres_schema import LOG_LOCK, upgrade
from meshgate_gateway.adapters.postgres_tables import Statements, postgres_tables
from meshgate_gateway.adapters.tables import HEAD, PROBE, check_tail
from meshgate_gateway.errors import NotStorable, StoreUnavailable
from meshgate_gateway.store import Tables

T = TypeVar("T")

READERS = 8
READER_WAIT_SECONDS = 2.0
CLOSE_SECONDS = 1.0  # then threads of the pool end by themselves

_OWN = (psycopg.DataError, psycopg.IntegrityError)  # what a value does, not the server
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"  # each statement sees what the last holder committed
_LOCK: LiteralString = "SELECT pg_advisory_xact_lock(%s)"
_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"


class PostgresStore:
    """Implements `store.Store`.

    Attributes of the connection that `url` leaves out come from libpq's variables, PGPASSWORD among them.
    """

    def __init__(self, *, url: str) -> None:
        self._url = url
        self._connected = threading.Lock()  # who may use the writing connection
        self._works = GroupCommit(commit=self._commit)
        self._writer: Bounded | None = None
        self._readers: ConnectionPool[Bounded] | None = None
        self._closed = False
        self.probe()

    def write(self, work: Callable[[Tables], T]) -> T:
        """Runs `work` in one transaction and returns once it is durable."""
        return self._works.write(work)

    def _commit(self, batch: list[Pending]) -> None:
        with self._connected:
            if self._writer is None:
                fail(batch, StoreUnavailable(detail="the store is closed after a fault"))
                return
            try:
                self._run(self._writer, batch)
            except (psycopg.Error, OSError) as error:
                self._drop()
                fail(batch, StoreUnavailable(detail=f"not durable: {_said(error)}"), error)
            except BaseException as error:
                self._drop()
                fail(batch, StoreUnavailable(detail="interrupted"), error)
                raise
            else:
                settle(batch)

    def _run(self, writer: Bounded, batch: list[Pending]) -> None:
        """Commits a batch; a value that the server refuses takes only the work that brought it.

        In a pipeline the server's answer comes later than the statement, perhaps in another work. So the
        works run anew in halves, until the one that is refused is alone: an aborted transaction left nothing
        behind. On a connection of its own, since this one's prepared statements may have been aborted too.
        """
        try:
            _transaction(writer, batch)
        except _OWN as error:
            writer.close()
            self._writer = Bounded.to(self._url, autocommit=True)
            if len(batch) == 1:
                batch[0].error = NotStorable(error)
                return
            middle = len(batch) // 2
            self._run(self._writer, batch[:middle])
            self._run(self._writer, batch[middle:])

    def read(self, work: Callable[[Tables], T]) -> T:
        """Runs `work` on one snapshot of committed state."""
        readers = self._readers
        if readers is None:
            raise StoreUnavailable(detail="the store is closed after a fault")
        try:
            with readers.connection() as connection:
                connection.execute(_READ)
                try:
                    return work(postgres_tables(Statements(connection)))
                finally:
                    if not connection.broken:
                        connection.execute("ROLLBACK")
        except _OWN as error:
            raise NotStorable(error) from error
        except (psycopg.Error, OSError) as error:
            raise StoreUnavailable(detail=f"not readable: {_said(error)}") from error

    def probe(self) -> None:
        """Reopens after a failure, checks the newest records, and writes."""
        with self._connected:
            if self._closed:
                raise StoreUnavailable(detail="closed")
            try:
                if self._writer is None:
                    self._open()
                if self._writer is not None:
                    Statements(self._writer).execute(PROBE, (str(time.time_ns()),))
            except (psycopg.Error, OSError) as error:
                self._drop()
                raise StoreUnavailable(detail=f"the write probe failed: {_said(error)}") from error
            except StoreUnavailable:
                self._drop()
                raise

    def close(self) -> None:
        """Ends the store."""
        with self._connected:
            self._closed = True
            self._drop()

    def _open(self) -> None:
        self._writer = writer = Bounded.to(self._url, autocommit=True)  # transactions in our own words
        _refuse_unsynced(writer)
        upgrade(self._url)
        check_tail(Statements(writer))
        self._readers = ConnectionPool(
            self._url,
            connection_class=Bounded,
            kwargs={**PARAMETERS, "autocommit": True},
            min_size=1,
            max_size=READERS,
            timeout=READER_WAIT_SECONDS,
            name="meshgate-readers",
            open=True,
        )

    def _drop(self) -> None:
        """A connection that failed is never used again: what it committed is not known."""
        writer, self._writer = self._writer, None
        readers, self._readers = self._readers, None
        if writer is not None:
            writer.close()
        if readers is not None:
            readers.close(timeout=CLOSE_SECONDS)


def _transaction(writer: Connection[Any], batch: list[Pending]) -> None:
    """One transaction in one pipeline: only what a work reads waits for the server."""
    statements = Statements(writer)
    with writer.pipeline():
        writer.execute(_BEGIN)
        writer.execute(_LOCK, (LOG_LOCK,))
        row = statements.execute(HEAD).fetchone()
        ends = [Head(*row) if row else Head(0, GENESIS)]  # known to the first; anew after a rollback
        run_batch(
            statements,
            batch,
            tables=lambda: postgres_tables(statements, ends.pop() if ends else None),
            faults=psycopg.Error,
        )
        ended = writer.execute("COMMIT")
    if ended.statusmessage != "COMMIT":  # a transaction that failed answers ROLLBACK, without an error
        raise psycopg.OperationalError(f"the commit ended as {ended.statusmessage}")


def _refuse_unsynced(connection: Connection[Any]) -> None:
    """Durable means on disk; a server told not to sync would acknowledge what a power cut takes back."""
    row = connection.execute("SHOW fsync").fetchone()
    if row is None or row[0] != "on":
        raise StoreUnavailable(detail="the server does not sync (fsync is off)")


def _said(error: Exception) -> str:
    """The first line; the others may quote values."""
    return (str(error).splitlines() or [type(error).__name__])[0]
