"""The host's own ledger: which calls ran here and how they ended, until the gateway has it.

An outcome is written here before FinishCall and sent again after a crash. Clear text is kept
only until the gateway has acknowledged it; the row stays, so that the call never runs again.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from meshgate_toolhost.errors import LedgerUnavailable
from meshgate_toolhost.model import Failure, Finished, Outcome, Result, ResultKind

KEEP_SECONDS = 30 * 86_400  # delivered rows; the gateway refuses a settled call for ever anyway
BUSY_SECONDS = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS finished (
    call_id TEXT PRIMARY KEY,
    take INTEGER NOT NULL,
    instance TEXT NOT NULL,
    class TEXT NOT NULL,          -- text | json | failure; empty once delivered
    data BLOB NOT NULL,           -- result, or the failure's message
    error_class TEXT NOT NULL,
    ambiguous INTEGER NOT NULL,
    delivered INTEGER NOT NULL,
    at INTEGER NOT NULL           -- Unix seconds
) STRICT
"""


class FinishedLedger:
    """SQLite behind one lock; safe for threads. `record` is on disk when it returns."""

    def __init__(self, *, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        with _mapped():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite's own files take its mode
            self._durable = _open(path, "FULL")
            self._durable.execute(_SCHEMA)
            # Losing a "delivered" mark costs one repeated FinishCall, not worth a disk flush.
            self._marks = _open(path, "NORMAL")
            oldest = int(clock()) - KEEP_SECONDS
            self._marks.execute("DELETE FROM finished WHERE delivered = 1 AND at < ?", (oldest,))

    def check(self) -> None:
        """Makes sure that an outcome could be written. Called before anything runs.

        Raises:
            LedgerUnavailable: it could not.
        """
        with _mapped(), self._lock:
            self._durable.execute("BEGIN IMMEDIATE")
            self._durable.execute("ROLLBACK")

    def record(self, finished: Finished) -> None:
        """Writes an outcome durably, over an earlier one of the same call.

        Raises:
            LedgerUnavailable: not written.
        """
        values = _values(finished.outcome)
        row = (finished.call_id, finished.take, finished.instance, *values, int(self._clock()))
        with _mapped(), self._lock:
            self._durable.execute("INSERT OR REPLACE INTO finished VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?)", row)

    def delivered(self, finished: Finished) -> None:
        """Notes that the gateway has it, unless a later outcome was recorded meanwhile.

        Raises:
            LedgerUnavailable: not noted; the outcome will be sent once more.
        """
        with _mapped(), self._lock:
            self._marks.execute(
                "UPDATE finished SET delivered = 1, class = '', data = x'' "
                "WHERE call_id = ? AND take = ? AND class = ? AND data = ? AND error_class = ?",
                (finished.call_id, finished.take, *_values(finished.outcome)[:3]),
            )

    def get(self, call_id: str) -> Finished | None:
        """The outcome of a call that ran here; its `outcome` is None once it was delivered.

        Raises:
            LedgerUnavailable: cannot be read.
        """
        with _mapped(), self._lock:
            rows = self._durable.execute("SELECT * FROM finished WHERE call_id = ?", (call_id,)).fetchall()
        return _finished(rows[0]) if rows else None

    def undelivered(self) -> list[Finished]:
        """Outcomes the gateway has not acknowledged, oldest first.

        Raises:
            LedgerUnavailable: cannot be read.
        """
        with _mapped(), self._lock:
            rows = self._durable.execute("SELECT * FROM finished WHERE delivered = 0 ORDER BY at").fetchall()
        return [_finished(row) for row in rows]

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._durable.close()
            self._marks.close()


def _open(path: Path, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.row_factory = sqlite3.Row
    return connection


@contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise LedgerUnavailable(f"the ledger of finished calls: {error}") from error


def _values(outcome: Outcome | None) -> tuple[str, bytes, str, int]:
    """Columns class, data, error_class, ambiguous."""
    if outcome is None:
        raise RuntimeError("no outcome to write")
    if isinstance(outcome, Result):
        return outcome.kind.value, outcome.data, "", 0
    return "failure", outcome.message.encode(), outcome.error_class, int(outcome.ambiguous)


def _finished(row: sqlite3.Row) -> Finished:
    outcome: Outcome | None
    if row["delivered"]:
        outcome = None
    elif row["class"] == "failure":
        outcome = Failure(row["error_class"], row["data"].decode(), bool(row["ambiguous"]))
    else:
        outcome = Result(ResultKind(row["class"]), row["data"])
    return Finished(row["call_id"], row["take"], row["instance"], outcome)
