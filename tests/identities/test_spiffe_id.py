"""SPIFFE IDs are read strictly."""

import pytest
from meshgate_identities.errors import InvalidSpiffeId
from meshgate_identities.spiffe_id import SpiffeId


def test_reads_an_id() -> None:
    """A well-formed ID gives its parts back."""
    found = SpiffeId.parse("spiffe://desk.example/ns/mesh/billing")
    assert (found.trust_domain, found.namespace, found.app) == ("desk.example", "mesh", "billing")
    assert str(found) == "spiffe://desk.example/ns/mesh/billing"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe://desk.example",
        "spiffe://desk.example/",
        "spiffe:///ns/a/b",
        "SPIFFE://desk.example/a",
        "https://desk.example/a",
        "spiffe://Desk.example/a",
        "spiffe://desk.example/a/",
        "spiffe://desk.example//a",
        "spiffe://desk.example/a/../b",
        "spiffe://desk.example/./a",
        "spiffe://desk.example/%69",
        "spiffe://desk.example/a?x=1",
        "spiffe://desk.example/a#b",
        "spiffe://desk.example/a\n",
        "spiffe://desk.example\n/a",
        "spiffe://desk.example:443/a",
        "spiffe://user@desk.example/a",
        "spiffe://desk.example/ä",
        "spiffe://desk.example/" + "a" * 2048,
        "spiffe://" + "a" * 256 + "/a",
    ],
)
def test_refuses_everything_else(text: str) -> None:
    """Each breaks one clause of the specification."""
    with pytest.raises(InvalidSpiffeId):
        SpiffeId.parse(text)
