"""Alembic runs this. The connection and its transaction are the caller's (`postgres_schema.upgrade`)."""

from alembic import context

from meshgate_gateway.adapters.postgres_schema import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
