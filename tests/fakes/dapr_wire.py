"""Dapr's own protocols, written by hand: what an attacker sends who has no stubs.

Field numbers are those of Dapr 1.18: sentry.proto, scheduler.proto, service_invocation.proto and
durabletask's history_events.proto, backend_service.proto.
"""

import asyncio
import json
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError

JWKS_VALIDATOR = 3
RPC_SECONDS = 15.0


def field(number: int, value: bytes | str | int) -> bytes:
    """One protobuf field: a varint, or length-delimited bytes."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def _varint(value: int) -> bytes:
    value &= 0xFFFF_FFFF_FFFF_FFFF
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def parts(message: bytes) -> dict[int, list[bytes]]:
    """The length-delimited fields of a message."""
    found: dict[int, list[bytes]] = {}
    while message:
        key, message = _taken(message)
        size, message = _taken(message)
        if key & 7 == 2:
            found.setdefault(key >> 3, []).append(message[:size])
            message = message[size:]
    return found


def _taken(message: bytes) -> tuple[int, bytes]:
    value = shift = 0
    for index, byte in enumerate(message):
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, message[index + 1 :]
    raise ValueError("cut off")


def _wrapped(value: object) -> bytes:
    """A StringValue with JSON in it."""
    return field(1, json.dumps(value))


def start(instance: str, name: str, given: object) -> bytes:
    """CreateWorkflowInstanceRequest."""
    begun = field(1, name) + field(3, _wrapped(given)) + field(4, field(1, instance))
    return field(1, field(1, -1) + field(3, begun))


def task_completed(task: int = 0) -> bytes:
    """History event: a task is done, and this is its result."""
    return field(1, -1) + field(7, field(1, task) + field(2, _wrapped("forged")))


def event_raised(name: str = "forged") -> bytes:
    """History event: somebody raised an event."""
    return field(1, -1) + field(15, field(1, name) + field(2, _wrapped("forged")))


def terminated() -> bytes:
    """History event: the workflow is ended from outside."""
    return field(1, -1) + field(5, field(1, _wrapped("forged")))


def activity(name: str, given: object, *, source: str = "") -> bytes:
    """History event: an activity is to run. `source`: the app that is said to wait for its result."""
    router = field(30, field(1, source)) if source else b""
    return field(6, field(1, name) + field(3, _wrapped(given))) + router


@dataclass(frozen=True)
class Enrolled:
    """A Dapr identity: key and chain, PEM."""

    key: bytes
    chain: bytes

    @property
    def spiffe_id(self) -> str:
        names = x509.load_pem_x509_certificate(self.chain).extensions
        found = names.get_extension_for_class(x509.SubjectAlternativeName).value
        return found.get_values_for_type(x509.UniformResourceIdentifier)[0]


@dataclass(frozen=True)
class Answer:
    """Of an RPC."""

    status: str
    message: str
    body: bytes = b""


class _Raw(CodecBase):
    """Bytes as they are."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


def call(address: str, method: str, body: bytes, *, roots: bytes, identity: Enrolled | None = None) -> Answer:
    """One RPC over TLS. Checks the server's chain, not its name: Dapr's has none."""
    return asyncio.run(_call(address, method, body, _tls(roots, identity)))


def _tls(roots: bytes, identity: Enrolled | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=roots.decode())
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    if identity is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "identity.pem"
            path.write_bytes(identity.key + identity.chain)
            context.load_cert_chain(path)
    return context


async def _call(address: str, method: str, body: bytes, tls: ssl.SSLContext) -> Answer:
    host, _, port = address.rpartition(":")
    channel = Channel(host, int(port), ssl=tls, codec=_Raw())
    try:
        got = await UnaryUnaryMethod(channel, method, bytes, bytes)(body, timeout=RPC_SECONDS)
    except GRPCError as error:
        return Answer(error.status.name, error.message or "")
    finally:
        channel.close()
    return Answer("OK", "", got or b"")


def enrol(address: str, *, roots: bytes, app: str, mesh: str, token: str) -> tuple[Answer, Enrolled | None]:
    """Asks Sentry for a certificate as an app of a mesh."""
    key = ec.generate_private_key(ec.SECP256R1())
    asked = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    body = (
        field(1, app) + field(2, token) + field(4, mesh)
        + field(5, asked.public_bytes(serialization.Encoding.PEM)) + field(6, JWKS_VALIDATOR)
    )  # fmt: skip
    answer = call(address, "/dapr.proto.sentry.v1.CA/SignCertificate", body, roots=roots)
    if answer.status != "OK":
        return answer, None
    got = parts(answer.body)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return answer, Enrolled(private, b"".join([*got[1], *got.get(2, [])]))


def job(app: str, mesh: str, target: "Target", event: bytes, *, retry: bytes, due: str = "0s") -> bytes:
    """ScheduleJobRequest: a reminder that delivers a history event to an actor."""
    what = field(3, due) + field(5, _any(event)) + field(6, retry)
    actor = field(2, field(1, target.actor) + field(2, target.kind))
    return (
        field(1, target.reminder)
        + field(2, what)
        + field(3, field(1, app) + field(2, mesh) + field(3, actor))
    )


def _any(event: bytes) -> bytes:
    return field(1, "type.googleapis.com/HistoryEvent") + field(2, event)


@dataclass(frozen=True)
class Target:
    """An actor of the workflow engine, and the reminder that makes it act."""

    kind: str
    actor: str
    reminder: str = "run-activity"


DROP = field(1, b"")  # JobFailurePolicy: one try
FOR_EVER = field(2, field(1, field(1, 1)))  # every second, without end


def actor_call(target: Target, method: str, data: bytes) -> bytes:
    """InternalInvokeRequest, as one sidecar sends it to another."""
    message = field(1, method) + field(2, field(2, data)) + field(3, "application/x-protobuf")
    return field(1, 1) + field(3, message) + field(4, field(1, target.kind) + field(2, target.actor))


def reminder(target: Target, event: bytes) -> bytes:
    """A Reminder, as one sidecar hands it to another."""
    return field(1, target.actor) + field(2, target.kind) + field(3, target.reminder) + field(4, _any(event))
