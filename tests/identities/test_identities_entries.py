"""Registration entries: the schema, contradictions, and the lines for SPIRE."""

import json
import shlex
from pathlib import Path

import pytest
from meshgate_identities.entries import SCHEMA, RegistrationEntry, check_entries, spire_entries
from meshgate_identities.errors import InvalidEntry
from meshgate_identities.spiffe_id import SpiffeId

ENTRIES = Path(__file__).resolve().parents[2] / "identities" / "entries"
DESK = "spiffe://mesh.test/ns/m/desk"


def entry(app: str, *selectors: str, dns_names: tuple[str, ...] = ()) -> RegistrationEntry:
    name = SpiffeId.of_app(trust_domain="mesh.test", namespace="m", app=app)
    return RegistrationEntry(name, selectors, dns_names)


def test_the_published_schema_is_the_one_that_checks() -> None:
    """The file beside the examples is the schema of the code."""
    assert json.loads((ENTRIES / "registration-entry.schema.json").read_text()) == SCHEMA


def test_the_examples_are_entries_that_fit_together() -> None:
    """Every example parses, and no two contradict."""
    examples = [
        RegistrationEntry.parse(json.loads(path.read_text())) for path in ENTRIES.glob("*.example.json")
    ]
    assert len(examples) >= 2
    check_entries(examples)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ([], "$"),
        ({"selectors": ["unix:uid:1"]}, "$"),
        ({"spiffeId": DESK}, "$"),
        ({"spiffeId": DESK, "selectors": []}, "$.selectors"),
        ({"spiffeId": DESK, "selectors": ["unix"]}, "$.selectors"),
        ({"spiffeId": DESK, "selectors": ["unix:uid:1\n"]}, "$.selectors"),
        ({"spiffeId": DESK, "selectors": ["unix:uid:1"], "dnsNames": ["*.mesh.test"]}, "$.dnsNames"),
        ({"spiffeId": DESK, "selectors": ["unix:uid:1"], "ttlSeconds": 604_741}, "$.ttlSeconds"),
        ({"spiffeId": DESK, "selectors": ["unix:uid:1"], "ttl": 60}, "$"),
        ({"spiffeId": f"{DESK}/../x", "selectors": ["unix:uid:1"]}, "$.spiffeId"),
        ({"spiffeId": f"{DESK}\n", "selectors": ["unix:uid:1"]}, "$.spiffeId"),
    ],
)
def test_an_ill_formed_entry_is_refused_by_field(data, field) -> None:
    """Each refusal begins with the field that is wrong."""
    with pytest.raises(InvalidEntry) as caught:
        RegistrationEntry.parse(data)
    assert str(caught.value).startswith(field)


@pytest.mark.parametrize(
    "other",
    [
        entry("billing", "unix:uid:1"),
        entry("billing", "unix:uid:1", "unix:gid:2"),
        entry("billing", "unix:uid:2", dns_names=("gateway.m.mesh.test",)),
    ],
    ids=["same-selectors", "more-selectors", "same-dns-name"],
)
def test_no_process_is_two_apps(other) -> None:
    """Two apps whose selectors overlap, or that share a DNS name, are refused."""
    desk = entry("desk", "unix:uid:1", dns_names=("gateway.m.mesh.test",))
    with pytest.raises(InvalidEntry):
        check_entries([desk, other])


def test_spire_gets_one_quoted_line_for_each_entry() -> None:
    """The lines hold every field, and a selector with shell characters stays one word."""
    agent = SpiffeId.parse("spiffe://mesh.test/spire/agent/join_token/abc")
    entries = [
        entry("gateway", "unix:uid:1", dns_names=("gateway.m.mesh.test",)),
        entry("desk", "unix:user:$(id)"),
    ]
    lines = [shlex.split(line) for line in spire_entries(entries, parent_id=agent).splitlines()]
    assert lines[0] == [
        "spire-server", "entry", "create", "-parentID", str(agent),
        "-spiffeID", "spiffe://mesh.test/ns/m/gateway", "-selector", "unix:uid:1",
        "-dns", "gateway.m.mesh.test", "-x509SVIDTTL", "3600",
    ]  # fmt: skip
    assert lines[1][7:9] == ["-selector", "unix:user:$(id)"]
