"""Fake: makes certificates that break one rule each, under a real root. For tests only."""

from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID as Eku
from meshgate_identities.authority import DevelopmentAuthority

_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def usage(**changed: bool) -> x509.KeyUsage:
    """A KeyUsage with digitalSignature, changed as told."""
    return x509.KeyUsage(**{name: changed.get(name, name == "digital_signature") for name in _USAGES})


def leaf(authority: DevelopmentAuthority, *uris: str, **options: Any) -> tuple[bytes, bytes]:
    """A leaf and its key, PEM, signed by the authority's root.

    Options: life (timedelta), starts (timedelta from now), ca (bool), key_usage (KeyUsage or None),
    eku (list or None), key (private key), dns (list).
    """
    key = options.get("key") or ec.generate_private_key(ec.SECP256R1())
    starts = datetime.now(UTC) + options.get("starts", timedelta(minutes=-1))
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(starts)
        .not_valid_after(starts + options.get("life", timedelta(hours=1)))
        .add_extension(x509.BasicConstraints(ca=options.get("ca", False), path_length=None), critical=True)
    )
    names: list[Any] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    names += [x509.DNSName(name) for name in options.get("dns", [])]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    if (key_usage := options.get("key_usage", usage())) is not None:
        builder = builder.add_extension(key_usage, critical=True)
    if (eku := options.get("eku", [Eku.SERVER_AUTH, Eku.CLIENT_AUTH])) is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(eku), critical=False)
    made = builder.sign(authority._key, hashes.SHA256())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made.public_bytes(Encoding.PEM), pem


def weak_rsa() -> rsa.RSAPrivateKey:
    """A key that is too short."""
    return rsa.generate_private_key(public_exponent=65537, key_size=1024)
