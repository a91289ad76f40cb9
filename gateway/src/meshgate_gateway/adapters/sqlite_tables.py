"""What the tables are on SQLite alone: the schema, and leases. The rest is in `tables.py`."""
# ruff: noqa: S608 - put together from our own field names

import sqlite3
import time

from meshgate_gateway.adapters.tables import CALL, ENDED, JOURNAL, RUN, SharedTables

SCHEMA_VERSION = 9

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (seq INTEGER PRIMARY KEY, hash TEXT NOT NULL, kind TEXT NOT NULL,
  caller TEXT NOT NULL, tool TEXT NOT NULL, call_id TEXT NOT NULL, run_id TEXT NOT NULL,
  body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS records_call ON records (call_id) WHERE call_id != '';
CREATE INDEX IF NOT EXISTS records_run ON records (run_id) WHERE run_id != '';
CREATE TABLE IF NOT EXISTS calls ({", ".join(CALL).replace("call_id", "call_id TEXT PRIMARY KEY", 1)})
  WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS calls_open ON calls (updated_ms) WHERE state IN ('reserved', 'sent');
CREATE INDEX IF NOT EXISTS calls_asked ON calls (next_ask_ms) WHERE next_ask_ms > 0;
CREATE INDEX IF NOT EXISTS calls_like ON calls (likeness) WHERE likeness != '';
CREATE INDEX IF NOT EXISTS calls_run ON calls (run_id, place);
CREATE TABLE IF NOT EXISTS runs ({", ".join(RUN).replace("run_id", "run_id TEXT PRIMARY KEY", 1)})
  WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS runs_created ON runs (created_ms);
CREATE INDEX IF NOT EXISTS runs_origin ON runs (origin_run) WHERE origin_run != '';
CREATE INDEX IF NOT EXISTS runs_leaving ON runs (heartbeat_ms) WHERE state IN ('cancelling', 'pausing');
CREATE INDEX IF NOT EXISTS runs_unfinished ON runs (updated_ms) WHERE purging OR state = 'copying';
CREATE INDEX IF NOT EXISTS runs_asked ON runs (app, caller) WHERE state NOT IN ({ENDED});
CREATE INDEX IF NOT EXISTS runs_recalling ON runs (updated_ms) WHERE recalling;
CREATE INDEX IF NOT EXISTS runs_driven ON runs (updated_ms)
  WHERE driven AND state IN ('pending', 'running', 'restarting');
CREATE TABLE IF NOT EXISTS journal ({", ".join(JOURNAL)}, PRIMARY KEY (run_id, step_key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS journal_scope ON journal (run_id, scope, turn);
CREATE TABLE IF NOT EXISTS payloads (id TEXT PRIMARY KEY, codec TEXT NOT NULL, salt BLOB NOT NULL,
  nonce BLOB NOT NULL, data BLOB);
CREATE TABLE IF NOT EXISTS instances (name TEXT PRIMARY KEY, holder TEXT NOT NULL,
  expires_ms INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('schema_version', '{SCHEMA_VERSION}');
"""


# What a table got after a store of an earlier schema may have been made, with what stands there.
_ADDED = {
    "runs": {
        "parent_call": "''",
        "chain": "''",
        "narrow": "''",
        "caller": "''",
        "delegated": "0",
        "recalling": "0",
    },
}
# What the new columns hold of runs that are older, and what took another's place.
_FILLED = (
    "DROP INDEX IF EXISTS runs_open",
    "UPDATE runs SET caller = json_extract(chain, '$[#-1].spiffe_id') WHERE chain != ''",
    """UPDATE runs SET delegated = made.number FROM (SELECT json_extract(chain, '$[0].run_id') AS root,
        count(*) AS number FROM runs WHERE chain != '' GROUP BY 1) AS made WHERE run_id = made.root""",
)


def upgrade(connection: sqlite3.Connection) -> None:
    """Gives the tables of an older file the columns that they lack; a new file is left to `SCHEMA`."""
    connection.execute("BEGIN IMMEDIATE")
    lacking = [
        (table, column, empty)
        for table, added in _ADDED.items()
        if (has := {row[1] for row in connection.execute(f"PRAGMA table_info({table})")})
        for column, empty in added.items()
        if column not in has
    ]
    for table, column, empty in lacking:
        connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} NOT NULL DEFAULT {empty}")
    if lacking:
        for statement in _FILLED:
            connection.execute(statement)
        connection.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (SCHEMA_VERSION,))
    connection.execute("COMMIT")


class SqliteInstances:
    """Leases; SQLite has no clock of its own, so it is the host's."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def claim(self, *, name: str, holder: str, lease_ms: int) -> bool:
        """Takes or renews a name."""
        now_ms = time.time_ns() // 1_000_000
        sql = (
            "INSERT INTO instances VALUES (?1, ?2, ?3) ON CONFLICT (name) DO UPDATE SET "
            "holder = ?2, expires_ms = ?3 WHERE holder = ?2 OR expires_ms < ?4"
        )
        return self._db.execute(sql, (name, holder, now_ms + lease_ms, now_ms)).rowcount == 1

    def release(self, *, name: str, holder: str) -> None:
        """Gives a name back at once."""
        self._db.execute("DELETE FROM instances WHERE name = ? AND holder = ?", (name, holder))


def sqlite_tables(connection: sqlite3.Connection) -> SharedTables:
    """All tables of one connection."""
    return SharedTables(connection, SqliteInstances(connection))
