"""A certificate authority for one machine: the root of the development Workload API."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshgate_identities.errors import AuthorityUnusable
from meshgate_identities.spiffe_id import SCHEME, SpiffeId
from meshgate_identities.verification import MAX_LIFE

ROOT_LIFE = timedelta(days=3650)
SVID_LIFE = timedelta(hours=1)
BACKDATE = timedelta(seconds=60)  # for clocks that run behind


@dataclass(frozen=True, slots=True)
class IssuedSvid:
    """A fresh X.509-SVID.

    Attributes:
        spiffe_id: its one URI SAN.
        chain_der: the leaf's DER; the root signs it directly, so there is no intermediate.
        key_der: PKCS#8 DER, not encrypted.
        not_after: the end of its life, aware.
    """

    spiffe_id: SpiffeId
    chain_der: bytes
    key_der: bytes
    not_after: datetime


class DevelopmentAuthority:
    """Issues P-256 SVIDs under a root kept in `directory` (0700, key 0600).

    The root is made once and kept: what an earlier start issued stays verifiable.

    Raises:
        AuthorityUnusable: the root on disk is of another trust domain, has expired, or its two
            files do not belong together.
    """

    def __init__(self, *, directory: Path, trust_domain: str) -> None:
        SpiffeId.of_app(trust_domain=trust_domain, namespace="any", app="any")  # refuses bad domains
        self.trust_domain = trust_domain
        self._directory = directory
        make_private_directory(directory)
        if not (directory / "root.crt").exists():
            self._make_root()
        self._root, self._key = self._load()

    @property
    def bundle_der(self) -> bytes:
        """The trust domain's bundle: the root's DER."""
        return self._root.public_bytes(Encoding.DER)

    @property
    def root(self) -> x509.Certificate:
        """The root certificate."""
        return self._root

    def issue(
        self, *, spiffe_id: SpiffeId, dns_names: Sequence[str] = (), ttl: timedelta = SVID_LIFE
    ) -> IssuedSvid:
        """Issues one SVID with a key of its own. Does not check who asks.

        Raises:
            ValueError: the ID lies outside our trust domain, or no verifier would take the life.
        """
        if spiffe_id.trust_domain != self.trust_domain:
            raise ValueError(f"{spiffe_id} lies outside {self.trust_domain}")
        if not timedelta(0) < ttl <= MAX_LIFE - BACKDATE:
            raise ValueError(f"a life of {ttl} is not within 0 to {MAX_LIFE - BACKDATE}")
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(spiffe_id))]
        names += [x509.DNSName(name) for name in dns_names]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "meshgate")]))
            .issuer_name(self._root.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(now + ttl)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return IssuedSvid(
            spiffe_id=spiffe_id,
            chain_der=leaf.public_bytes(Encoding.DER),
            key_der=key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
            not_after=leaf.not_valid_after_utc,
        )

    def _load(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        advice = f"remove {self._directory} to make a new root"
        try:
            root = x509.load_pem_x509_certificate((self._directory / "root.crt").read_bytes())
            key = load_pem_private_key((self._directory / "root.key").read_bytes(), None)
            san = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, TypeError, x509.ExtensionNotFound) as error:
            raise AuthorityUnusable(f"the root cannot be read ({error}); {advice}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or root.public_key() != key.public_key():
            raise AuthorityUnusable(f"root.key does not belong to root.crt; {advice}")
        if san.get_values_for_type(x509.UniformResourceIdentifier) != [f"{SCHEME}{self.trust_domain}"]:
            raise AuthorityUnusable(f"root.crt is not of trust domain {self.trust_domain}; {advice}")
        if root.not_valid_after_utc <= datetime.now(UTC) + MAX_LIFE:
            raise AuthorityUnusable(f"root.crt ends {root.not_valid_after_utc}; {advice}")
        return root, key

    def _make_root(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        name = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, f"meshgate development root {self.trust_domain}")]
        )
        uri = x509.UniformResourceIdentifier(f"{SCHEME}{self.trust_domain}")
        root = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(now + ROOT_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        # The key first: a certificate without its key would look like a finished root.
        write_private(self._directory / "root.key", pem)
        write_private(self._directory / "root.crt", root.public_bytes(Encoding.PEM))


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def make_private_directory(path: Path) -> None:
    """Makes a folder, and whatever is missing above it, for its owner only."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
    path.chmod(0o700)


def write_private(path: Path, data: bytes) -> None:
    """Writes a file that only its owner reads, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
