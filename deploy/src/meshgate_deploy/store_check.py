"""Whether the store's server can be used: reached, synced, and open to what the mesh must make there."""

from collections.abc import Mapping
from typing import Any

import psycopg

from meshgate_deploy import store_url
from meshgate_deploy.errors import DependencyUnavailable
from meshgate_deploy.probes import Check

NAME = "store"
SECONDS = 3
# Bounds that hold while the server answers; SECONDS holds for the way to it.
_OPTIONS = "-c statement_timeout=3000 -c lock_timeout=3000"
_PROBE = "CREATE TABLE meshgate_rights_probe (nothing boolean)"
_WITHOUT_RIGHTS = """
SELECT tablename FROM pg_tables WHERE schemaname = current_schema() AND
  tablename IN ('meta', 'records', 'calls', 'runs', 'journal', 'payloads', 'instances', 'meshgate_schema',
    'meshgate_dapr_state', 'meshgate_dapr_metadata') AND NOT (
  has_table_privilege(format('%I.%I', schemaname, tablename), 'SELECT') AND
  has_table_privilege(format('%I.%I', schemaname, tablename), 'INSERT') AND
  has_table_privilege(format('%I.%I', schemaname, tablename), 'UPDATE'))
"""


def examine(store: str, variables: Mapping[str, str]) -> Check:
    """Looks at a store on a server as the mesh will use it; leaves nothing there.

    Args:
        store: a valid URL.
        variables: libpq's, as the gateway gets them.
    """
    place = store_url.shown(store)
    given: dict[str, Any] = {
        parameter: variables[name] for name, parameter in store_url.VARIABLES.items() if name in variables
    }
    try:
        with psycopg.connect(store, connect_timeout=SECONDS, options=_OPTIONS, **given) as connection:
            return _used(connection, place)
    except psycopg.Error as error:
        fix = f"start the server, or mend `store` in meshgate.yaml; try: psql '{place}'"
        if "password" in str(error):
            fix = "PGPASSWORD=… in `.env` or the shell, and see that the role exists"
        return Check(NAME, ok=False, detail=f"{place} is not reached: {_said(error)}", fix=fix)


def require(store: str, variables: Mapping[str, str]) -> None:
    """Refuses a store that cannot be used, before anything starts.

    Raises:
        DependencyUnavailable: says why and what to do.
    """
    if not store_url.is_postgresql(store):
        return
    check = examine(store, variables)
    if not check.ok:
        raise DependencyUnavailable("the store cannot be used", why=check.detail, next_step=check.fix)


def _used(connection: psycopg.Connection[Any], place: str) -> Check:
    row = connection.execute(
        "SELECT current_setting('fsync'), current_user, coalesce(current_schema(), ''), version()"
    ).fetchone()
    synced, role, schema, version = row or ("", "", "", "")
    if synced != "on":
        fix = "fsync = on in postgresql.conf: an acknowledged record must be on disk"
        return Check(NAME, ok=False, detail=f"{place} does not sync (fsync is off)", fix=fix)
    grant = f"as its owner: GRANT USAGE, CREATE ON SCHEMA {schema or 'public'} TO {role}"
    try:
        connection.execute(_PROBE)
    except psycopg.Error as error:
        return Check(NAME, ok=False, detail=f"{place}: {role} cannot make tables: {_said(error)}", fix=grant)
    finally:
        connection.rollback()
    foreign = [name for (name,) in connection.execute(_WITHOUT_RIGHTS).fetchall()]
    if foreign:
        detail = f"{place}: {role} cannot read and write {', '.join(foreign)}"
        fix = f"as its owner: GRANT ALL ON {', '.join(foreign)} TO {role}"
        return Check(NAME, ok=False, detail=detail, fix=fix)
    return Check(NAME, ok=True, detail=f"{place}, {' '.join(str(version).split()[:2])}")


def _said(error: psycopg.Error) -> str:
    """The first line: what libpq says holds no password."""
    return (str(error).splitlines() or [type(error).__name__])[0]
