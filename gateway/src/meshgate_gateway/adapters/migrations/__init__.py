"""The schema's history on PostgreSQL: `env.py` is Alembic's entry, `versions/` one file per change."""
