"""Runs that a delegation started: the call that each answers, its callers, and what they allow."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds the columns; no run of before was delegated."""
    for column in ("parent_call", "chain", "narrow"):
        op.execute(f"ALTER TABLE runs ADD COLUMN {column} text NOT NULL DEFAULT ''")
