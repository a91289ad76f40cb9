"""The ports' tables over one connection, in SQL that every database of ours understands.

No transaction begins or ends here. SQL is put together from our own field names and states only;
values are always bound, and a value's place is written `?`.
"""
# ruff: noqa: S608

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol

from meshgate_audit.chain import GENESIS, Head, seal, verify

from meshgate_gateway import ledger
from meshgate_gateway.calls import delegated_run
from meshgate_gateway.errors import StoreUnavailable
from meshgate_gateway.model import AuditRecord, JournalRow, LedgerRow, Run, Sealed, State
from meshgate_gateway.store import CallQuery, InstanceTable, PayloadRow, RecordQuery

MAX_ROWS = 10_000  # one answer of Admin
CHECKED_TAIL = 256  # records whose links are checked when the store is opened again
_NO_REASONS = "[]"
ENDED = "'completed', 'failed', 'cancelled'"

CALL = tuple(field.name for field in fields(LedgerRow))
RUN = tuple(field.name for field in fields(Run))
_RUN_SEALED = ("input", "traceback", "result")
_RUN_BOOLS = ("driven", "purging", "recalling")
JOURNAL = tuple(field.name for field in fields(JournalRow))

HEAD = "SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1"
PROBE = "INSERT INTO meta VALUES ('probe', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


class Rows(Protocol):
    """What a statement gave."""

    def fetchone(self) -> Any:
        """The next row, or None."""

    def fetchall(self) -> list[Any]:
        """The rows that are left."""


class Connection(Protocol):
    """An open transaction of one database."""

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Rows:
        """Runs one statement."""


def _insert(table: str, columns: Sequence[str]) -> str:
    """Gives a row only if the key was free."""
    places = ", ".join("?" * len(columns))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places}) ON CONFLICT DO NOTHING RETURNING 1"


def _update(table: str, columns: Sequence[str], guard: str) -> str:
    """Gives a row only if the guard held; the first column is the key."""
    changes = ", ".join(f"{name} = ?" for name in columns[1:])
    return f"UPDATE {table} SET {changes} WHERE {columns[0]} = ? AND {guard} RETURNING 1"


_INSERT_RECORD = (
    "INSERT INTO records (seq, hash, kind, caller, tool, call_id, run_id, body) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_CALL = _insert("calls", CALL)
_INSERT_RUN = _insert("runs", RUN)
_INSERT_STEP = _insert("journal", JOURNAL)
_MOVE_CALL = _update("calls", CALL, "state = ? AND take = ?")
_MOVE_RUN = _update("runs", RUN, "state = ? AND attempt = ?")
_GROW_RUN = (
    "UPDATE runs SET recorded_steps = recorded_steps + ?, recorded_bytes = recorded_bytes + ?, "
    "delegated = delegated + ? WHERE run_id = ?"
)
_SELECT_CALL = f"SELECT {', '.join(CALL)} FROM calls"
_SELECT_RUN = f"SELECT {', '.join(RUN)} FROM runs"
_SELECT_STEP = f"SELECT {', '.join(JOURNAL)} FROM journal"


def _happened(rows: Rows) -> bool:
    """True when the statement touched a row; read to the end, so that nothing of it stays open."""
    return bool(rows.fetchall())


def _sealed_out(sealed: Sealed | None) -> str | None:
    return None if sealed is None else f"{sealed.payload_id}:{sealed.commitment}:{sealed.size_bytes}"


def _sealed_in(text: str | None) -> Sealed | None:
    if text is None:
        return None
    payload_id, commitment, size = text.split(":")
    return Sealed(payload_id, commitment, int(size))


def _call_out(row: LedgerRow) -> list[object]:
    values = {name: getattr(row, name) for name in CALL}
    values["state"] = row.state.value
    values["reasons"] = json.dumps(row.reasons) if row.reasons else _NO_REASONS
    values["arguments"] = _sealed_out(row.arguments)
    values["result"] = _sealed_out(row.result)
    return list(values.values())


def _call_in(values: Sequence[object]) -> LedgerRow:
    row = dict(zip(CALL, values, strict=True))
    row["state"] = State(str(row["state"]))
    row["reasons"] = () if row["reasons"] == _NO_REASONS else tuple(json.loads(str(row["reasons"])))
    row["idempotent"] = bool(row["idempotent"])
    row["arguments"] = _sealed_in(row["arguments"])  # type: ignore[arg-type]
    row["result"] = _sealed_in(row["result"])  # type: ignore[arg-type]
    return LedgerRow(**row)  # type: ignore[arg-type]


def _step_in(values: Sequence[object]) -> JournalRow:
    row = dict(zip(JOURNAL, values, strict=True))
    for name in ("request", "reply"):
        row[name] = _sealed_in(row[name])  # type: ignore[arg-type]
    return JournalRow(**row)  # type: ignore[arg-type]


def _run_out(run: Run) -> list[object]:
    return [_sealed_out(getattr(run, name)) if name in _RUN_SEALED else getattr(run, name) for name in RUN]


def _run_in(values: Sequence[object]) -> Run:
    row = dict(zip(RUN, values, strict=True))
    for name in _RUN_SEALED:
        row[name] = _sealed_in(row[name])  # type: ignore[arg-type]
    for name in _RUN_BOOLS:
        row[name] = bool(row[name])
    return Run(**row)  # type: ignore[arg-type]


class Records:
    """The chained log; the head is read once per transaction, then carried: one of these for each."""

    def __init__(self, connection: Connection, head: Head | None = None) -> None:
        self._db = connection
        self._carried = head

    def head(self) -> Head:
        """The newest record."""
        if self._carried is not None:
            return self._carried
        row = self._db.execute(HEAD).fetchone()
        return Head(*row) if row else Head(0, GENESIS)

    def append(self, record: AuditRecord) -> Head:
        """Numbers, links, hashes and stores one record."""
        head, body = seal({"kind": record.kind, **record.body}, after=self.head())
        keys = [str(record.body.get(name) or "") for name in ("caller", "tool", "call_id", "run_id")]
        self._db.execute(_INSERT_RECORD, (head.seq, head.hash, record.kind, *keys, body))
        self._carried = head
        return head

    def query(self, query: RecordQuery) -> list[tuple[int, bytes]]:
        """Sequence numbers and canonical bytes, oldest first."""
        where, values = ["seq > ?"], [query.after_seq]  # type: tuple[list[str], list[object]]
        for name in ("caller", "tool", "kind"):
            if wanted := getattr(query, name):
                where.append(f"{name} = ?")
                values.append(wanted)
        for name in ("call_id", "run_id"):
            if wanted := getattr(query, name):
                # Said twice, so that the partial index applies.
                where.append(f"{name} != '' AND {name} = ?")
                values.append(wanted)
        values.append(max(1, min(query.limit, MAX_ROWS)))
        sql = f"SELECT seq, body FROM records WHERE {' AND '.join(where)} ORDER BY seq LIMIT ?"
        return self._db.execute(sql, values).fetchall()


class Calls:
    """The ledger."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    def of_run(self, run_id: str) -> list[LedgerRow]:
        """All calls of a run, in their order."""
        rows = self._db.execute(f"{_SELECT_CALL} WHERE run_id = ? ORDER BY place", (run_id,))
        return [_call_in(row) for row in rows.fetchall()]

    def insert(self, row: LedgerRow) -> bool:
        """Stores a new call; False when the id is taken."""
        ledger.check_new(row)
        return _happened(self._db.execute(_INSERT_CALL, _call_out(row)))

    def get(self, call_id: str) -> LedgerRow | None:
        """One call."""
        row = self._db.execute(f"{_SELECT_CALL} WHERE call_id = ?", (call_id,)).fetchone()
        return None if row is None else _call_in(row)

    def move(self, before: LedgerRow, after: LedgerRow) -> bool:
        """Compare-and-set on state and take number."""
        ledger.check_move(before, after)
        values = [*_call_out(after)[1:], before.call_id, before.state.value, before.take]
        return _happened(self._db.execute(_MOVE_CALL, values))

    def query(self, query: CallQuery) -> list[LedgerRow]:
        """Calls that match, newest first."""
        where, values = ["1 = 1"], []  # type: tuple[list[str], list[object]]
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
        if query.tools:
            where.append(f"tool IN ({', '.join('?' * len(query.tools))})")
            values += query.tools
        if query.hosts:
            where.append(f"host IN ({', '.join('?' * len(query.hosts))})")
            values += query.hosts
        if query.other_hosts:
            where.append(f"host NOT IN ({', '.join('?' * len(query.other_hosts))})")
            values += query.other_hosts
        if query.delegated is not None:
            where.append(f"tool {'' if query.delegated else 'NOT '}LIKE ?")
            values.append("agent:%")
        if query.ask_due_ms:
            where.append("next_ask_ms > 0 AND next_ask_ms <= ? AND state IN ('sent', 'unknown')")
            values.append(query.ask_due_ms)
        values.append(max(1, min(query.limit, MAX_ROWS)))
        sql = f"{_SELECT_CALL} WHERE {' AND '.join(where)} ORDER BY created_ms DESC LIMIT ?"
        return [_call_in(row) for row in self._db.execute(sql, values).fetchall()]


class Runs:
    """Runs."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    def insert(self, run: Run) -> bool:
        """Stores a new run; False when the id is taken."""
        return _happened(self._db.execute(_INSERT_RUN, _run_out(run)))

    def get(self, run_id: str) -> Run | None:
        """One run."""
        row = self._db.execute(f"{_SELECT_RUN} WHERE run_id = ?", (run_id,)).fetchone()
        return None if row is None else _run_in(row)

    def move(self, before: Run, after: Run) -> bool:
        """Compare-and-set on state and attempt."""
        values = [*_run_out(after)[1:], before.run_id, before.state, before.attempt]
        return _happened(self._db.execute(_MOVE_RUN, values))

    def list(self, limit: int) -> list[Run]:
        """Newest first."""
        sql = f"{_SELECT_RUN} ORDER BY created_ms DESC LIMIT ?"
        rows = self._db.execute(sql, (max(1, min(limit, MAX_ROWS)),))
        return [_run_in(row) for row in rows.fetchall()]

    def grow(self, run_id: str, *, steps: int = 0, size_bytes: int = 0, delegated: int = 0) -> None:
        """Adds to what a run has recorded, or others did below it."""
        self._db.execute(_GROW_RUN, (steps, size_bytes, delegated, run_id))

    def open(self, app: str, *, caller: str = "") -> int:
        """How many runs of an app have not ended; with `caller` those that it delegated."""
        sql = f"SELECT count(*) FROM runs WHERE app = ? AND state NOT IN ({ENDED})"
        values = [app]
        if caller:
            sql += " AND caller = ?"
            values.append(caller)
        return int(self._db.execute(sql, values).fetchone()[0])

    def branches(self, run_id: str) -> Sequence[Run]:
        """Runs that were made from this one."""
        sql = f"{_SELECT_RUN} WHERE origin_run != '' AND origin_run = ? LIMIT ?"
        return [_run_in(row) for row in self._db.execute(sql, (run_id, MAX_ROWS)).fetchall()]

    def forsaken(self, silent_since_ms: Mapping[str, int], *, per_app: int, turn: int) -> Sequence[Run]:
        """Driven runs of which nobody gives a sign of life: some of each app, in turn."""
        silent = " OR ".join(["(state = ? AND updated_ms < ? AND heartbeat_ms < ?)"] * len(silent_since_ms))
        sql = (
            f"SELECT {', '.join(RUN)} FROM (SELECT {', '.join(RUN)}, "
            "row_number() OVER (PARTITION BY app ORDER BY updated_ms, run_id) - 1 AS place, "
            "(count(*) OVER (PARTITION BY app) + ? - 1) / ? AS pages FROM runs WHERE driven "
            f"AND state IN ('pending', 'running', 'restarting') AND ({silent})) AS found "
            "WHERE place / ? = ? - pages * (? / pages) ORDER BY place, updated_ms, run_id"
        )
        since = [value for state, ms in silent_since_ms.items() for value in (state, ms, ms)]
        rows = self._db.execute(sql, (per_app, per_app, *since, per_app, turn, turn))
        return [_run_in(row) for row in rows.fetchall()]

    def unfinished(self, *, before_ms: int) -> Sequence[Run]:
        """Runs that are copied to or purged, and were not touched since."""
        sql = (
            f"{_SELECT_RUN} WHERE ((purging AND purged_ms <= ?) OR (state = 'copying' AND updated_ms <= ?)) "
            "AND (purging OR state = 'copying') LIMIT ?"
        )
        return [_run_in(row) for row in self._db.execute(sql, (before_ms, before_ms, 100)).fetchall()]

    def leaving(self, *, silent_since_ms: int) -> Sequence[Run]:
        """Runs to be cancelled or paused whose last heartbeat is older."""
        sql = f"{_SELECT_RUN} WHERE state IN ('cancelling', 'pausing') AND heartbeat_ms < ? LIMIT ?"
        return [_run_in(row) for row in self._db.execute(sql, (silent_since_ms, MAX_ROWS)).fetchall()]

    def below(self, run_id: str, *, limit: int) -> Sequence[Run]:
        """Runs whose calls of this run are open, and that are neither over nor told to end."""
        sql = (
            f"SELECT {', '.join(f'made.{name}' for name in RUN)} FROM calls "
            "JOIN runs AS made ON made.run_id = ? || calls.call_id WHERE calls.run_id = ? AND "
            f"calls.state IN ('reserved', 'sent') AND made.state NOT IN ({ENDED}, 'cancelling') LIMIT ?"
        )
        rows = self._db.execute(sql, (delegated_run(""), run_id, limit))
        return [_run_in(row) for row in rows.fetchall()]

    def recalling(self, *, limit: int) -> Sequence[Run]:
        """Runs that are, or are to be, over, and not all that they had asked for is told so."""
        rows = self._db.execute(f"{_SELECT_RUN} WHERE recalling LIMIT ?", (limit,))
        return [_run_in(row) for row in rows.fetchall()]


class Journal:
    """Model steps of runs."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    def insert(self, row: JournalRow) -> bool:
        """Stores a step; False when the run has one under that key."""
        values = [*(getattr(row, name) for name in JOURNAL[:-2]), _sealed_out(row.request)]
        return _happened(self._db.execute(_INSERT_STEP, [*values, _sealed_out(row.reply)]))

    def get(self, run_id: str, step_key: str) -> JournalRow | None:
        """One step."""
        found = self._rows("run_id = ? AND step_key = ?", (run_id, step_key))
        return found[0] if found else None

    def of_run(self, run_id: str) -> list[JournalRow]:
        """A run's steps, in their order."""
        return self._rows("run_id = ? ORDER BY place", (run_id,))

    def delete(self, run_id: str, limit: int) -> int:
        """Deletes that many of a run's steps."""
        sql = (
            "DELETE FROM journal WHERE run_id = ? AND step_key IN "
            "(SELECT step_key FROM journal WHERE run_id = ? LIMIT ?) RETURNING 1"
        )
        return len(self._db.execute(sql, (run_id, run_id, limit)).fetchall())

    def beyond(self, *, run_id: str, scope: str, turn: int, attempts: range) -> JournalRow | None:
        """A model step of these attempts at this turn of the scope or at a later one."""
        found = self._rows(
            "run_id = ? AND scope = ? AND turn >= ? AND attempt >= ? AND attempt < ? ORDER BY turn LIMIT 1",
            (run_id, scope, turn, attempts.start, attempts.stop),
        )
        return found[0] if found else None

    def _rows(self, where: str, values: tuple[object, ...]) -> list[JournalRow]:
        rows = self._db.execute(f"{_SELECT_STEP} WHERE {where}", values)
        return [_step_in(row) for row in rows.fetchall()]


class Payloads:
    """Clear text, encrypted before it comes here."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    def put(self, row: PayloadRow) -> None:
        """Stores one payload."""
        values = (row.id, row.codec, row.salt, row.nonce, row.data)
        self._db.execute("INSERT INTO payloads (id, codec, salt, nonce, data) VALUES (?, ?, ?, ?, ?)", values)

    def get(self, payload_id: str) -> PayloadRow | None:
        """One payload."""
        row = self._db.execute(
            "SELECT id, codec, salt, nonce, data FROM payloads WHERE id = ?", (payload_id,)
        ).fetchone()
        return None if row is None else PayloadRow(*row)

    def delete(self, payload_ids: Sequence[str]) -> int:
        """Erases payloads, their salts too."""
        sql = "DELETE FROM payloads WHERE id = ? RETURNING 1"
        return sum(len(self._db.execute(sql, (one,)).fetchall()) for one in payload_ids)


class SharedTables:
    """All tables of one transaction.

    Attributes:
        instances: the one table that each database has its own of: leases run by its clock.
    """

    def __init__(self, connection: Connection, instances: InstanceTable, head: Head | None = None) -> None:
        self._db = connection
        self.records = Records(connection, head)
        self.calls = Calls(connection)
        self.runs = Runs(connection)
        self.journal = Journal(connection)
        self.payloads = Payloads(connection)
        self.instances = instances

    def counts(self) -> dict[str, int]:
        """Calls by state."""
        return dict(self._db.execute("SELECT state, count(*) FROM calls GROUP BY state").fetchall())

    def owner(self) -> str | None:
        """Whose store it is."""
        row = self._db.execute("SELECT value FROM meta WHERE key = 'owner'").fetchone()
        return None if row is None else str(row[0])

    def own(self, owner: str) -> None:
        """Says whose store it is."""
        self._db.execute("INSERT INTO meta VALUES ('owner', ?) ON CONFLICT (key) DO NOTHING", (owner,))


def check_tail(connection: Connection) -> None:
    """The newest records must still be linked; a hole here means the database was changed.

    Raises:
        StoreUnavailable: they are not.
    """
    records = Records(connection)
    head = records.head()
    first = max(0, head.seq - CHECKED_TAIL)
    before = connection.execute("SELECT seq, hash FROM records WHERE seq = ?", (first,)).fetchone()
    tail = records.query(RecordQuery(after_seq=first, limit=CHECKED_TAIL))
    found = verify((body for _, body in tail), after=Head(*before) if before else Head(0, GENESIS), head=head)
    if not found.verified:
        raise StoreUnavailable(detail=f"the log does not verify: {found.problem}")
