"""Who is the peer? One function from a certificate chain to a SPIFFE ID, strict at every step.

TLS alone is not SPIFFE: with several trust domains in one root pool any of their CAs can mint any
name, and TLS libraries accept two URI SANs, odd paths, missing key usages and year-long lives.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification as x509_verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshgate_identities.errors import AuthenticationFailed, InvalidSpiffeId
from meshgate_identities.spiffe_id import SpiffeId

MAX_LIFE = timedelta(days=7)  # ours: SPIFFE names no limit, and revocation is bounded by it
MIN_RSA_BITS = 2048  # NIST SP 800-131A
MAX_CHAIN = 4  # leaf and three intermediates
MAX_CACHED_PEERS = 4096
TLS_1_3 = ("TLSv1.3", "TLS1_3")  # the ways grpc spells it

Bundles = Mapping[str, Sequence[x509.Certificate]]


@dataclass(frozen=True, slots=True)
class VerifiedPeer:
    """What a certificate proved.

    Attributes:
        spiffe_id: the caller.
        serial_hex: the leaf's serial number.
        leaf_sha256: hex digest of the leaf's DER.
        not_after: the end of the leaf's life, aware.
    """

    spiffe_id: SpiffeId
    serial_hex: str
    leaf_sha256: str
    not_after: datetime


def verify_peer(
    *, chain_pem: bytes, bundles: Bundles, tls_version: str | None, now: datetime
) -> VerifiedPeer:
    """Checks TLS version, SAN, ID, chain, leaf rules, key strength and lifetime, in this order.

    Does not check revocation, nor whether the ID may do anything.

    Args:
        chain_pem: the peer's certificates, leaf first.
        bundles: trust domain to its CA certificates. An absent domain is not trusted.
        tls_version: as grpc's auth context names it.
        now: aware.

    Raises:
        AuthenticationFailed: carries a stable reason and a detail.
    """
    if tls_version not in TLS_1_3:
        raise AuthenticationFailed(reason="tls_version", detail=f"{tls_version} is not TLS 1.3")
    leaf, intermediates = _read_chain(chain_pem)
    spiffe_id = _only_spiffe_id(leaf)
    roots = bundles.get(spiffe_id.trust_domain)
    if not roots:
        raise AuthenticationFailed(
            reason="trust_domain_unknown", detail=f"no bundle for {spiffe_id.trust_domain!r}"
        )
    _check_leaf(leaf, now)
    _check_signed_by(leaf, intermediates, roots, now)
    return VerifiedPeer(
        spiffe_id=spiffe_id,
        serial_hex=f"{leaf.serial_number:x}",
        leaf_sha256=hashlib.sha256(leaf.public_bytes(Encoding.DER)).hexdigest(),
        not_after=leaf.not_valid_after_utc,
    )


def _read_chain(chain_pem: bytes) -> tuple[x509.Certificate, list[x509.Certificate]]:
    try:
        chain = x509.load_pem_x509_certificates(chain_pem)
    except ValueError as error:
        raise AuthenticationFailed(reason="certificate_unreadable", detail=str(error)) from error
    if len(chain) > MAX_CHAIN:
        raise AuthenticationFailed(reason="chain_too_long", detail=f"{len(chain)} certificates")
    return chain[0], chain[1:]


def _only_spiffe_id(leaf: x509.Certificate) -> SpiffeId:
    try:
        san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = san.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError) as error:
        raise AuthenticationFailed(reason="no_uri_san", detail=str(error)) from error
    if not uris:
        raise AuthenticationFailed(reason="no_uri_san", detail="no URI among the subject names")
    if len(uris) > 1:
        raise AuthenticationFailed(reason="two_uri_sans", detail=f"{len(uris)} URIs, one is allowed")
    try:
        return SpiffeId.parse(uris[0])
    except InvalidSpiffeId as error:
        raise AuthenticationFailed(reason="spiffe_id_invalid", detail=str(error)) from error


def _check_leaf(leaf: x509.Certificate, now: datetime) -> None:
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise AuthenticationFailed(reason="not_valid_now", detail=f"until {leaf.not_valid_after_utc}")
    if leaf.not_valid_after_utc - leaf.not_valid_before_utc > MAX_LIFE:
        raise AuthenticationFailed(reason="life_too_long", detail=f"more than {MAX_LIFE.days} days")
    _check_key(leaf)
    try:
        _check_extensions(leaf.extensions)
    except (x509.DuplicateExtension, ValueError) as error:
        raise AuthenticationFailed(reason="certificate_unreadable", detail=str(error)) from error


def _check_key(leaf: x509.Certificate) -> None:
    key = leaf.public_key()
    strong = (
        (isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS)
        or (isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp384r1"))
        or isinstance(key, ed25519.Ed25519PublicKey)
    )
    if not strong:
        raise AuthenticationFailed(reason="key_weak", detail=type(key).__name__)


def _check_extensions(extensions: x509.Extensions) -> None:
    """X.509-SVID §4: a leaf is no CA, signs nothing but handshakes, and may do both sides."""
    for extension in extensions:
        if isinstance(extension.value, x509.BasicConstraints) and extension.value.ca:
            raise AuthenticationFailed(reason="leaf_is_ca", detail="BasicConstraints CA:TRUE")
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound as error:
        raise AuthenticationFailed(reason="key_usage", detail="no KeyUsage") from error
    if not usage.critical or not usage.value.digital_signature:
        raise AuthenticationFailed(reason="key_usage", detail="not critical, or no digitalSignature")
    if usage.value.key_cert_sign or usage.value.crl_sign:
        raise AuthenticationFailed(reason="key_usage", detail="a leaf must not sign certificates or CRLs")
    try:
        extended = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return
    if not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH} <= extended:
        raise AuthenticationFailed(reason="extended_key_usage", detail="needs both auth usages")


def _check_signed_by(
    leaf: x509.Certificate,
    intermediates: list[x509.Certificate],
    roots: Sequence[x509.Certificate],
    now: datetime,
) -> None:
    policy = x509_verification.ExtensionPolicy.permit_all()
    verifier = (
        x509_verification.PolicyBuilder()
        .store(x509_verification.Store(list(roots)))
        .time(now)
        .max_chain_depth(MAX_CHAIN)
        .extension_policies(
            ca_policy=x509_verification.ExtensionPolicy.webpki_defaults_ca(), ee_policy=policy
        )
        .build_client_verifier()
    )
    try:
        verifier.verify(leaf, intermediates)
    except x509_verification.VerificationError as error:
        raise AuthenticationFailed(reason="chain", detail=str(error)) from error


class PeerVerifier:
    """`verify_peer` with a memory of leaves that passed, forgotten when the bundles change.

    Safe for threads: the memory is one dict, replaced whole and written under the GIL; a lost
    update costs one more verification.
    """

    def __init__(self, *, bundles: Callable[[], Bundles], clock: Callable[[], datetime]) -> None:
        self._bundles = bundles
        self._clock = clock
        self._seen_bundles: Bundles | None = None
        self._passed: dict[bytes, VerifiedPeer] = {}

    def verify(self, *, chain_pem: bytes, tls_version: str | None) -> VerifiedPeer:
        """As `verify_peer`.

        Raises:
            AuthenticationFailed: as there.
        """
        bundles, now = self._bundles(), self._clock()
        if bundles is not self._seen_bundles or len(self._passed) > MAX_CACHED_PEERS:
            self._passed, self._seen_bundles = {}, bundles
        known = self._passed.get(chain_pem)
        if known and now <= known.not_after and tls_version in TLS_1_3:
            return known
        peer = verify_peer(chain_pem=chain_pem, bundles=bundles, tls_version=tls_version, now=now)
        self._passed[chain_pem] = peer
        return peer
