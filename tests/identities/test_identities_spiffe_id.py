"""SPIFFE IDs are read strictly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshgate_identities.errors import InvalidSpiffeId
from meshgate_identities.spiffe_id import SpiffeId

DOMAIN_255 = "a" * 255
PATH_2048 = "/" + "p" * (2048 - len("spiffe://mesh.test/"))


@pytest.mark.parametrize(
    ("text", "trust_domain", "path"),
    [
        ("spiffe://mesh.test/ns/m/desk", "mesh.test", "/ns/m/desk"),
        ("spiffe://a_b-c.9/X.y_z-0", "a_b-c.9", "/X.y_z-0"),
        ("spiffe://mesh.test/...", "mesh.test", "/..."),
        (f"spiffe://{DOMAIN_255}/a", DOMAIN_255, "/a"),
        (f"spiffe://mesh.test{PATH_2048}", "mesh.test", PATH_2048),
    ],
)
def test_legal_ids_are_read_as_they_stand(text, trust_domain, path) -> None:
    """Legal IDs, limits included, keep every character."""
    assert SpiffeId.parse(text) == SpiffeId(trust_domain, path)
    assert str(SpiffeId.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "clause"),
    [
        ("", "§2:"),
        ("mesh.test/a", "§2:"),
        ("SPIFFE://mesh.test/a", "§2:"),
        ("https://mesh.test/a", "§2:"),
        (" spiffe://mesh.test/a", "§2:"),
        ("spiffe:/mesh.test/a", "§2:"),
        ("spiffe:///a", "§2.1"),
        ("spiffe://Mesh.test/a", "§2.1"),
        ("spiffe://mesh.test:8080/a", "§2.1"),
        ("spiffe://u@mesh.test/a", "§2.1"),
        ("spiffe://mesh%2etest/a", "§2.1"),
        ("spiffe://mesh.test\n/a", "§2.1"),
        ("spiffe://mesh.tést/a", "§2.1"),
        (f"spiffe://{DOMAIN_255}a/a", "§2.1"),
        ("spiffe://mesh.test?x=1", "§2.1"),
        ("spiffe://mesh.test", "X.509-SVID"),
        ("spiffe://mesh.test/", "§2.2"),
        ("spiffe://mesh.test/a/", "§2.2"),
        ("spiffe://mesh.test//a", "§2.2"),
        ("spiffe://mesh.test/./a", "§2.2"),
        ("spiffe://mesh.test/a/..", "§2.2"),
        ("spiffe://mesh.test/a%20b", "§2.2"),
        ("spiffe://mesh.test/a?x=1", "§2.2"),
        ("spiffe://mesh.test/a#f", "§2.2"),
        ("spiffe://mesh.test/a\n", "§2.2"),
        ("spiffe://mesh.test/a\0", "§2.2"),
        ("spiffe://mesh.test/а", "§2.2"),  # noqa: RUF001 - a Cyrillic letter is the point
        ("spiffe://mesh.test/\ud800", "§2.2"),
        (f"spiffe://mesh.test{PATH_2048}p", "§2.3"),
    ],
)
def test_illegal_ids_are_refused_with_their_clause(text, clause) -> None:
    """Each refusal cites the rule that the text breaks."""
    with pytest.raises(InvalidSpiffeId) as caught:
        SpiffeId.parse(text)
    assert clause in caught.value.clause
    assert caught.value.text == text


@given(st.text() | st.text(alphabet="spiffe:/.a-_B%\n", max_size=40).map("spiffe://".__add__))
def test_what_is_read_is_what_was_written(text) -> None:
    """Parsing either refuses or keeps the text, character by character."""
    try:
        parsed = SpiffeId.parse(text)
    except InvalidSpiffeId:
        return
    assert str(parsed) == text


def test_an_app_is_named_by_its_path() -> None:
    """`/ns/<namespace>/<app>` gives both names; another shape has no namespace."""
    desk = SpiffeId.of_app(trust_domain="mesh.test", namespace="m", app="desk")
    assert (desk.namespace, desk.app) == ("m", "desk")
    assert SpiffeId.parse("spiffe://mesh.test/ns/m/desk/more").namespace == ""


@pytest.mark.parametrize(
    "parts", [("t", "m", "a/b"), ("t", "m/n", "a"), ("t/ns", "m", "a"), ("t", "m", ""), ("t", "", "a")]
)
def test_no_part_of_an_app_id_slips_into_the_next(parts) -> None:
    """A slash within a part, or an empty part, makes no ID."""
    with pytest.raises(InvalidSpiffeId):
        SpiffeId.of_app(trust_domain=parts[0], namespace=parts[1], app=parts[2])
