"""Whose store it is: one mesh's of one trust domain, under one payload key; all its gateways may use it."""

import hmac
import json

from meshgate_identities.errors import InvalidSpiffeId
from meshgate_identities.spiffe_id import SpiffeId

from meshgate_gateway.authenticate import Mesh
from meshgate_gateway.errors import ConfigurationError
from meshgate_gateway.store import Store, Tables

_LABEL = b"meshgate owner v1"


def claim(store: Store, mesh: Mesh, *, payload_key: bytes) -> None:
    """Makes the store this mesh's, unless it is another's. Nothing else is written before.

    Raises:
        ConfigurationError: it is; says whose, and what to do.
        StoreUnavailable: nobody could say.
    """
    mine = {
        "mesh": mesh.name,
        "trust_domain": mesh.trust_domain,
        "payload_key": hmac.digest(payload_key, _LABEL, "sha256").hex(),
    }
    theirs = store.write(lambda tables: _owner(tables, mine))
    if (theirs["mesh"], theirs["trust_domain"]) != (mesh.name, mesh.trust_domain):
        raise ConfigurationError(
            f"the store belongs to mesh {theirs['mesh']!r} of trust domain {theirs['trust_domain']!r}, "
            f"this is mesh {mesh.name!r} of {mesh.trust_domain!r}: "
            "give each mesh a store of its own, or put the names in meshgate.yaml back"
        )
    if not hmac.compare_digest(theirs["payload_key"], mine["payload_key"]):
        raise ConfigurationError(
            f"the store of mesh {mesh.name!r} is under another payload key: put back the payload.key "
            "with which it was begun, or give this mesh a store of its own"
        )


def _owner(tables: Tables, mine: dict[str, str]) -> dict[str, str]:
    """Who owns it; a store that says nothing is that mesh's whose run it holds, else it becomes `mine`."""
    said = tables.owner()
    if said is None:
        newest = tables.runs.list(1)
        named = _of_app(newest[0].app) if newest else mine
        if named | {"payload_key": ""} != mine | {"payload_key": ""}:
            return named
        said = json.dumps(mine, sort_keys=True)
        tables.own(said)
    return _read(said)


def _read(said: str) -> dict[str, str]:
    """One that cannot be read is nobody's we know."""
    try:
        found = json.loads(said)
        return {name: str(found[name]) for name in ("mesh", "trust_domain", "payload_key")}
    except (ValueError, KeyError, TypeError):
        return {"mesh": "?", "trust_domain": "?", "payload_key": ""}


def _of_app(app: str) -> dict[str, str]:
    try:
        spiffe_id = SpiffeId.parse(app)
    except InvalidSpiffeId:
        return {"mesh": app, "trust_domain": "", "payload_key": ""}
    return {"mesh": spiffe_id.namespace or "", "trust_domain": spiffe_id.trust_domain, "payload_key": ""}
