"""Real grpc over real TLS: what the handshake refuses, what our check refuses, and rotation."""

import asyncio
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import grpc
import pytest
from fakes.bad_svids import AGENT, TRUST_DOMAIN, good, rows
from fakes.certificates import HOUR, authority, dns, make, uri
from grpclib.client import Channel as OtherChannel
from grpclib.const import Cardinality
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError
from meshgate_identities import tls
from meshgate_identities.errors import IdentityUnavailable

GATEWAY = f"spiffe://{TRUST_DOMAIN}/ns/m/gateway"
NAME = "gateway.m.mesh.test"
METHOD = "/test.Echo/Who"
SECONDS = 10

CA = authority(TRUST_DOMAIN)
OTHER_CA = authority("other.test")
ROWS = rows(CA)
OURS = {TRUST_DOMAIN: (CA.certificate,)}
BOTH = {**OURS, "other.test": (OTHER_CA.certificate,)}


def gateway(signer=CA):
    return make(names=[uri(GATEWAY), dns(NAME)], signer=signer)


def ask(channel, request: bytes = b"") -> str:
    return channel.unary_unary(METHOD)(request, timeout=SECONDS).decode()


def refused(channel) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel)
    return caught.value.code(), caught.value.details()


@pytest.fixture
def source(handed):
    return handed(gateway(), BOTH)


def test_an_agent_is_known_by_its_certificate(serve, dial, source) -> None:
    """A good SVID reaches the handler and is named."""
    door, target = serve(source)
    with dial(good(CA), CA, target) as channel:
        assert ask(channel) == AGENT
    assert door.ran == 1


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_each_row_of_the_table_over_real_tls(serve, dial, handed, row) -> None:
    """The handshake refuses what it should see to, before any handler; our check does the rest."""
    door, target = serve(handed(gateway(), OURS))
    with dial(row.credential, CA, target) as channel:
        if row.accepted:
            assert ask(channel) == AGENT
        elif row.grpcio:
            assert refused(channel) == (grpc.StatusCode.UNAUTHENTICATED, row.reason)
        else:
            assert refused(channel)[0] is grpc.StatusCode.UNAVAILABLE
    assert door.ran == row.grpcio


@pytest.mark.parametrize(
    "credential",
    [
        None,
        make(names=[uri(AGENT)], signer=authority(TRUST_DOMAIN)),
        make(names=[uri(AGENT)], signer=CA, starts=-2 * HOUR),
        make(names=[uri(AGENT)], signer=None),
    ],
    ids=["no-certificate", "other-ca", "expired", "self-signed"],
)
def test_the_handshake_refuses_and_no_handler_runs(serve, dial, source, credential) -> None:
    """Without a certificate of a trusted CA that is valid now, nothing of ours runs."""
    door, target = serve(source)
    with dial(credential, CA, target) as channel:
        assert refused(channel)[0] is grpc.StatusCode.UNAVAILABLE
    assert door.ran == 0


def test_a_trusted_ca_of_another_domain_cannot_name_our_agents(serve, dial, source) -> None:
    """TLS accepts the other domain's CA; our check asks which domain the leaf names."""
    _door, target = serve(source)
    with dial(make(names=[uri(AGENT)], signer=OTHER_CA), CA, target) as channel:
        assert refused(channel) == (grpc.StatusCode.UNAUTHENTICATED, "chain")


def test_a_chain_with_its_intermediate_is_known(serve, dial, source) -> None:
    """The intermediate that a client sends reaches our check."""
    middle = authority(TRUST_DOMAIN, signer=CA, name="middle")
    leaf = make(names=[uri(AGENT)], signer=middle)
    chained = type(leaf)(leaf.certificate, leaf.key, (middle.certificate,))
    _door, target = serve(source)
    with dial(chained, CA, target) as channel:
        assert ask(channel) == AGENT


@pytest.mark.parametrize(
    ("version", "reason"), [(ssl.TLSVersion.TLSv1_2, "tls_version"), (ssl.TLSVersion.TLSv1_3, None)]
)
def test_tls_1_2_is_refused(serve, source, tmp_path, version, reason) -> None:
    """By itself grpc would negotiate TLS 1.2; the same client over 1.3 is let in."""
    door, target = serve(source)
    agent = good(CA)
    (tmp_path / "pem").write_bytes(agent.key_pem + agent.chain_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=CA.chain_pem.decode())
    context.load_cert_chain(tmp_path / "pem")
    context.set_alpn_protocols(["h2"])
    context.check_hostname = False
    context.minimum_version = context.maximum_version = version
    refusal = asyncio.run(ask_otherwise(target, context))
    assert refusal == reason
    assert door.ran == 1


class Raw(CodecBase):
    """Messages are bytes already."""

    __content_subtype__ = "proto"

    def encode(self, message, message_type):
        return message

    def decode(self, data, message_type):
        return data


async def ask_otherwise(target: str, context: ssl.SSLContext) -> str | None:
    """Asks with another gRPC library, whose TLS version can be chosen; the reason of a refusal."""
    host, _, port = target.rpartition(":")
    channel = OtherChannel(host, int(port), ssl=context, codec=Raw())
    try:
        async with channel.request(METHOD, Cardinality.UNARY_UNARY, bytes, bytes, timeout=SECONDS) as stream:
            await stream.send_message(b"", end=True)
            await stream.recv_message()
    except GRPCError as error:
        return error.message
    finally:
        channel.close()
    return None


def test_a_removed_bundle_refuses_open_and_new_connections(serve, dial, source) -> None:
    """Once a domain's bundle is gone its agents are refused, on open connections too."""
    _door, target = serve(source)
    theirs = make(names=[uri("spiffe://other.test/ns/m/desk")], signer=OTHER_CA)
    with dial(theirs, CA, target) as channel:
        assert ask(channel) == "spiffe://other.test/ns/m/desk"
        source.set(gateway(), OURS)
        assert refused(channel) == (grpc.StatusCode.UNAUTHENTICATED, "trust_domain_unknown")
    with dial(theirs, CA, target) as channel:
        assert refused(channel)[0] is grpc.StatusCode.UNAVAILABLE


def test_the_server_shows_its_newest_certificate(serve, dial, source) -> None:
    """A handshake after a rotation meets the new root; the old client roots no longer fit."""
    _door, target = serve(source)
    new_ca = authority(TRUST_DOMAIN)
    source.set(gateway(new_ca), {TRUST_DOMAIN: (CA.certificate, new_ca.certificate)})
    with dial(good(CA), CA, target) as channel:
        assert refused(channel)[0] is grpc.StatusCode.UNAVAILABLE
    with dial(good(CA), new_ca, target) as channel:
        assert ask(channel) == AGENT


@pytest.mark.parametrize(
    "impostor",
    [
        make(names=[uri(AGENT)], signer=CA),
        make(names=[uri(AGENT), dns("other.m.mesh.test")], signer=CA),
        make(names=[uri(GATEWAY), dns(NAME)], signer=OTHER_CA),
    ],
    ids=["agent-without-name", "other-name", "other-domain"],
)
def test_a_client_trusts_the_gateways_name_under_its_own_root_only(serve, handed, source, impostor) -> None:
    """An agent's SVID, another name, or another domain's CA is no gateway, though its CA is known."""
    door, target = serve(handed(impostor, BOTH))
    with tls.secure_channel(source=source, target=target, server_name=NAME) as channel:
        assert refused(channel)[0] is grpc.StatusCode.UNAVAILABLE
    assert door.ran == 0


def test_no_identity_no_credentials(source) -> None:
    """Without an SVID neither side opens anything."""
    source.down = True
    with pytest.raises(IdentityUnavailable):
        tls.server_credentials(source)
    with pytest.raises(IdentityUnavailable):
        tls.secure_channel(source=source, target="127.0.0.1:1", server_name=NAME)
    with pytest.raises(IdentityUnavailable):
        tls.RotatingChannel(source=source, target="127.0.0.1:1", server_name=NAME)
    assert source.subscribers == 0


def test_no_call_fails_while_both_sides_rotate(serve, handed, source) -> None:
    """Forty rotations of server and client under load: every call is answered."""
    door, target = serve(source)
    agent = handed(good(CA), OURS)
    rotating = tls.RotatingChannel(source=agent, target=target, server_name=NAME)
    stop = threading.Event()

    def load() -> int:
        calls = 0
        while not stop.is_set():
            assert ask(rotating.channel) == AGENT
            calls += 1
        return calls

    with ThreadPoolExecutor(3) as threads:
        loads = [threads.submit(load) for _ in range(3)]
        try:
            for _ in range(40):
                before = door.ran
                source.set(gateway(), BOTH)
                agent.set(good(CA), OURS)
                while door.ran < before + 6 and not any(each.done() for each in loads):
                    ask(rotating.channel)
        finally:
            stop.set()
        assert all(each.result() > 0 for each in loads)
    rotating.close()


def test_a_call_under_way_survives_a_rotation(serve, handed, source) -> None:
    """The old channel drains: a call that began before the rotation gets its answer."""
    door, target = serve(source)
    door.hold = threading.Event()
    agent = handed(good(CA), OURS)
    rotating = tls.RotatingChannel(source=agent, target=target, server_name=NAME)
    under_way = rotating.channel.unary_unary(METHOD).future(b"hold", timeout=SECONDS)
    assert door.holding.wait(SECONDS)
    old = rotating.channel
    agent.set(good(CA), OURS)
    assert rotating.channel is not old
    assert ask(rotating.channel) == AGENT
    door.hold.set()
    assert under_way.result() == AGENT.encode()
    rotating.close()


def test_a_closed_channel_stays_closed(serve, handed, source) -> None:
    """After close no rotation opens a channel, and what was draining is closed."""
    _door, target = serve(source)
    agent = handed(good(CA), OURS)
    rotating = tls.RotatingChannel(source=agent, target=target, server_name=NAME)
    first = rotating.channel
    agent.set(good(CA), OURS)
    rotating.close()
    assert agent.subscribers == 0
    for channel in (first, rotating.channel):
        with pytest.raises(ValueError, match="closed"):
            ask(channel)


def test_the_name_of_the_gateway() -> None:
    """The DNS SAN holds mesh and trust domain."""
    assert tls.gateway_dns_name(trust_domain=TRUST_DOMAIN, mesh="m") == NAME
    assert timedelta(seconds=tls.DRAIN_SECONDS) >= timedelta(seconds=2)  # a handler's longest wait
