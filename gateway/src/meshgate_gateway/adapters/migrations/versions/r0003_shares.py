"""What bounds delegations: who asked for a run, and how many were made below one that nobody delegated."""

from alembic import op

revision = "0003"
down_revision = "0002"

_STATEMENTS = (
    "ALTER TABLE runs ADD COLUMN caller text NOT NULL DEFAULT ''",
    "ALTER TABLE runs ADD COLUMN delegated bigint NOT NULL DEFAULT 0",
    "UPDATE runs SET caller = chain::json -> -1 ->> 'spiffe_id' WHERE chain <> ''",
    """UPDATE runs SET delegated = made.number FROM (SELECT chain::json -> 0 ->> 'run_id' AS root,
        count(*) AS number FROM runs WHERE chain <> '' GROUP BY 1) AS made WHERE run_id = made.root""",
    "DROP INDEX runs_open",
    """CREATE INDEX runs_asked ON runs (app, caller)
        WHERE state NOT IN ('completed', 'failed', 'cancelled')""",
)


def upgrade() -> None:
    """Adds the columns, and what they hold of delegations that were made before."""
    for statement in _STATEMENTS:
        op.execute(statement)
