"""What an X.509-SVID says, for people. Verifies nothing: that is `verification`."""

import hashlib
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from meshgate_identities.spiffe_id import SpiffeId
from meshgate_identities.verification import spiffe_id_of


@dataclass(frozen=True, slots=True)
class Description:
    """One certificate and the chain that it came with.

    Attributes:
        serial_hex: as records name it.
        not_before: aware, as `not_after`.
        key_type: of the public key, such as `EC P-256`.
        issuer: RFC 4514.
        sha256: hex digest of the leaf's DER.
        chain_length: the certificates that are presented, the leaf included and the root not.
    """

    spiffe_id: SpiffeId
    serial_hex: str
    not_before: datetime
    not_after: datetime
    key_type: str
    issuer: str
    sha256: str
    chain_length: int


def describe(chain_der: bytes) -> Description:
    """Describes a chain as the Workload API gives it: certificates one after the other, the leaf first.

    Raises:
        AuthenticationFailed: the leaf has no SPIFFE ID, or more than one.
        ValueError: it is no chain of certificates.
    """
    chain = [x509.load_der_x509_certificate(der) for der in _split(chain_der)]
    if not chain:
        raise ValueError("no certificate")
    leaf = chain[0]
    return Description(
        spiffe_id=spiffe_id_of(leaf),
        serial_hex=f"{leaf.serial_number:x}",
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        key_type=_key_type(leaf),
        issuer=leaf.issuer.rfc4514_string(),
        sha256=hashlib.sha256(leaf.public_bytes(Encoding.DER)).hexdigest(),
        chain_length=len(chain),
    )


def _split(data: bytes) -> list[bytes]:
    """The DER values in a row; each says its length in its head (X.690 §8.1.3)."""
    found = []
    while data:
        first = data[1] if len(data) > 1 else 0
        more = first & 0x7F if first & 0x80 else 0
        length = int.from_bytes(data[2 : 2 + more], "big") if more else first
        end = 2 + more + length
        if end > len(data):
            raise ValueError("a certificate is cut off")
        found.append(data[:end])
        data = data[end:]
    return found


def _key_type(leaf: x509.Certificate) -> str:
    key = leaf.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {_CURVES.get(key.curve.name, key.curve.name)}"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    return "Ed25519" if isinstance(key, ed25519.Ed25519PublicKey) else type(key).__name__


_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
