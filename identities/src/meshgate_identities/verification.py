"""Who is the peer? One function from a certificate chain to a SPIFFE ID, strict at every step.

TLS alone is not SPIFFE: with several trust domains in one root pool any of their CAs can mint any
name, and TLS libraries accept two URI SANs, odd paths, missing key usages and year-long lives.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
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
        leaf_sha256: hex digest of the leaf's DER, for records. Nothing to revoke by: a holder can
            write an ECDSA signature another way without breaking it. The serial number is signed.
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
    return _verify(chain_pem, bundles, tls_version, now)[0]


def spiffe_id_of(leaf: x509.Certificate) -> SpiffeId:
    """Reads the one URI SAN of a certificate, from the raw text. Proves nothing about its signer.

    Raises:
        AuthenticationFailed: there is no URI, more than one, or it is no SPIFFE ID of a workload.
    """
    try:
        san = _extensions(leaf).get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise AuthenticationFailed(reason="no_uri_san", detail="no subject alternative name") from error
    uris = san.get_values_for_type(x509.UniformResourceIdentifier)
    if not uris:
        raise AuthenticationFailed(reason="no_uri_san", detail="no URI among the subject names")
    if len(uris) > 1:  # X.509-SVID §2: exactly one, whatever the others say
        raise AuthenticationFailed(reason="two_uri_sans", detail=f"{len(uris)} URIs, one is allowed")
    try:
        return SpiffeId.parse(uris[0])
    except InvalidSpiffeId as error:
        raise AuthenticationFailed(reason="spiffe_id_invalid", detail=str(error)) from error


def _verify(
    chain_pem: bytes, bundles: Bundles, tls_version: str | None, now: datetime
) -> tuple[VerifiedPeer, datetime]:
    """The peer, and when the first certificate between it and its root ends."""
    if tls_version not in TLS_1_3:
        raise AuthenticationFailed(reason="tls_version", detail=f"{tls_version} is not TLS 1.3")
    leaf, intermediates = _read_chain(chain_pem)
    spiffe_id = spiffe_id_of(leaf)
    # Only the CAs of the domain that the leaf names: in one pool any of them could mint any name.
    roots = bundles.get(spiffe_id.trust_domain)
    if not roots:
        raise AuthenticationFailed(
            reason="trust_domain_unknown", detail=f"no bundle for {spiffe_id.trust_domain!r}"
        )
    _check_time(leaf, now)
    good_until = _check_signed_by(leaf, intermediates, roots, now)
    _check_usages(_extensions(leaf))
    _check_key(leaf)
    peer = VerifiedPeer(
        spiffe_id=spiffe_id,
        serial_hex=f"{leaf.serial_number:x}",
        leaf_sha256=hashlib.sha256(leaf.public_bytes(Encoding.DER)).hexdigest(),
        not_after=leaf.not_valid_after_utc,
    )
    return peer, good_until


def _read_chain(chain_pem: bytes) -> tuple[x509.Certificate, list[x509.Certificate]]:
    try:
        chain = x509.load_pem_x509_certificates(chain_pem)
    except (x509.InvalidVersion, ValueError) as error:
        raise AuthenticationFailed(reason="certificate_unreadable", detail=str(error)) from error
    if len(chain) > MAX_CHAIN:
        raise AuthenticationFailed(reason="chain_too_long", detail=f"{len(chain)} certificates")
    return chain[0], chain[1:]


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    try:
        return certificate.extensions
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError, TypeError) as error:
        raise AuthenticationFailed(reason="certificate_unreadable", detail=str(error)) from error


def _check_time(leaf: x509.Certificate, now: datetime) -> None:
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        detail = f"from {leaf.not_valid_before_utc} until {leaf.not_valid_after_utc}"
        raise AuthenticationFailed(reason="not_valid_now", detail=detail)
    if leaf.not_valid_after_utc - leaf.not_valid_before_utc > MAX_LIFE:
        raise AuthenticationFailed(reason="life_too_long", detail=f"more than {MAX_LIFE.days} days")


def _check_key(leaf: x509.Certificate) -> None:
    try:
        key = leaf.public_key()
    except (UnsupportedAlgorithm, ValueError) as error:
        raise AuthenticationFailed(reason="key_weak", detail=str(error)) from error
    strong = (
        (isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS)
        or (isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp384r1"))
        or isinstance(key, ed25519.Ed25519PublicKey)
    )
    if not strong:
        raise AuthenticationFailed(reason="key_weak", detail=type(key).__name__)


def _check_usages(extensions: x509.Extensions) -> None:
    """X.509-SVID §4: a leaf is no CA, signs nothing but handshakes, and may do both sides."""
    if any(isinstance(each.value, x509.BasicConstraints) and each.value.ca for each in extensions):
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
) -> datetime:
    # The leaf's own rules are SPIFFE's, not the web's, and stand in `_check_usages`.
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
        chain = verifier.verify(leaf, intermediates).chain
    except (x509_verification.VerificationError, UnsupportedAlgorithm, ValueError) as error:
        raise AuthenticationFailed(reason="chain", detail=str(error)) from error
    return min(certificate.not_valid_after_utc for certificate in chain)


@dataclass(frozen=True, slots=True)
class _Memory:
    """Chains that passed under exactly these bundles, and until when that holds."""

    bundles: Bundles
    passed: dict[bytes, tuple[VerifiedPeer, datetime]]


class PeerVerifier:
    """`verify_peer` with a memory of chains that passed, gone as soon as the bundles change.

    Safe for threads: each call reads one memory and stays with it, so what passed under old
    bundles is never answered under new ones. A lost update costs one more verification.
    """

    def __init__(self, *, bundles: Callable[[], Bundles], clock: Callable[[], datetime]) -> None:
        """Starts empty.

        Args:
            bundles: gives the bundles of now; the same object as long as nothing changed.
            clock: aware time.
        """
        self._bundles = bundles
        self._clock = clock
        self._memory = _Memory({}, {})

    def verify(self, *, chain_pem: bytes, tls_version: str | None) -> VerifiedPeer:
        """As `verify_peer`.

        Raises:
            AuthenticationFailed: as there.
        """
        bundles, now, memory = self._bundles(), self._clock(), self._memory
        if memory.bundles is not bundles or len(memory.passed) >= MAX_CACHED_PEERS:
            memory = self._memory = _Memory(bundles, {})
        known = memory.passed.get(chain_pem)
        if known and now <= known[1] and tls_version in TLS_1_3:
            return known[0]
        peer, good_until = _verify(chain_pem, bundles, tls_version, now)
        memory.passed[chain_pem] = (peer, good_until)
        return peer
