"""A whole gateway on a real port with real mTLS, its neighbours programmed."""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from fakes.gateway_parts import FaultyStore, HostRuntime, ProgrammedPolicy
from grpc_health.v1 import health_pb2, health_pb2_grpc
from meshgate_gateway import catalogue
from meshgate_gateway.adapters.opa import read_listing
from meshgate_gateway.adapters.sqlite_store import SqliteStore
from meshgate_gateway.authenticate import Mesh
from meshgate_gateway.compose import Gateway, Parts
from meshgate_gateway.model import Presented
from meshgate_gateway.policy import ActivePolicy, Listing, PolicyEngine, PolicySlot
from meshgate_identities.authority import DevelopmentAuthority, IssuedSvid
from meshgate_identities.spiffe_id import SpiffeId
from meshgate_identities.verification import PeerVerifier
from meshgate_wire import broker_pb2_grpc as services

DOMAIN, MESH = "desk.example", "desk"
SERVER_NAME = f"gateway.{MESH}.{DOMAIN}"
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def _pem(svid: IssuedSvid) -> tuple[bytes, bytes]:
    key = load_der_private_key(svid.key_der, None)
    chain = x509.load_der_x509_certificate(svid.chain_der).public_bytes(Encoding.PEM)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), chain


def odd_certificate(
    directory: Path,
    *,
    uris: Sequence[str],
    usages: Sequence[x509.ObjectIdentifier] = BOTH,
    days: float = 1,
    age_days: float = 0.01,
) -> tuple[bytes, bytes]:
    """A leaf signed by the root in `directory` that need not be a valid SVID: (key, certificate)."""
    root = x509.load_pem_x509_certificate((directory / "root.crt").read_bytes())
    signer = load_pem_private_key((directory / "root.key").read_bytes(), None)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    usage = dict.fromkeys(
        [
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ],
        False,
    )
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=age_days))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(u) for u in uris]), critical=True
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        leaf.public_bytes(Encoding.PEM),
    )


@dataclass
class Wire:
    """A served gateway and what a test needs to reach and turn it."""

    gateway: Gateway
    store: FaultyStore
    policy: ProgrammedPolicy
    runtime: HostRuntime
    authority: DevelopmentAuthority
    directory: Path
    other_directory: Path
    engines: dict[str, PolicyEngine]
    channels: list[grpc.Channel] = field(default_factory=list)

    def channel(self, app: str = "", *, pair: tuple[bytes, bytes] | None = None) -> grpc.Channel:
        """A channel with the app's SVID, or with any key and certificate."""
        if pair is None and app:
            spiffe_id = SpiffeId.of_app(trust_domain=DOMAIN, namespace=MESH, app=app)
            pair = _pem(self.authority.issue(spiffe_id=spiffe_id))
        root = self.authority.root.public_bytes(Encoding.PEM)
        credentials = grpc.ssl_channel_credentials(root, *(pair or (None, None)))
        options = (("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.use_local_subchannel_pool", 1))
        made = grpc.secure_channel(f"127.0.0.1:{self.gateway.server.port}", credentials, options)
        self.channels.append(made)
        return made

    def broker(self, app: str) -> services.BrokerStub:
        return services.BrokerStub(self.channel(app))

    def runs(self, app: str) -> services.RunsStub:
        return services.RunsStub(self.channel(app))

    def admin(self, app: str = "operator") -> services.AdminStub:
        return services.AdminStub(self.channel(app))

    def serving(self) -> bool:
        stub = health_pb2_grpc.HealthStub(self.channel("operator"))
        return stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING

    def await_serving(self, wanted: bool, seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while self.serving() is not wanted:
            assert time.monotonic() < end, f"not {wanted} in {seconds} s"
            threading.Event().wait(0.02)

    def close(self) -> None:
        for channel in self.channels:
            channel.close()
        self.gateway.stop(0.5)
        self.store.close()


def serve(tmp_path: Path, entries: dict[str, Any], *, operators: frozenset[str] = frozenset()) -> Wire:
    """A gateway on a free port. Bundles hold two domains; operators are the usual one and those given."""
    directory, other = tmp_path / "ca", tmp_path / "other-ca"
    authority = DevelopmentAuthority(directory=directory, trust_domain=DOMAIN)
    foreign = DevelopmentAuthority(directory=other, trust_domain="other.example")
    bundles = {DOMAIN: (authority.root,), "other.example": (foreign.root,)}
    store, policy, runtime = (
        FaultyStore(SqliteStore(path=tmp_path / "g.db")),
        ProgrammedPolicy(),
        HostRuntime(),
    )
    engines: dict[str, PolicyEngine] = {}
    own = SpiffeId.of_app(trust_domain=DOMAIN, namespace=MESH, app="gateway")
    pair = _pem(authority.issue(spiffe_id=own, dns_names=[SERVER_NAME]))
    roots = b"".join(root[0].public_bytes(Encoding.PEM) for root in bundles.values())
    credentials = grpc.ssl_server_credentials([pair], roots, require_client_auth=True)
    gateway = Gateway(
        parts=Parts(
            store=store,
            policy=PolicySlot(
                active=ActivePolicy(policy, "r1", "sha256:1", Listing({"desk": frozenset({"orders.lookup"})}))
            ),
            runtime=runtime,
            verifier=PeerVerifier(bundles=lambda: bundles, clock=lambda: datetime.now(UTC)),
            now_ms=lambda: time.time_ns() // 1_000_000,
            open_policy=lambda place: ActivePolicy(
                engines[place.socket], place.revision, place.digest, read_listing(place)
            ),
        ),
        mesh=Mesh(MESH, DOMAIN, operators, catalogue.parse(json.dumps(entries).encode())),
        payload_key=b"k" * 32,
        listen="127.0.0.1:0",
        credentials=credentials,
        threads=8,
        wait_seconds=0.2,
    )
    runtime.hosts = gateway.hosts
    runtime.present = lambda app: Presented(
        _pem(authority.issue(spiffe_id=SpiffeId.of_app(trust_domain=DOMAIN, namespace=MESH, app=app)))[1],
        "TLSv1.3",
        "in-process",
    )
    gateway.start()
    return Wire(gateway, store, policy, runtime, authority, directory, other, engines)
