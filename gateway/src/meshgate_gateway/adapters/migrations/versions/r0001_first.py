"""The first schema. Columns are named after the fields of `model.py` and `store.py`."""

from alembic import op

revision = "0001"
down_revision = None

_STATEMENTS = (
    "CREATE TABLE meta (key text PRIMARY KEY, value text NOT NULL)",
    """CREATE TABLE records (
        seq bigint PRIMARY KEY, hash text NOT NULL, kind text NOT NULL, caller text NOT NULL,
        tool text NOT NULL, call_id text NOT NULL, run_id text NOT NULL, body bytea NOT NULL)""",
    "CREATE INDEX records_call ON records (call_id)",
    "CREATE INDEX records_run ON records (run_id) WHERE run_id <> ''",
    """CREATE TABLE calls (
        call_id text PRIMARY KEY, caller text NOT NULL, run_id text NOT NULL, attempt bigint NOT NULL,
        step_key text NOT NULL, tool text NOT NULL, host text NOT NULL, effect text NOT NULL,
        idempotent boolean NOT NULL, definition_sha256 text NOT NULL, state text NOT NULL,
        decision_id text NOT NULL, reasons text NOT NULL, detail text NOT NULL, arguments text NOT NULL,
        deadline_ms bigint NOT NULL, gateway text NOT NULL, created_ms bigint NOT NULL,
        updated_ms bigint NOT NULL, take bigint NOT NULL, host_instance text NOT NULL,
        deadline_at_ms bigint NOT NULL, result text, result_kind text NOT NULL, error_class text NOT NULL,
        scope text NOT NULL, turn bigint NOT NULL, likeness text NOT NULL, repeats text NOT NULL,
        task text NOT NULL, copied_from text NOT NULL, busy_until_ms bigint NOT NULL,
        asked_ms bigint NOT NULL, asks bigint NOT NULL, next_ask_ms bigint NOT NULL,
        place bigint NOT NULL)""",
    "CREATE INDEX calls_open ON calls (updated_ms) WHERE state IN ('reserved', 'sent')",
    "CREATE INDEX calls_asked ON calls (next_ask_ms) WHERE next_ask_ms > 0",
    "CREATE INDEX calls_like ON calls (likeness) WHERE likeness <> ''",
    "CREATE INDEX calls_run ON calls (run_id, place)",
    """CREATE TABLE runs (
        run_id text PRIMARY KEY, app text NOT NULL, state text NOT NULL, attempt bigint NOT NULL,
        launcher text NOT NULL, created_ms bigint NOT NULL, updated_ms bigint NOT NULL,
        heartbeat_ms bigint NOT NULL, steps bigint NOT NULL, detail text NOT NULL,
        trusted_from bigint NOT NULL, origin text NOT NULL, origin_run text NOT NULL,
        origin_step bigint NOT NULL, purged_ms bigint NOT NULL, recorded_steps bigint NOT NULL,
        recorded_bytes bigint NOT NULL, driven boolean NOT NULL, crashes bigint NOT NULL,
        lost bigint NOT NULL, begun_steps bigint NOT NULL, purging boolean NOT NULL,
        input text, traceback text, result text)""",
    "CREATE INDEX runs_created ON runs (created_ms)",
    "CREATE INDEX runs_origin ON runs (origin_run) WHERE origin_run <> ''",
    "CREATE INDEX runs_open ON runs (app) WHERE state NOT IN ('completed', 'failed', 'cancelled')",
    "CREATE INDEX runs_unfinished ON runs (updated_ms) WHERE purging OR state = 'copying'",
    """CREATE INDEX runs_driven ON runs (updated_ms)
        WHERE driven AND state IN ('pending', 'running', 'restarting')""",
    "CREATE INDEX runs_leaving ON runs (heartbeat_ms) WHERE state IN ('cancelling', 'pausing')",
    """CREATE TABLE journal (
        run_id text NOT NULL, step_key text NOT NULL, scope text NOT NULL, turn bigint NOT NULL,
        attempt bigint NOT NULL, created_ms bigint NOT NULL, milliseconds bigint NOT NULL,
        place bigint NOT NULL, request text NOT NULL, reply text NOT NULL, PRIMARY KEY (run_id, step_key))""",
    "CREATE INDEX journal_scope ON journal (run_id, scope, turn)",
    """CREATE TABLE payloads (
        id text PRIMARY KEY, codec text NOT NULL, salt bytea NOT NULL, nonce bytea NOT NULL, data bytea)""",
    "CREATE TABLE instances (name text PRIMARY KEY, holder text NOT NULL, expires_ms bigint NOT NULL)",
)


def upgrade() -> None:
    """Makes the tables."""
    for statement in _STATEMENTS:
        op.execute(statement)
