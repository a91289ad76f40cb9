"""Registration entries: which process is entitled to which SPIFFE ID, as data.

The development Workload API takes an ID and DNS names per process id; SPIRE takes the same with
selectors. Real entries are generated from the manifest; `identities/entries` has the published
schema and an example.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import jsonschema

from meshgate_identities.errors import InvalidEntry, InvalidSpiffeId
from meshgate_identities.spiffe_id import MAX_ID_BYTES, SpiffeId

DEFAULT_TTL_SECONDS = 3600  # revocation of an issued SVID is bounded by its life
MAX_TTL_SECONDS = 604_740  # seven days less the minute of backdating: verification's limit
MIN_TTL_SECONDS = 60  # below, SPIRE's five-second sync eats the half life

# Patterns end in a look-ahead: in Python, `$` would let a newline through.
SCHEMA: Mapping[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "meshgate registration entry",
    "type": "object",
    "additionalProperties": False,
    "required": ["spiffeId", "selectors"],
    "properties": {
        "spiffeId": {
            "description": "The one URI SAN, spiffe://<trust domain>/ns/<mesh>/<app>.",
            "type": "string",
            "maxLength": MAX_ID_BYTES,
        },
        "selectors": {
            "description": "What the attested process must show, all of it: type:value. "
            "Agents share one python binary, so a path or digest does not tell them apart.",
            "type": "array",
            "minItems": 1,
            "uniqueItems": True,
            "items": {"type": "string", "pattern": "^[a-z0-9_]+:[!-~]+(?![\\s\\S])"},
        },
        "dnsNames": {
            "description": "DNS SANs. Only the gateway has one, and nobody else may have the same.",
            "type": "array",
            "uniqueItems": True,
            "items": {
                "type": "string",
                "pattern": "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(?![\\s\\S])",
                "maxLength": 253,
            },
        },
        "ttlSeconds": {
            "description": "Life of an SVID.",
            "type": "integer",
            "minimum": MIN_TTL_SECONDS,
            "maximum": MAX_TTL_SECONDS,
            "default": DEFAULT_TTL_SECONDS,
        },
    },
}


@dataclass(frozen=True, slots=True)
class RegistrationEntry:
    """One entitlement.

    Attributes:
        spiffe_id: whom the process may be.
        selectors: what it must show, all of them; at least one.
        dns_names: DNS SANs.
        ttl_seconds: life of its SVIDs.
    """

    spiffe_id: SpiffeId
    selectors: tuple[str, ...]
    dns_names: tuple[str, ...] = ()
    ttl_seconds: int = DEFAULT_TTL_SECONDS

    @classmethod
    def parse(cls, data: object) -> "RegistrationEntry":
        """Reads one entry of JSON.

        Raises:
            InvalidEntry: names the field and what is wrong with it.
        """
        found = next(iter(jsonschema.Draft202012Validator(SCHEMA).iter_errors(data)), None)
        if found is not None or not isinstance(data, dict):
            raise InvalidEntry(f"{found.json_path}: {found.message}" if found else "not an object")
        try:
            spiffe_id = SpiffeId.parse(data["spiffeId"])
        except InvalidSpiffeId as error:
            raise InvalidEntry(f"$.spiffeId: {error}") from error
        return cls(
            spiffe_id=spiffe_id,
            selectors=tuple(data["selectors"]),
            dns_names=tuple(data.get("dnsNames", ())),
            ttl_seconds=data.get("ttlSeconds", DEFAULT_TTL_SECONDS),
        )


def check_entries(entries: Sequence[RegistrationEntry]) -> None:
    """Checks that no process could be two apps and that no two apps share a DNS name.

    Raises:
        InvalidEntry: names both entries.
    """
    for one, other in combinations(entries, 2):
        if one.spiffe_id == other.spiffe_id:
            continue
        smaller, larger = sorted((set(one.selectors), set(other.selectors)), key=len)
        if smaller <= larger:  # a process that shows the larger set matches both
            raise InvalidEntry(f"{one.spiffe_id} and {other.spiffe_id} match the same processes")
        if shared := set(one.dns_names) & set(other.dns_names):
            raise InvalidEntry(f"{one.spiffe_id} and {other.spiffe_id} share {sorted(shared)}")


def spire_entries(entries: Sequence[RegistrationEntry], *, parent_id: SpiffeId) -> str:
    """The same entries for SPIRE: one `spire-server entry create` line each, quoted for a shell.

    Args:
        entries: what to register.
        parent_id: the SPIRE agent on whose node the processes run.

    Raises:
        InvalidEntry: as `check_entries`.
    """
    check_entries(entries)
    lines = []
    for entry in entries:
        words = ["spire-server", "entry", "create", "-parentID", str(parent_id)]
        words += ["-spiffeID", str(entry.spiffe_id)]
        words += [word for selector in entry.selectors for word in ("-selector", selector)]
        words += [word for name in entry.dns_names for word in ("-dns", name)]
        words += ["-x509SVIDTTL", str(entry.ttl_seconds)]
        lines.append(shlex.join(words) + "\n")
    return "".join(lines)
