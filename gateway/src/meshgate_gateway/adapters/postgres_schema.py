"""Brings a database to the newest schema, by Alembic; several gateways may start at once."""

import alembic.util
import sqlalchemy
from alembic import command
from alembic.config import Config
from sqlalchemy.pool import NullPool

from meshgate_gateway.adapters.postgres_connection import Bounded
from meshgate_gateway.errors import StoreUnavailable

VERSION_TABLE = "meshgate_schema"
LOG_LOCK = 0x6D65736867617465  # "meshgate": whoever appends to the log
_SCHEMA_LOCK = LOG_LOCK + 1  # whoever changes the schema
_MIGRATIONS = "meshgate_gateway.adapters:migrations"


def upgrade(url: str) -> None:
    """Runs the migrations that the database has not had yet.

    Args:
        url: of libpq's kind.

    Raises:
        StoreUnavailable: the schema is of a newer or foreign version, or the database was not reached.
    """
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", poolclass=NullPool, creator=lambda: Bounded.to(url, autocommit=False)
    )
    config = Config()
    config.set_main_option("script_location", _MIGRATIONS)
    try:
        with engine.begin() as open_connection:
            lock = sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)")
            open_connection.execute(lock, {"key": _SCHEMA_LOCK})
            config.attributes["connection"] = open_connection
            command.upgrade(config, "head")
    except alembic.util.CommandError as error:
        detail = f"the database's schema is of a version this gateway does not know: {error}"
        raise StoreUnavailable(detail=detail) from error
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise StoreUnavailable(detail=f"the schema was not brought up to date: {error}") from error
