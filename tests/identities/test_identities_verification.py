"""The strict check: the whole table, and what no table holds."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fakes.bad_svids import AGENT, TRUST_DOMAIN, good, rows
from fakes.certificates import Credential, authority, dns, make, rsa_of, signed, uri, with_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from meshgate_identities.errors import AuthenticationFailed
from meshgate_identities.verification import PeerVerifier, VerifiedPeer, verify_peer

CA = authority(TRUST_DOMAIN)
OTHER_CA = authority("other.test")
BUNDLES = {TRUST_DOMAIN: [CA.certificate], "other.test": [OTHER_CA.certificate]}
ROWS = rows(CA)
GOOD = good(CA)


def verify(chain_pem: bytes, **changed: object) -> VerifiedPeer:
    fields = {"bundles": {TRUST_DOMAIN: [CA.certificate]}, "tls_version": "TLSv1.3", "now": datetime.now(UTC)}
    return verify_peer(chain_pem=chain_pem, **{**fields, **changed})


def refusal(chain_pem: bytes, **changed: object) -> str:
    with pytest.raises(AuthenticationFailed) as caught:
        verify(chain_pem, **changed)
    return caught.value.reason


def san_only(text: str) -> Credential:
    return make(names=[uri(text)], signer=CA)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_each_row_of_the_table_gets_its_verdict(row) -> None:
    """Every certificate of the table is refused for its own reason, or accepted as its agent."""
    if row.reason:
        assert refusal(row.credential.chain_pem) == row.reason
    else:
        assert str(verify(row.credential.chain_pem).spiffe_id) == AGENT


def test_the_table_is_whole() -> None:
    """33 certificates; TLS alone takes 23 of them, both layers two."""
    assert len({row.id for row in ROWS}) == 33
    assert sum(row.grpcio for row in ROWS) == 23
    assert [row.id for row in ROWS if row.accepted] == ["legal-no-extended-usage", "legal-p384"]


def test_a_peer_is_described_by_its_leaf() -> None:
    """The answer names the ID, serial, digest and end of the leaf."""
    peer = verify(GOOD.chain_pem)
    leaf = GOOD.certificate
    assert str(peer.spiffe_id) == AGENT
    assert peer.serial_hex == f"{leaf.serial_number:x}"
    assert len(peer.leaf_sha256) == 64
    assert peer.not_after == leaf.not_valid_after_utc


@pytest.mark.parametrize("version", [None, "", "TLSv1.2", "TLSv1.3 ", "TLSv1"])
def test_only_tls_1_3_counts(version) -> None:
    """An older, unknown or unnamed TLS version is refused, whatever the certificate."""
    assert refusal(GOOD.chain_pem, tls_version=version) == "tls_version"


def test_a_ca_of_another_trust_domain_proves_nothing_here() -> None:
    """With both bundles trusted, the other domain's CA cannot mint an agent of ours."""
    forged = make(names=[uri(AGENT)], signer=OTHER_CA)
    assert refusal(forged.chain_pem, bundles=BUNDLES) == "chain"
    theirs = make(names=[uri("spiffe://other.test/ns/m/desk")], signer=OTHER_CA)
    assert str(verify(theirs.chain_pem, bundles=BUNDLES).spiffe_id.trust_domain) == "other.test"


@pytest.mark.parametrize("bundles", [{}, {TRUST_DOMAIN: []}, {"other.test": [OTHER_CA.certificate]}])
def test_an_absent_or_empty_bundle_trusts_nobody(bundles) -> None:
    """Without CAs for the leaf's own domain there is nothing to trust."""
    assert refusal(GOOD.chain_pem, bundles=bundles) == "trust_domain_unknown"


@pytest.mark.parametrize(
    "text",
    [f"{AGENT}\n", f"spiffe://{TRUST_DOMAIN}\n/a", f"{AGENT}/{'a' * 2048}", f"SPIFFE://{TRUST_DOMAIN}/a"],
)
def test_the_raw_uri_is_what_is_parsed(text) -> None:
    """Newlines, oversize and case that parsers fold away are refused."""
    assert refusal(san_only(text).chain_pem) == "spiffe_id_invalid"


def test_a_key_usage_must_be_critical() -> None:
    """X.509-SVID asks for a critical KeyUsage."""
    soft = make(names=[uri(AGENT)], signer=CA, usage_critical=False)
    assert refusal(soft.chain_pem) == "key_usage"


def test_seven_days_are_the_longest_life() -> None:
    """Seven days pass, a second more does not."""
    week = timedelta(days=7)
    assert verify(make(names=[uri(AGENT)], signer=authority_of_a_month(), life=week).chain_pem, **MONTH)
    longer = make(names=[uri(AGENT)], signer=authority_of_a_month(), life=week + timedelta(seconds=1))
    assert refusal(longer.chain_pem, **MONTH) == "life_too_long"


MONTH_CA = authority(TRUST_DOMAIN, life=timedelta(days=30))
MONTH = {"bundles": {TRUST_DOMAIN: [MONTH_CA.certificate]}}


def authority_of_a_month() -> Credential:
    return MONTH_CA


def test_rsa_of_2048_bits_is_enough() -> None:
    """The limit itself passes."""
    assert verify(make(names=[uri(AGENT)], signer=CA, key=rsa_of(2048)).chain_pem)


def test_dns_names_and_an_empty_subject_are_legal() -> None:
    """A DNS SAN beside the URI and a critical SAN under an empty subject are allowed."""
    leaf = make(names=[uri(AGENT), dns("gateway.m.mesh.test")], signer=CA, subject=None)
    assert str(verify(leaf.chain_pem).spiffe_id) == AGENT


def test_a_chain_through_an_intermediate_is_followed() -> None:
    """An intermediate of the same domain is accepted when it is sent, and only then."""
    middle = authority(TRUST_DOMAIN, signer=CA, name="middle")
    leaf = make(names=[uri(AGENT)], signer=middle)
    assert refusal(leaf.chain_pem) == "chain"
    sent = Credential(leaf.certificate, leaf.key, (middle.certificate,))
    assert str(verify(sent.chain_pem).spiffe_id) == AGENT


def test_long_chains_are_not_even_tried() -> None:
    """More certificates than a chain may have are refused at once."""
    padded = Credential(GOOD.certificate, GOOD.key, (CA.certificate,) * 4)
    assert refusal(padded.chain_pem) == "chain_too_long"


@pytest.mark.parametrize(
    "chain", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_what_is_no_certificate_is_refused(chain) -> None:
    """Nothing, noise and broken DER are refusals, not faults."""
    assert refusal(chain) == "certificate_unreadable"


def test_two_subject_alternative_names_are_refused() -> None:
    """A second SAN extension, which libraries read differently, is refused."""
    twin = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), b"\x30\x00")
    leaf = make(names=[uri(AGENT)], signer=CA, extra=[(twin, False)])
    patched = with_bytes(leaf, CA, bytes.fromhex("0603551d63"), bytes.fromhex("0603551d11"))
    assert refusal(patched.chain_pem) == "certificate_unreadable"


def test_a_name_of_unknown_kind_is_refused() -> None:
    """A SAN that the parser cannot read whole is refused, though its URI is fine."""
    leaf = make(names=[uri(AGENT), dns("ab.mesh.test")], signer=CA)
    # Tag [2] dNSName becomes [5] ediPartyName, which nothing here reads.
    patched = with_bytes(leaf, CA, b"\x82\x0cab.mesh.test", b"\xa5\x0cab.mesh.test")
    assert refusal(patched.chain_pem) == "certificate_unreadable"


def test_a_uri_outside_ascii_is_refused() -> None:
    """A URI SAN with bytes above 127 is refused, not decoded."""
    patched = with_bytes(san_only(f"{AGENT}XX"), CA, b"deskXX", b"desk\xc3\xa4")
    assert refusal(patched.chain_pem) in ("certificate_unreadable", "spiffe_id_invalid")


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=400, deadline=None)
@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_no_changed_byte_changes_who_it_is(position, mask) -> None:
    """With any one byte changed it is refused; or its signature alone is written another way."""
    raw = bytearray(GOOD.certificate.public_bytes(Encoding.DER))
    raw[position % len(raw)] ^= mask
    try:
        peer = verify(pem(bytes(raw)))
    except AuthenticationFailed:
        return
    body = GOOD.certificate.tbs_certificate_bytes
    assert body in raw
    assert (str(peer.spiffe_id), peer.serial_hex) == (AGENT, f"{GOOD.certificate.serial_number:x}")


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=400, deadline=None)
@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_an_odd_certificate_of_a_trusted_ca_is_no_fault(position, mask) -> None:
    """Even one that the CA signed is accepted or refused, and nothing else."""
    body = bytearray(GOOD.certificate.tbs_certificate_bytes)
    body[position % len(body)] ^= mask
    try:
        peer = verify(pem(signed(bytes(body), CA)))
    except AuthenticationFailed:
        return
    assert peer.spiffe_id.trust_domain == TRUST_DOMAIN


def pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


class Bundles:
    """Bundles that a test replaces."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)
        self.current = {TRUST_DOMAIN: (CA.certificate,)}

    def verifier(self) -> PeerVerifier:
        return PeerVerifier(bundles=lambda: self.current, clock=lambda: self.now)


def test_the_memory_answers_the_same_peer() -> None:
    """A chain that passed is answered from memory: the very same object."""
    verifier = Bundles().verifier()
    first = verifier.verify(chain_pem=GOOD.chain_pem, tls_version="TLSv1.3")
    assert verifier.verify(chain_pem=GOOD.chain_pem, tls_version="TLSv1.3") is first


def test_the_memory_ends_with_the_bundle() -> None:
    """A removed bundle refuses a peer that passed before, at once."""
    bundles = Bundles()
    verifier = bundles.verifier()
    verifier.verify(chain_pem=GOOD.chain_pem, tls_version="TLSv1.3")
    bundles.current = {}
    with pytest.raises(AuthenticationFailed) as caught:
        verifier.verify(chain_pem=GOOD.chain_pem, tls_version="TLSv1.3")
    assert caught.value.reason == "trust_domain_unknown"


def test_the_memory_ends_with_the_leaf() -> None:
    """A leaf that passed is refused once it has expired."""
    bundles = Bundles()
    verifier = bundles.verifier()
    verifier.verify(chain_pem=GOOD.chain_pem, tls_version="TLSv1.3")
    bundles.now = GOOD.certificate.not_valid_after_utc + timedelta(seconds=1)
    with pytest.raises(AuthenticationFailed) as caught:
        verifier.verify(chain_pem=GOOD.chain_pem, tls_version="TLSv1.3")
    assert caught.value.reason == "not_valid_now"


def test_the_memory_ends_with_an_intermediate() -> None:
    """An intermediate that expires before its leaf takes the leaf with it."""
    middle = authority(TRUST_DOMAIN, signer=CA, name="middle", life=timedelta(minutes=10))
    leaf = make(names=[uri(AGENT)], signer=middle)
    chain = Credential(leaf.certificate, leaf.key, (middle.certificate,)).chain_pem
    bundles = Bundles()
    verifier = bundles.verifier()
    verifier.verify(chain_pem=chain, tls_version="TLSv1.3")
    bundles.now += timedelta(minutes=30)
    with pytest.raises(AuthenticationFailed) as caught:
        verifier.verify(chain_pem=chain, tls_version="TLSv1.3")
    assert caught.value.reason == "chain"


def test_the_memory_does_not_forgive_an_old_tls() -> None:
    """A remembered chain over TLS 1.2 is refused."""
    verifier = Bundles().verifier()
    verifier.verify(chain_pem=GOOD.chain_pem, tls_version="TLSv1.3")
    with pytest.raises(AuthenticationFailed) as caught:
        verifier.verify(chain_pem=GOOD.chain_pem, tls_version="TLSv1.2")
    assert caught.value.reason == "tls_version"
