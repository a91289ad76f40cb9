"""The host's own memory of outcomes: written before FinishCall, dropped after it was heard."""

import sqlite3
import threading
from pathlib import Path


class Finished:
    """A small SQLite table, synced at each write. Holds serialized FinishCall messages."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS finished (call_id TEXT PRIMARY KEY, message BLOB NOT NULL)"
        )
        path.chmod(0o600)

    def write(self, call_id: str, message: bytes) -> None:
        """Keeps an outcome until `drop`."""
        with self._lock:
            self._connection.execute("INSERT OR REPLACE INTO finished VALUES (?, ?)", (call_id, message))

    def drop(self, call_id: str) -> None:
        """Forgets an outcome that the gateway has."""
        with self._lock:
            self._connection.execute("DELETE FROM finished WHERE call_id = ?", (call_id,))

    def find(self, call_id: str) -> bytes | None:
        """The outcome of one call, if it was not heard yet."""
        with self._lock:
            row = self._connection.execute(
                "SELECT message FROM finished WHERE call_id = ?", (call_id,)
            ).fetchone()
        return row[0] if row else None

    def all(self) -> list[tuple[str, bytes]]:
        """Everything that was not heard yet."""
        with self._lock:
            return self._connection.execute("SELECT call_id, message FROM finished").fetchall()

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()
