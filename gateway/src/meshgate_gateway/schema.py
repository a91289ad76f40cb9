"""The tables.

Clear text lives in `payloads` only, encrypted; every other column is an id, a state or a commitment.
"""

STATEMENTS = (
    """CREATE TABLE IF NOT EXISTS records (
        seq INTEGER PRIMARY KEY, hash TEXT NOT NULL, kind TEXT NOT NULL, caller TEXT NOT NULL,
        tool TEXT NOT NULL, call_id TEXT NOT NULL, body BLOB NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS records_call ON records(call_id)",
    """CREATE TABLE IF NOT EXISTS calls (
        call_id TEXT PRIMARY KEY, caller TEXT NOT NULL, run_id TEXT NOT NULL, attempt INTEGER NOT NULL,
        step_key TEXT NOT NULL, tool TEXT NOT NULL, host TEXT NOT NULL, args_sha256 TEXT NOT NULL,
        definition_sha256 TEXT NOT NULL, effect TEXT NOT NULL, idempotent INTEGER NOT NULL,
        decision_id TEXT NOT NULL, policy_revision TEXT NOT NULL, reasons TEXT NOT NULL,
        state TEXT NOT NULL, args_payload TEXT NOT NULL, deadline_ms INTEGER NOT NULL,
        tool_seconds REAL NOT NULL, take INTEGER NOT NULL DEFAULT 0,
        host_instance TEXT NOT NULL DEFAULT '', result_kind TEXT NOT NULL DEFAULT '',
        result_payload TEXT NOT NULL DEFAULT '', error_class TEXT NOT NULL DEFAULT '',
        message TEXT NOT NULL DEFAULT '', created_ms INTEGER NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS calls_open ON calls(state, deadline_ms)",
    "CREATE INDEX IF NOT EXISTS calls_run ON calls(run_id)",
    """CREATE TABLE IF NOT EXISTS payloads (
        id TEXT PRIMARY KEY, codec TEXT NOT NULL, salt BLOB NOT NULL, nonce BLOB NOT NULL,
        ciphertext BLOB NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS runs (
        run_id TEXT PRIMARY KEY, app TEXT NOT NULL, input_sha256 TEXT NOT NULL, state TEXT NOT NULL,
        attempt INTEGER NOT NULL, detail TEXT NOT NULL DEFAULT '', created TEXT NOT NULL,
        heartbeat_ms INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL DEFAULT 0)""",
    "CREATE TABLE IF NOT EXISTS probe (id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL)",
)
