"""Whether the store can be used: this mesh's own, reached, synced, and open to what must be made there."""

import contextlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg

from meshgate_deploy import store_url
from meshgate_deploy.environment import Environment
from meshgate_deploy.errors import DependencyUnavailable
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.probes import Check

SECONDS = 3
# Bounds that hold while the server answers; SECONDS holds for the way to it.
_OPTIONS = "-c statement_timeout=3000 -c lock_timeout=3000"
_PROBE = "CREATE TABLE meshgate_rights_probe (nothing boolean)"
GATEWAY = "store"
SIDECARS = "store of Dapr"
_TABLES = {
    GATEWAY: ["meta", "records", "calls", "runs", "journal", "payloads", "instances", "meshgate_schema"],
    SIDECARS: ["meshgate_dapr_state", "meshgate_dapr_metadata"],
}
_KNOWN = "SELECT to_regclass('meshgate_schema') IS NOT NULL"
_OWNER = "SELECT value FROM meta WHERE key = 'owner'"
_WITHOUT_RIGHTS = """
SELECT tablename FROM pg_tables WHERE schemaname = current_schema() AND
  tablename = ANY(%s) AND NOT (
  has_table_privilege(format('%%I.%%I', schemaname, tablename), 'SELECT') AND
  has_table_privilege(format('%%I.%%I', schemaname, tablename), 'INSERT') AND
  has_table_privilege(format('%%I.%%I', schemaname, tablename), 'UPDATE'))
"""


def examine(manifest: Manifest, environment: Environment, *, file: Path) -> list[Check]:
    """Looks at the store as gateway and sidecars will use it; leaves nothing there.

    Args:
        manifest: names the store.
        environment: has what its server asks for.
        file: where the store is when it is no server's.
    """
    if not store_url.is_postgresql(manifest.store):
        return [_file(manifest, file)] if file.exists() else []
    return [
        _examine(GATEWAY, manifest, environment.for_store(manifest)),
        _examine(SIDECARS, manifest, environment.for_sidecar(manifest)),
    ]


def _file(manifest: Manifest, file: Path) -> Check:
    try:
        with contextlib.closing(
            sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)
        ) as connection:
            made = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone()
            row = connection.execute(_OWNER).fetchone() if made else None
    except sqlite3.Error as error:
        fix = "see whose file it is; a mesh without it begins anew"
        return Check(GATEWAY, ok=False, detail=f"{file} is not read: {error}", fix=fix)
    anew = f"move {file}* away"  # what is not in the file yet lies beside it
    return _foreign(manifest, row, str(file), anew=anew) or Check(GATEWAY, ok=True, detail=str(file))


def _foreign(manifest: Manifest, row: tuple[Any, ...] | None, place: str, *, anew: str) -> Check | None:
    """What is wrong when the store is another mesh's; one that says nothing is anybody's."""
    if row is None:
        return None
    try:
        owner = json.loads(row[0])
        mesh, trust_domain = str(owner["mesh"]), str(owner["trust_domain"])
    except (ValueError, KeyError, TypeError):
        mesh, trust_domain = "?", "?"
    if (mesh, trust_domain) == (manifest.mesh, manifest.trust_domain):
        return None
    detail = (
        f"{place} belongs to mesh {mesh!r} of trust domain {trust_domain!r}, "
        f"this is mesh {manifest.mesh!r} of {manifest.trust_domain!r}"
    )
    fix = f"{anew}, or put `mesh` and `trustDomain` in meshgate.yaml back"
    return Check(GATEWAY, ok=False, detail=detail, fix=fix)


def _examine(name: str, manifest: Manifest, variables: Mapping[str, str]) -> Check:
    store = manifest.store
    place = store_url.shown(store)
    known = {**store_url.VARIABLES, "PGUSER": "user"}
    given: dict[str, Any] = {known[key]: value for key, value in variables.items()}
    try:
        with psycopg.connect(store, connect_timeout=SECONDS, options=_OPTIONS, **given) as connection:
            return _used(connection, name, manifest)
    except psycopg.Error as error:
        fix = f"start the server, or mend `store` in meshgate.yaml; try: psql '{place}'"
        if "password" in str(error):
            variable = "PGPASSWORD" if name == GATEWAY else f"{store_url.DAPR_PASSWORD} or PGPASSWORD"
            fix = f"{variable}=… in `.env` or the shell, and see that the role exists"
        return Check(name, ok=False, detail=f"{place} is not reached: {_said(error)}", fix=fix)


def require(manifest: Manifest, environment: Environment, *, file: Path) -> None:
    """Refuses a store that cannot be used, before anything starts.

    Raises:
        DependencyUnavailable: says why and what to do.
    """
    bad = [check for check in examine(manifest, environment, file=file) if not check.ok]
    if bad:
        raise DependencyUnavailable("the store cannot be used", why=bad[0].detail, next_step=bad[0].fix)


def _used(connection: psycopg.Connection[Any], name: str, manifest: Manifest) -> Check:
    place = store_url.shown(manifest.store)
    row = connection.execute(
        "SELECT current_setting('fsync'), current_user, coalesce(current_schema(), ''), version()"
    ).fetchone()
    synced, role, schema, version = row or ("", "", "", "")
    if synced != "on":
        fix = "fsync = on in postgresql.conf: an acknowledged record must be on disk"
        return Check(name, ok=False, detail=f"{place} does not sync (fsync is off)", fix=fix)
    grant = f"as its owner: GRANT USAGE, CREATE ON SCHEMA {schema or 'public'} TO {role}"
    try:
        connection.execute(_PROBE)
    except psycopg.Error as error:
        return Check(name, ok=False, detail=f"{place}: {role} cannot make tables: {_said(error)}", fix=grant)
    finally:
        connection.rollback()
    rows = connection.execute(_WITHOUT_RIGHTS, (_TABLES[name],)).fetchall()
    foreign = [table for (table,) in rows]
    if foreign:
        detail = f"{place}: {role} cannot read and write {', '.join(foreign)}"
        fix = f"as its owner: GRANT ALL ON {', '.join(foreign)} TO {role}"
        return Check(name, ok=False, detail=detail, fix=fix)
    known = connection.execute(_KNOWN).fetchone()
    if name == GATEWAY and known and known[0]:
        row = connection.execute(_OWNER).fetchone()
        owned = _foreign(manifest, row, place, anew="name a database of this mesh's own in `store`")
        if owned is not None:
            return owned
    return Check(name, ok=True, detail=f"{place}, {' '.join(str(version).split()[:2])}")


def _said(error: psycopg.Error) -> str:
    """The first line: what libpq says holds no password."""
    return (str(error).splitlines() or [type(error).__name__])[0]
