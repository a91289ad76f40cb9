"""The layered check of a peer's certificate, one broken rule at a time."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID as Eku
from fakes.certificates import leaf, usage, weak_rsa
from meshgate_identities.authority import DevelopmentAuthority
from meshgate_identities.errors import AuthenticationFailed
from meshgate_identities.verification import verify_peer

ID = "spiffe://desk.example/ns/m/a"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentAuthority:
    """The trust domain's own authority."""
    return DevelopmentAuthority(directory=tmp_path_factory.mktemp("ca"), trust_domain="desk.example")


def _verify(authority: DevelopmentAuthority, pem: bytes, tls: str = "TLSv1.3") -> str:
    bundles = {"desk.example": [authority.root]}
    peer = verify_peer(chain_pem=pem, bundles=bundles, tls_version=tls, now=datetime.now(UTC))
    return str(peer.spiffe_id)


CASES = {
    "two_uri_sans": ([ID, "spiffe://desk.example/ns/m/b"], {}),
    "two_uri_sans_https": ([ID, "https://desk.example"], {}),
    "no_uri_san": ([], {}),
    "no_uri_san_dns": ([], {"dns": ["desk.example"]}),
    "spiffe_id_invalid_dots": (["spiffe://desk.example/ns/../a"], {}),
    "spiffe_id_invalid_slashes": (["spiffe://desk.example//a"], {}),
    "spiffe_id_invalid_percent": (["spiffe://desk.example/%69"], {}),
    "spiffe_id_invalid_query": (["spiffe://desk.example/a?x=1"], {}),
    "spiffe_id_invalid_trailing": (["spiffe://desk.example/a/"], {}),
    "spiffe_id_invalid_nopath": (["spiffe://desk.example"], {}),
    "spiffe_id_invalid_case": (["spiffe://DESK.example/a"], {}),
    "spiffe_id_invalid_scheme": (["https://desk.example/a"], {}),
    "spiffe_id_invalid_port": (["spiffe://desk.example:1/a"], {}),
    "trust_domain_unknown": (["spiffe://other.example/a"], {}),
    "not_valid_now_expired": ([ID], {"starts": timedelta(hours=-2)}),
    "not_valid_now_future": ([ID], {"starts": timedelta(hours=2)}),
    "life_too_long": ([ID], {"life": timedelta(days=1000)}),
    "key_weak": ([ID], {"key": weak_rsa()}),
    "leaf_is_ca": ([ID], {"ca": True}),
    "key_usage_certsign": ([ID], {"key_usage": usage(key_cert_sign=True)}),
    "key_usage_crlsign": ([ID], {"key_usage": usage(crl_sign=True)}),
    "key_usage_none": ([ID], {"key_usage": None}),
    "key_usage_nosign": ([ID], {"key_usage": usage(digital_signature=False, key_agreement=True)}),
    "extended_key_usage_server": ([ID], {"eku": [Eku.SERVER_AUTH]}),
    "extended_key_usage_code": ([ID], {"eku": [Eku.CODE_SIGNING]}),
}


@pytest.mark.parametrize("name", CASES)
def test_refuses_a_bad_certificate(authority: DevelopmentAuthority, name: str) -> None:
    """Each certificate is under a trusted root and breaks one rule; the reason names it."""
    uris, options = CASES[name]
    pem, _ = leaf(authority, *uris, **options)
    with pytest.raises(AuthenticationFailed) as caught:
        _verify(authority, pem)
    assert name.startswith(caught.value.reason)


@pytest.mark.parametrize("options", [{}, {"eku": None}, {"key": ec.generate_private_key(ec.SECP384R1())}])
def test_accepts_a_good_certificate(authority: DevelopmentAuthority, options: dict[str, object]) -> None:
    """Legal variants pass."""
    pem, _ = leaf(authority, ID, **options)
    assert _verify(authority, pem) == ID


def test_refuses_another_authority(authority: DevelopmentAuthority, tmp_path: Path) -> None:
    """Another root may carry the domain's name and still proves nothing."""
    impostor = DevelopmentAuthority(directory=tmp_path, trust_domain="desk.example")
    pem, _ = leaf(impostor, ID)
    with pytest.raises(AuthenticationFailed, match="chain"):
        _verify(authority, pem)


def test_chain_is_checked_in_the_leafs_own_domain(authority: DevelopmentAuthority, tmp_path: Path) -> None:
    """A trusted authority of one domain cannot mint an identity of another."""
    other = DevelopmentAuthority(directory=tmp_path, trust_domain="other.example")
    pem, _ = leaf(other, ID)
    bundles = {"desk.example": [authority.root], "other.example": [other.root]}
    with pytest.raises(AuthenticationFailed, match="chain"):
        verify_peer(chain_pem=pem, bundles=bundles, tls_version="TLSv1.3", now=datetime.now(UTC))


@pytest.mark.parametrize("version", ["TLSv1.2", None])
def test_refuses_old_tls(authority: DevelopmentAuthority, version: str) -> None:
    """Only TLS 1.3 will do."""
    pem, _ = leaf(authority, ID)
    with pytest.raises(AuthenticationFailed, match="tls_version"):
        _verify(authority, pem, version)
