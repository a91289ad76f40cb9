"""The ports' tables over one SQLite connection. No transaction begins or ends here.

SQL is put together from our own field names and states only; values are always bound.
"""
# ruff: noqa: S608

import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import fields

from meshgate_audit.chain import GENESIS, Head, seal

from meshgate_gateway import ledger
from meshgate_gateway.model import AuditRecord, JournalRow, LedgerRow, Run, Sealed, State
from meshgate_gateway.store import CallQuery, PayloadRow, RecordQuery

SCHEMA_VERSION = 4
MAX_ROWS = 10_000  # one answer of Admin
NO_REASONS = "[]"

_CALL = tuple(field.name for field in fields(LedgerRow))
_RUN = tuple(field.name for field in fields(Run))
_RUN_SEALED = ("input", "traceback", "result")
_JOURNAL = tuple(field.name for field in fields(JournalRow))

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (seq INTEGER PRIMARY KEY, hash TEXT NOT NULL, kind TEXT NOT NULL,
  caller TEXT NOT NULL, tool TEXT NOT NULL, call_id TEXT NOT NULL, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS records_call ON records (call_id);
CREATE TABLE IF NOT EXISTS calls ({", ".join(_CALL).replace("call_id", "call_id TEXT PRIMARY KEY", 1)})
  WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS calls_open ON calls (updated_ms) WHERE state IN ('reserved', 'sent');
CREATE INDEX IF NOT EXISTS calls_like ON calls (likeness) WHERE likeness != '';
CREATE INDEX IF NOT EXISTS calls_run ON calls (run_id, created_ms);
CREATE TABLE IF NOT EXISTS runs ({", ".join(_RUN).replace("run_id", "run_id TEXT PRIMARY KEY", 1)})
  WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS runs_cancelling ON runs (heartbeat_ms) WHERE state = 'cancelling';
CREATE INDEX IF NOT EXISTS runs_driven ON runs (updated_ms)
  WHERE driven = 1 AND state IN ('pending', 'running', 'restarting');
CREATE TABLE IF NOT EXISTS journal ({", ".join(_JOURNAL)}, PRIMARY KEY (run_id, step_key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS journal_scope ON journal (run_id, scope, turn);
CREATE TABLE IF NOT EXISTS payloads (id TEXT PRIMARY KEY, codec TEXT NOT NULL, salt BLOB NOT NULL,
  nonce BLOB NOT NULL, data BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS instances (name TEXT PRIMARY KEY, holder TEXT NOT NULL,
  expires_ms INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('schema_version', '{SCHEMA_VERSION}');
"""

_INSERT_CALL = f"INSERT OR IGNORE INTO calls VALUES ({', '.join('?' * len(_CALL))})"
_INSERT_RUN = f"INSERT OR IGNORE INTO runs VALUES ({', '.join('?' * len(_RUN))})"
_INSERT_STEP = f"INSERT OR IGNORE INTO journal VALUES ({', '.join('?' * len(_JOURNAL))})"
_MOVE_CALL = (
    f"UPDATE calls SET {', '.join(f'{name} = ?' for name in _CALL[1:])} "
    "WHERE call_id = ? AND state = ? AND take = ?"
)
_MOVE_RUN = (
    f"UPDATE runs SET {', '.join(f'{name} = ?' for name in _RUN[1:])} "
    "WHERE run_id = ? AND state = ? AND attempt = ?"
)


def _sealed_out(sealed: Sealed | None) -> str | None:
    return None if sealed is None else f"{sealed.payload_id}:{sealed.commitment}:{sealed.size_bytes}"


def _sealed_in(text: str | None) -> Sealed | None:
    if text is None:
        return None
    payload_id, commitment, size = text.split(":")
    return Sealed(payload_id, commitment, int(size))


def _call_out(row: LedgerRow) -> list[object]:
    values = {name: getattr(row, name) for name in _CALL}
    values["state"] = row.state.value
    values["reasons"] = json.dumps(row.reasons) if row.reasons else NO_REASONS
    values["arguments"] = _sealed_out(row.arguments)
    values["result"] = _sealed_out(row.result)
    return list(values.values())


def _call_in(values: Sequence[object]) -> LedgerRow:
    row = dict(zip(_CALL, values, strict=True))
    row["state"] = State(str(row["state"]))
    row["reasons"] = () if row["reasons"] == NO_REASONS else tuple(json.loads(str(row["reasons"])))
    row["idempotent"] = bool(row["idempotent"])
    row["arguments"] = _sealed_in(row["arguments"])  # type: ignore[arg-type]
    row["result"] = _sealed_in(row["result"])  # type: ignore[arg-type]
    return LedgerRow(**row)  # type: ignore[arg-type]


def _step_in(values: Sequence[object]) -> JournalRow:
    row = dict(zip(_JOURNAL, values, strict=True))
    for name in ("request", "reply"):
        row[name] = _sealed_in(row[name])  # type: ignore[arg-type]
    return JournalRow(**row)  # type: ignore[arg-type]


def _run_out(run: Run) -> list[object]:
    return [_sealed_out(getattr(run, name)) if name in _RUN_SEALED else getattr(run, name) for name in _RUN]


def _run_in(values: Sequence[object]) -> Run:
    row = dict(zip(_RUN, values, strict=True))
    for name in _RUN_SEALED:
        row[name] = _sealed_in(row[name])  # type: ignore[arg-type]
    row["driven"] = bool(row["driven"])
    return Run(**row)  # type: ignore[arg-type]


class Records:
    """The chained log; the head is read once per transaction, then carried: one of these for each."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._carried: Head | None = None

    def head(self) -> Head:
        """The newest record."""
        if self._carried is not None:
            return self._carried
        row = self._db.execute("SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1").fetchone()
        return Head(*row) if row else Head(0, GENESIS)

    def append(self, record: AuditRecord) -> Head:
        """Numbers, links, hashes and stores one record."""
        head, body = seal({"kind": record.kind, **record.body}, after=self.head())
        keys = [str(record.body.get(name) or "") for name in ("caller", "tool", "call_id")]
        self._db.execute(
            "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)",
            (head.seq, head.hash, record.kind, *keys, body),
        )
        self._carried = head
        return head

    def query(self, query: RecordQuery) -> list[tuple[int, bytes]]:
        """Sequence numbers and canonical bytes, oldest first."""
        where, values = ["seq > ?"], [query.after_seq]  # type: tuple[list[str], list[object]]
        for name in ("caller", "tool", "call_id", "kind"):
            if wanted := getattr(query, name):
                where.append(f"{name} = ?")
                values.append(wanted)
        values.append(max(1, min(query.limit, MAX_ROWS)))
        sql = f"SELECT seq, body FROM records WHERE {' AND '.join(where)} ORDER BY seq LIMIT ?"
        return self._db.execute(sql, values).fetchall()


class Calls:
    """The ledger."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def insert(self, row: LedgerRow) -> bool:
        """Stores a new call; False when the id is taken."""
        ledger.check_new(row)
        return self._db.execute(_INSERT_CALL, _call_out(row)).rowcount == 1

    def get(self, call_id: str) -> LedgerRow | None:
        """One call."""
        row = self._db.execute("SELECT * FROM calls WHERE call_id = ?", (call_id,)).fetchone()
        return None if row is None else _call_in(row)

    def move(self, before: LedgerRow, after: LedgerRow) -> bool:
        """Compare-and-set on state and take number."""
        if after.state is not before.state:
            ledger.check(before.state, after.state)
        values = [*_call_out(after)[1:], before.call_id, before.state.value, before.take]
        return self._db.execute(_MOVE_CALL, values).rowcount == 1

    def query(self, query: CallQuery) -> list[LedgerRow]:
        """Calls that match, newest first."""
        where, values = ["1"], []  # type: tuple[list[str], list[object]]
        if query.run_id:
            where.append("run_id = ?")
            values.append(query.run_id)
        if query.likeness:
            # Said twice, so that the partial index of calls with a likeness applies.
            where.append("likeness != '' AND likeness = ?")
            values.append(query.likeness)
        if query.states:
            # Written out, not bound: only then does the partial index of open calls apply.
            where.append(f"state IN ({', '.join(repr(state.value) for state in query.states)})")
        if query.updated_before_ms:
            where.append("updated_ms < ?")
            values.append(query.updated_before_ms)
        values.append(max(1, min(query.limit, MAX_ROWS)))
        sql = f"SELECT * FROM calls WHERE {' AND '.join(where)} ORDER BY created_ms DESC LIMIT ?"
        return [_call_in(row) for row in self._db.execute(sql, values)]


class Runs:
    """Runs."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def insert(self, run: Run) -> bool:
        """Stores a new run; False when the id is taken."""
        return self._db.execute(_INSERT_RUN, _run_out(run)).rowcount == 1

    def get(self, run_id: str) -> Run | None:
        """One run."""
        row = self._db.execute("SELECT * FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        return None if row is None else _run_in(row)

    def move(self, before: Run, after: Run) -> bool:
        """Compare-and-set on state and attempt."""
        values = [*_run_out(after)[1:], before.run_id, before.state, before.attempt]
        return self._db.execute(_MOVE_RUN, values).rowcount == 1

    def list(self, limit: int) -> list[Run]:
        """Newest first."""
        rows = self._db.execute(
            "SELECT * FROM runs ORDER BY created_ms DESC LIMIT ?", (max(1, min(limit, MAX_ROWS)),)
        )
        return [_run_in(row) for row in rows]

    def driven(self, limit: int) -> Sequence[Run]:
        """Runs that a worker should be at, those longest without a change first."""
        sql = (
            "SELECT * FROM runs WHERE driven = 1 AND state IN ('pending', 'running', 'restarting') "
            "ORDER BY updated_ms LIMIT ?"
        )
        return [_run_in(row) for row in self._db.execute(sql, (limit,))]

    def cancelling(self, *, silent_since_ms: int) -> Sequence[Run]:
        """Runs to be cancelled whose last heartbeat is older."""
        sql = "SELECT * FROM runs WHERE state = 'cancelling' AND heartbeat_ms < ? LIMIT ?"
        return [_run_in(row) for row in self._db.execute(sql, (silent_since_ms, MAX_ROWS))]


class Journal:
    """Model steps of runs."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def insert(self, row: JournalRow) -> bool:
        """Stores a step; False when the run has one under that key."""
        values = [*(getattr(row, name) for name in _JOURNAL[:-2]), _sealed_out(row.request)]
        return self._db.execute(_INSERT_STEP, [*values, _sealed_out(row.reply)]).rowcount == 1

    def get(self, run_id: str, step_key: str) -> JournalRow | None:
        """One step."""
        found = self._rows("run_id = ? AND step_key = ?", (run_id, step_key))
        return found[0] if found else None

    def of_run(self, run_id: str) -> list[JournalRow]:
        """A run's steps, oldest first."""
        return self._rows("run_id = ? ORDER BY created_ms, turn", (run_id,))

    def beyond(self, *, run_id: str, scope: str, turn: int, attempts: range) -> JournalRow | None:
        """A model step of these attempts at this turn of the scope or at a later one."""
        found = self._rows(
            "run_id = ? AND scope = ? AND turn >= ? AND attempt >= ? AND attempt < ? ORDER BY turn LIMIT 1",
            (run_id, scope, turn, attempts.start, attempts.stop),
        )
        return found[0] if found else None

    def _rows(self, where: str, values: tuple[object, ...]) -> list[JournalRow]:
        rows = self._db.execute(f"SELECT * FROM journal WHERE {where}", values)
        return [_step_in(row) for row in rows]


class Payloads:
    """Clear text, encrypted before it comes here."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def put(self, row: PayloadRow) -> None:
        """Stores one payload."""
        values = (row.id, row.codec, row.salt, row.nonce, row.data)
        self._db.execute("INSERT INTO payloads VALUES (?, ?, ?, ?, ?)", values)

    def get(self, payload_id: str) -> PayloadRow | None:
        """One payload."""
        row = self._db.execute("SELECT * FROM payloads WHERE id = ?", (payload_id,)).fetchone()
        return None if row is None else PayloadRow(*row)


class Instances:
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


class SqliteTables:
    """All tables of one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self.records = Records(connection)
        self.calls = Calls(connection)
        self.runs = Runs(connection)
        self.journal = Journal(connection)
        self.payloads = Payloads(connection)
        self.instances = Instances(connection)

    def counts(self) -> dict[str, int]:
        """Calls by state."""
        return dict(self._db.execute("SELECT state, count(*) FROM calls GROUP BY state").fetchall())
