"""What bounds delegations, and how far a family is cancelled.

Who asked for a run, how many were made below one that nobody delegated, and whose are still to be cancelled.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

_STATEMENTS = (
    "ALTER TABLE runs ADD COLUMN caller text NOT NULL DEFAULT ''",
    "ALTER TABLE runs ADD COLUMN delegated bigint NOT NULL DEFAULT 0",
    "UPDATE runs SET caller = chain::json -> -1 ->> 'spiffe_id' WHERE chain <> ''",
    "ALTER TABLE runs ADD COLUMN recalling boolean NOT NULL DEFAULT false",
    """UPDATE runs SET delegated = made.number FROM (SELECT chain::json -> 0 ->> 'run_id' AS root,
        count(*) AS number FROM runs WHERE chain <> '' GROUP BY 1) AS made WHERE run_id = made.root""",
    "DROP INDEX runs_open",
    """CREATE INDEX runs_asked ON runs (app, caller)
        WHERE state NOT IN ('completed', 'failed', 'cancelled')""",
    "CREATE INDEX runs_recalling ON runs (updated_ms) WHERE recalling",
)


def upgrade() -> None:
    """Adds the columns, and what they hold of delegations that were made before."""
    for statement in _STATEMENTS:
        op.execute(statement)
