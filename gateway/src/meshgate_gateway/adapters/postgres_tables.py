"""What the tables are on PostgreSQL alone: how statements reach it, and leases. See `tables.py`."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from meshgate_audit.chain import Head
from psycopg import Connection, Cursor

from meshgate_gateway.adapters.tables import SharedTables

_NUL, _SHOWN_NUL = "\0", "\u2400"  # text columns cannot hold the one; people read the other as it


class Statements:
    """Implements `tables.Connection`: our SQL, as psycopg wants it."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._db = connection

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Cursor[Any]:
        """Runs one statement."""
        if not values:
            return self._db.execute(_translated(sql))
        return self._db.execute(_translated(sql), [_bound(value) for value in values])


@lru_cache(maxsize=256)
def _translated(sql: str) -> bytes:
    return sql.replace("?", "%s").encode()


def _bound(value: Any) -> Any:
    return value.replace(_NUL, _SHOWN_NUL) if isinstance(value, str) and _NUL in value else value


class PostgresInstances:
    """Leases by the server's clock; not the transaction's, which stands still while a lock is awaited."""

    def __init__(self, statements: Statements) -> None:
        self._db = statements

    def claim(self, *, name: str, holder: str, lease_ms: int) -> bool:
        """Takes or renews a name."""
        sql = (
            "WITH clock AS (SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms) "
            "INSERT INTO instances AS had (name, holder, expires_ms) SELECT ?, ?, now_ms + ? FROM clock "
            "ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_ms = excluded.expires_ms "
            "WHERE had.holder = excluded.holder OR had.expires_ms < (SELECT now_ms FROM clock) RETURNING 1"
        )
        return bool(self._db.execute(sql, (name, holder, lease_ms)).fetchall())

    def release(self, *, name: str, holder: str) -> None:
        """Gives a name back at once."""
        self._db.execute("DELETE FROM instances WHERE name = ? AND holder = ?", (name, holder))


def postgres_tables(statements: Statements, head: Head | None = None) -> SharedTables:
    """All tables of one transaction; `head` is the log's end where it is known already."""
    return SharedTables(statements, PostgresInstances(statements), head)
