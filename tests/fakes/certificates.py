"""Certificates of every kind, good and bad, from authorities that live for one test."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
BOTH = (SERVER, CLIENT)
HOUR = timedelta(hours=1)
_ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")  # AlgorithmIdentifier
_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate with its key and what a peer would send with it."""

    certificate: x509.Certificate
    key: object
    intermediates: tuple[x509.Certificate, ...] = ()

    @property
    def chain_pem(self) -> bytes:
        chain = (self.certificate, *self.intermediates)
        return b"".join(each.public_bytes(Encoding.PEM) for each in chain)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def dns(text: str) -> x509.GeneralName:
    return x509.DNSName(text)


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def p384() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def rsa_of(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def curve25519() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def make(
    *,
    names: Sequence[x509.GeneralName] | None,
    signer: Credential | None,
    key: object = None,
    usage: Sequence[str] | None = ("digital_signature",),
    usage_critical: bool = True,
    extended: Sequence[x509.ObjectIdentifier] | None = BOTH,
    is_ca: bool | None = False,
    starts: timedelta = timedelta(minutes=-1),
    life: timedelta = HOUR,
    subject: str | None = "leaf",
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> Credential:
    """Mints one certificate; without a signer it signs itself."""
    key = key or p256()
    subject_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else [])
    begin = datetime.now(UTC) + starts
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject_name)
        .issuer_name(signer.certificate.subject if signer else subject_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + life)
    )
    if is_ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    if usage is not None:
        bits = x509.KeyUsage(**{name: name in usage for name in _USAGES})
        builder = builder.add_extension(bits, critical=usage_critical)
    if extended is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not subject)
    signing_key = signer.key if signer else key
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key())
    builder = builder.add_extension(issuer_id, critical=False)
    for value, critical in extra:
        builder = builder.add_extension(value, critical=critical)
    algorithm = None if isinstance(signing_key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return Credential(builder.sign(signing_key, algorithm), key)


def authority(
    trust_domain: str, *, signer: Credential | None = None, life: timedelta = 24 * HOUR, name: str = ""
) -> Credential:
    """A root, or an intermediate when another signs it."""
    key = p256()
    return make(
        names=[uri(f"spiffe://{trust_domain}")],
        signer=signer,
        key=key,
        usage=("key_cert_sign", "crl_sign"),
        extended=None,
        is_ca=True,
        life=life,
        subject=name or f"authority of {trust_domain}",
        extra=[(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)],
    )


def with_bytes(leaf: Credential, signer: Credential, old: bytes, new: bytes) -> Credential:
    """The leaf with part of its signed body replaced and signed anew: what no builder would write."""
    body = leaf.certificate.tbs_certificate_bytes
    if body.count(old) != 1:
        raise ValueError("the bytes to replace must occur once")
    return Credential(x509.load_der_x509_certificate(signed(body.replace(old, new), signer)), leaf.key)


def signed(body: bytes, signer: Credential) -> bytes:
    """The DER of a certificate around any bytes as its signed body."""
    signature = signer.key.sign(body, ec.ECDSA(hashes.SHA256()))
    return _der(0x30, body + _ECDSA_SHA256 + _der(0x03, b"\0" + signature))


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content
