"""The development authority: what it issues, what it keeps, what it refuses."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key
from fakes.certificates import authority as other_root
from meshgate_identities.authority import DevelopmentAuthority
from meshgate_identities.errors import AuthorityUnusable, InvalidSpiffeId
from meshgate_identities.spiffe_id import SpiffeId
from spiffe import X509Svid

DESK = SpiffeId.parse("spiffe://mesh.test/ns/m/desk")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state" / "ca" / "spiffe"


def test_an_svid_has_the_promised_shape(folder) -> None:
    """P-256, one URI SAN, critical digitalSignature alone, both usages, an hour; py-spiffe reads it."""
    issued = DevelopmentAuthority(directory=folder, trust_domain="mesh.test").issue(
        spiffe_id=DESK, dns_names=["gateway.m.mesh.test"]
    )
    leaf = x509.load_der_x509_certificate(issued.chain_der)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [str(DESK)]
    assert names.get_values_for_type(x509.DNSName) == ["gateway.m.mesh.test"]
    assert usage.critical
    assert usage.value.digital_signature
    assert [usage.value.key_cert_sign, usage.value.crl_sign, usage.value.key_encipherment] == [False] * 3
    assert len(list(extended)) == 2
    assert leaf.public_key().curve.name == "secp256r1"
    assert leaf.public_key() == load_der_private_key(issued.key_der, None).public_key()
    assert issued.not_after - datetime.now(UTC) <= timedelta(hours=1)
    assert str(X509Svid.parse_raw(issued.chain_der, issued.key_der).spiffe_id) == str(DESK)


def test_state_is_for_its_owner_only(folder) -> None:
    """Folders that had to be made are 0700, the key and the certificate 0600."""
    DevelopmentAuthority(directory=folder, trust_domain="mesh.test")
    assert [each.stat().st_mode & 0o777 for each in (folder, folder.parent, folder.parent.parent)] == [
        0o700
    ] * 3
    assert {each.name: each.stat().st_mode & 0o777 for each in folder.iterdir()} == {
        "root.crt": 0o600,
        "root.key": 0o600,
    }


def test_an_open_folder_is_closed(folder) -> None:
    """A folder that was there with wider rights is narrowed."""
    folder.mkdir(mode=0o755, parents=True)
    DevelopmentAuthority(directory=folder, trust_domain="mesh.test")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_root_is_kept(folder) -> None:
    """A second start issues under the same root."""
    first = DevelopmentAuthority(directory=folder, trust_domain="mesh.test")
    assert DevelopmentAuthority(directory=folder, trust_domain="mesh.test").bundle_der == first.bundle_der


def test_a_half_made_root_is_made_again(folder) -> None:
    """A key without a certificate, left by a crash, is replaced by a whole root."""
    first = DevelopmentAuthority(directory=folder, trust_domain="mesh.test").bundle_der
    (folder / "root.crt").unlink()
    assert DevelopmentAuthority(directory=folder, trust_domain="mesh.test").bundle_der != first


def test_the_root_of_another_domain_is_not_used(folder) -> None:
    """A changed trust domain is an error that names the folder to remove."""
    DevelopmentAuthority(directory=folder, trust_domain="mesh.test")
    with pytest.raises(AuthorityUnusable, match=str(folder)):
        DevelopmentAuthority(directory=folder, trust_domain="other.test")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "root.crt").write_text("nonsense"),
        lambda folder: (folder / "root.key").write_bytes(other_root("mesh.test").key_pem),
        lambda folder: (folder / "root.key").unlink(),
        lambda folder: replace_root(folder, other_root("mesh.test", life=timedelta(days=2))),
    ],
    ids=["unreadable", "foreign-key", "no-key", "ends-soon"],
)
def test_a_damaged_root_is_not_used(folder, change) -> None:
    """A root that cannot be read, has another's key or ends within a week is an error."""
    DevelopmentAuthority(directory=folder, trust_domain="mesh.test")
    change(folder)
    with pytest.raises(AuthorityUnusable):
        DevelopmentAuthority(directory=folder, trust_domain="mesh.test")


def replace_root(folder, root) -> None:
    (folder / "root.crt").write_bytes(root.chain_pem)
    (folder / "root.key").write_bytes(root.key_pem)


@pytest.mark.parametrize("domain", ["", "Mesh.test", "mesh.test/x", "mesh.test\n"])
def test_a_trust_domain_must_be_one(folder, domain) -> None:
    """What is no trust domain makes no root."""
    with pytest.raises(InvalidSpiffeId):
        DevelopmentAuthority(directory=folder, trust_domain=domain)
    assert not folder.exists()


@pytest.mark.parametrize("ttl", [timedelta(0), timedelta(seconds=-1), timedelta(days=7)])
def test_no_life_is_issued_that_would_be_refused(folder, ttl) -> None:
    """Lives of nothing and of more than verification takes are refused."""
    with pytest.raises(ValueError, match="life"):
        DevelopmentAuthority(directory=folder, trust_domain="mesh.test").issue(spiffe_id=DESK, ttl=ttl)


def test_nothing_is_issued_for_another_domain(folder) -> None:
    """An ID outside the trust domain is refused."""
    with pytest.raises(ValueError, match="outside"):
        DevelopmentAuthority(directory=folder, trust_domain="other.test").issue(spiffe_id=DESK)
