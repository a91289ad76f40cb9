"""A gRPC server and client over real TLS, with identities that a test hands out and changes."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from types import MappingProxyType

import grpc
import pytest
from fakes.certificates import Credential
from meshgate_identities import tls
from meshgate_identities.errors import AuthenticationFailed, IdentityUnavailable
from meshgate_identities.source import IdentitySnapshot
from meshgate_identities.spiffe_id import SpiffeId
from meshgate_identities.verification import PeerVerifier

SERVER_NAME = "gateway.m.mesh.test"
METHOD = "/test.Echo/Who"


class HandedSource:
    """An identity source whose state the test sets."""

    def __init__(self, credential: Credential, bundles: dict[str, tuple]) -> None:
        self._subscribers: list[Callable] = []
        self.down = False
        self.set(credential, bundles)

    def set(self, credential: Credential, bundles: dict[str, tuple]) -> None:
        self._now = IdentitySnapshot(
            spiffe_id=SpiffeId.parse("spiffe://mesh.test/ns/m/gateway"),
            chain_pem=credential.chain_pem,
            key_pem=credential.key_pem,
            bundles=MappingProxyType(bundles),
            not_after=credential.certificate.not_valid_after_utc,
        )
        for subscriber in list(self._subscribers):
            subscriber(self._now)

    def snapshot(self) -> IdentitySnapshot:
        if self.down:
            raise IdentityUnavailable("the test says so")
        return self._now

    def subscribe(self, callback: Callable) -> Callable[[], None]:
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    @property
    def subscribers(self) -> int:
        return len(self._subscribers)


class Door(grpc.GenericRpcHandler):
    """Answers with the verified ID, or refuses with its reason; counts what reached it."""

    def __init__(self, source: HandedSource) -> None:
        self.verifier = PeerVerifier(
            bundles=lambda: source.snapshot().bundles, clock=lambda: datetime.now(UTC)
        )
        self.ran = 0
        self.hold: threading.Event | None = None
        self.holding = threading.Event()

    def service(self, handler_call_details):
        return grpc.unary_unary_rpc_method_handler(self.who)

    def who(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.ran += 1
        if request == b"hold":
            self.holding.set()
            self.hold.wait(30)
        auth = context.auth_context()
        # grpc gives the leaf and what was sent with it apart: the chain does not begin with the leaf.
        chain = b"".join([*auth.get("x509_pem_cert", ()), *auth.get("x509_pem_cert_chain", ())])
        version = b"".join(auth.get("ssl_tls_version", ())).decode()
        try:
            peer = self.verifier.verify(chain_pem=chain, tls_version=version)
        except AuthenticationFailed as error:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, error.reason)
        return str(peer.spiffe_id).encode()


@pytest.fixture
def serve() -> Iterator[Callable]:
    """Starts servers on free ports; all are stopped at the end."""
    servers = []

    def start(source: HandedSource) -> tuple[Door, str]:
        door = Door(source)
        server = grpc.server(ThreadPoolExecutor(8))
        server.add_generic_rpc_handlers((door,))
        port = server.add_secure_port("127.0.0.1:0", tls.server_credentials(source))
        server.start()
        servers.append(server)
        return door, f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(0).wait()


@contextmanager
def channel_with(credential: Credential | None, root: Credential, target: str) -> Iterator[grpc.Channel]:
    """A plain client, with any certificate or none."""
    credentials = grpc.ssl_channel_credentials(
        root.chain_pem,
        credential.key_pem if credential else None,
        credential.chain_pem if credential else None,
    )
    options = [("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(target, credentials, options) as channel:
        yield channel


@pytest.fixture
def dial() -> Callable:
    """See `channel_with`."""
    return channel_with


@pytest.fixture
def handed() -> type[HandedSource]:
    """See `HandedSource`."""
    return HandedSource
