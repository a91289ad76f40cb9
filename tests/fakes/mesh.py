"""Fake mesh around a real gateway: a programmed engine, a runtime that the test drives, real mTLS."""

import json
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from fakes.certificates import leaf
from meshgate_gateway import catalogue
from meshgate_gateway.adapters.sqlite_store import SqliteStore
from meshgate_gateway.broker import ActivePolicy
from meshgate_gateway.compose import Gateway, Mesh, Parts
from meshgate_identities.authority import DevelopmentAuthority
from meshgate_identities.spiffe_id import SpiffeId
from meshgate_wire import broker_pb2 as pb
from meshgate_wire import broker_pb2_grpc as rpc

DOMAIN, NAME, DNS = "desk.example", "m", "gateway.m.desk.example"
ALLOW = {"allow": True, "reasons": [], "approval": None, "obligations": {}}
DENY = {"allow": False, "reasons": ["tool_not_granted"], "approval": None, "obligations": {}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


class ProgrammedPolicy:
    """Fake engine: answers what the test says, or raises it."""

    def __init__(self) -> None:
        self.answer: Any = ALLOW
        self.inputs: list[Mapping[str, object]] = []

    def evaluate(self, policy_input: Mapping[str, object]) -> object:
        """Answers as programmed."""
        self.inputs.append(policy_input)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class RecordingRuntime:
    """Fake runtime: remembers what was dispatched; runs `deliver` for each, on a thread, if set."""

    def __init__(self) -> None:
        self.dispatched: list[str] = []
        self.deliver: Any = None

    def dispatch(self, call_id: str, host: str) -> None:
        """Accepts every id."""
        self.dispatched.append(call_id)
        if self.deliver:
            threading.Thread(target=self.deliver, args=(call_id,), daemon=True).start()


class FakeMesh:
    """A gateway on a loopback port, with clients for any identity."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = DevelopmentAuthority(directory=folder / "ca", trust_domain=DOMAIN)
        self.policy, self.runtime = ProgrammedPolicy(), RecordingRuntime()
        self.key = secrets.token_bytes(32)
        (folder / "catalogue.json").write_text(json.dumps(_catalogue()))
        self.gateway, self.port = self.start()
        self._channels: list[grpc.Channel] = []

    def start(self) -> tuple[Gateway, int]:
        """Starts a gateway on the folder's store; again, to play a restart."""
        parts = Parts(
            store=SqliteStore(self.folder / "gateway.db"),
            payload_key=self.key,
            policy=ActivePolicy(self.policy, "r1", "digest"),
            runtime=self.runtime,
            bundles=lambda: self.bundles,
            version="test",
        )
        self.bundles = {DOMAIN: (self.authority.root,)}
        operator = f"spiffe://{DOMAIN}/ns/{NAME}/operator"
        mesh = Mesh(NAME, DOMAIN, catalogue.load(self.folder / "catalogue.json"), frozenset({operator}))
        gateway = Gateway(mesh=mesh, parts=parts)
        chain, key = self._svid("gateway", [DNS])
        root = self.authority.root.public_bytes(Encoding.PEM)
        credentials = grpc.ssl_server_credentials([(key, chain)], root, require_client_auth=True)
        port = gateway.server.add_secure_port("127.0.0.1:0", credentials)
        gateway.start()
        return gateway, port

    def close(self) -> None:
        """Stops everything."""
        for channel in self._channels:
            channel.close()
        self.gateway.close(0.2)

    def _svid(self, app: str, dns: list[str] | None = None) -> tuple[bytes, bytes]:
        issued = self.authority.issue(
            spiffe_id=SpiffeId.of_app(trust_domain=DOMAIN, namespace=NAME, app=app), dns_names=dns or []
        )
        key = load_der_private_key(issued.key_der, None)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return x509.load_der_x509_certificate(issued.chain_der).public_bytes(Encoding.PEM), pem

    def channel(
        self, app: str = "", *, pair: tuple[bytes | None, bytes | None] | None = None
    ) -> grpc.Channel:
        """A channel as an app, or with any certificate and key."""
        chain, key = pair or self._svid(app)
        root = self.authority.root.public_bytes(Encoding.PEM)
        credentials = grpc.ssl_channel_credentials(root, key, chain)
        options = [("grpc.ssl_target_name_override", DNS), ("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.secure_channel(f"127.0.0.1:{self.port}", credentials, options)
        self._channels.append(channel)
        return channel

    def bad_channel(self, *uris: str, **options: Any) -> grpc.Channel:
        """A channel whose certificate breaks a rule."""
        return self.channel(pair=leaf(self.authority, *uris, **options))

    def broker(self, app: str) -> rpc.BrokerStub:
        """The broker as an app sees it."""
        return rpc.BrokerStub(self.channel(app))

    def start_run(self, app: str = "crew", run_id: str = "r") -> int:
        """Starts a run and an attempt."""
        runs = rpc.RunsStub(self.channel(app))
        runs.StartRun(pb.StartRunRequest(run_id=run_id), timeout=5)
        return int(runs.StartAttempt(pb.StartAttemptRequest(run_id=run_id), timeout=5).attempt)

    def serve_tools(self, effect: Any = lambda arguments: "done") -> list[dict[str, Any]]:
        """Plays an honest host for the tool `host.act`; returns the list of effects."""
        effects: list[dict[str, Any]] = []
        host = self.broker("host")

        def deliver(call_id: str) -> None:
            try:
                taken = host.TakeCall(pb.TakeCallRequest(call_id=call_id, host_instance="i"), timeout=5)
            except grpc.RpcError:
                return
            arguments = json.loads(taken.arguments_json)
            effects.append(arguments)
            result = pb.ToolResult(kind=pb.RESULT_KIND_TEXT, data=str(effect(arguments)).encode())
            finish = pb.FinishCallRequest(call_id=call_id, take=taken.take, host_instance="i", result=result)
            host.FinishCall(finish, timeout=5)

        self.runtime.deliver = deliver
        return effects

    def records(self, kind: str = "") -> list[dict[str, Any]]:
        """The audit log, as the operator sees it."""
        admin = rpc.AdminStub(self.channel("operator"))
        found = admin.QueryRecords(pb.QueryRecordsRequest(kind=kind), timeout=5)
        return [json.loads(record) for record in found.records_json]


def call(arguments: bytes = b'{"a":1}', **changed: Any) -> pb.CallToolRequest:
    """A call of `host.act` in run `r`."""
    fields = {"run_id": "r", "attempt": 1, "step_key": "s1", "tool": "host.act", **changed}
    return pb.CallToolRequest(arguments_json=arguments, **fields)


def _catalogue() -> dict[str, object]:
    tool = {
        "host": "host", "kind": "tool", "description": "acts", "schema": SCHEMA, "effect": "irreversible",
        "idempotent": False, "deadline_seconds": 30, "definition_sha256": "d",
    }  # fmt: skip
    apps = {"crew": "crew", "other": "crew", "prog": "program", "host": "toolhost", "host2": "toolhost"}
    return {
        "tools": {"host.act": tool, "host.read": {**tool, "effect": "read"}},
        "apps": {name: {"kind": kind} for name, kind in apps.items()},
    }
