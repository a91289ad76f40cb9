"""The 33 client certificates by which SPIFFE checks are compared: 30 wrong or weak, 3 legal."""

from dataclasses import dataclass
from datetime import timedelta

from cryptography import x509
from fakes.certificates import (
    CLIENT,
    HOUR,
    SERVER,
    Credential,
    authority,
    curve25519,
    dns,
    make,
    p384,
    rsa_of,
    uri,
)

TRUST_DOMAIN = "mesh.test"
AGENT = f"spiffe://{TRUST_DOMAIN}/ns/m/desk"
HANDSHAKE = "handshake"


@dataclass(frozen=True, slots=True)
class Row:
    """One certificate and its verdicts.

    Attributes:
        reason: of `verify_peer`; None when it accepts.
        grpcio: whether the handshake of a grpc server that trusts the CA succeeds.
    """

    id: str
    credential: Credential
    reason: str | None
    grpcio: bool

    @property
    def accepted(self) -> bool:
        """Both layers together."""
        return self.grpcio and self.reason is None


def rows(ca: Credential) -> list[Row]:
    """Mints the whole table under one CA."""
    return [*_names(ca), *_usages(ca), *_chains(ca), *_keys_and_lives(ca)]


def _names(ca: Credential) -> list[Row]:
    def leaf(*names: x509.GeneralName) -> Credential:
        return make(names=names, signer=ca)

    odd_paths = {
        "path-dots": f"{AGENT}/../billing",
        "path-empty-segment": f"spiffe://{TRUST_DOMAIN}//ns/m/desk",
        "path-percent": f"spiffe://{TRUST_DOMAIN}/ns/m/b%69lling",
        "path-query": f"{AGENT}?x=1",
        "path-trailing-slash": f"{AGENT}/",
        "path-percent-nul": f"{AGENT}%00",
    }
    found = [
        Row("two-uris-spiffe", leaf(uri(AGENT), uri(f"{AGENT}2")), "two_uri_sans", grpcio=True),
        Row("two-uris-https", leaf(uri(AGENT), uri("https://x.test/")), "two_uri_sans", grpcio=True),
    ]
    found += [Row(id_, leaf(uri(text)), "spiffe_id_invalid", grpcio=True) for id_, text in odd_paths.items()]
    foreign = leaf(uri("spiffe://other.test/ns/m/desk"))
    found += [
        Row("no-san", make(names=None, signer=ca), "no_uri_san", grpcio=True),
        Row("dns-only", leaf(dns("desk.mesh.test")), "no_uri_san", grpcio=True),
        Row("no-path", leaf(uri(f"spiffe://{TRUST_DOMAIN}")), "spiffe_id_invalid", grpcio=True),
        Row("https", leaf(uri(f"https://{TRUST_DOMAIN}/ns/m/desk")), "spiffe_id_invalid", grpcio=True),
        Row("user-and-port", leaf(uri("spiffe://u@mesh.test:8080/a")), "spiffe_id_invalid", grpcio=True),
        Row("foreign-domain", foreign, "trust_domain_unknown", grpcio=True),
        Row("upper-case-domain", leaf(uri("spiffe://MESH.test/ns/m/desk")), "spiffe_id_invalid", grpcio=True),
    ]
    return found


def _usages(ca: Credential) -> list[Row]:
    def leaf(**fields: object) -> Credential:
        return make(names=[uri(AGENT)], signer=ca, **fields)

    both = ("digital_signature", "key_cert_sign")
    code_signing = x509.oid.ExtendedKeyUsageOID.CODE_SIGNING
    return [
        Row("crl-sign", leaf(usage=("digital_signature", "crl_sign")), "key_usage", grpcio=True),
        Row("no-key-usage", leaf(usage=None), "key_usage", grpcio=True),
        Row("ca-true", leaf(usage=both, is_ca=True), "leaf_is_ca", grpcio=True),
        Row("key-cert-sign", leaf(usage=both), "key_usage", grpcio=True),
        Row("no-digital-signature", leaf(usage=("key_agreement",)), "key_usage", grpcio=False),
        Row("server-auth-only", leaf(extended=[SERVER]), "extended_key_usage", grpcio=False),
        Row("code-signing-only", leaf(extended=[code_signing]), "extended_key_usage", grpcio=False),
    ]


def _chains(ca: Credential) -> list[Row]:
    names = [uri(AGENT)]
    parent = make(names=names, signer=ca, subject="parent")
    by_leaf = make(names=names, signer=parent)
    by_leaf = Credential(by_leaf.certificate, by_leaf.key, (parent.certificate,))
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
    day = timedelta(days=1)
    return [
        Row("expired", make(names=names, signer=ca, starts=-2 * HOUR), "not_valid_now", grpcio=False),
        Row("not-yet-valid", make(names=names, signer=ca, starts=day), "not_valid_now", grpcio=False),
        Row("other-ca", make(names=names, signer=authority(TRUST_DOMAIN)), "chain", grpcio=False),
        Row("self-signed", make(names=names, signer=None), "chain", grpcio=False),
        Row("signed-by-a-leaf", by_leaf, "chain", grpcio=False),
        Row("unknown-critical", make(names=names, signer=ca, extra=[(unknown, True)]), "chain", grpcio=False),
    ]


def _keys_and_lives(ca: Credential) -> list[Row]:
    def leaf(**fields: object) -> Credential:
        return make(names=[uri(AGENT)], signer=ca, **fields)

    return [
        Row("rsa-1024", leaf(key=rsa_of(1024)), "key_weak", grpcio=True),
        Row("thousand-days", leaf(life=timedelta(days=1000)), "life_too_long", grpcio=True),
        Row("legal-no-extended-usage", leaf(extended=None), None, grpcio=True),
        Row("legal-p384", leaf(key=p384()), None, grpcio=True),
        # Legal SPIFFE, but no signature algorithm that grpc's TLS offers.
        Row("legal-ed25519", leaf(key=curve25519()), None, grpcio=False),
    ]


def good(ca: Credential) -> Credential:
    """What the development authority would issue."""
    return make(names=[uri(AGENT)], signer=ca, extended=[SERVER, CLIENT])
