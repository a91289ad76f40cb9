"""A small real mesh of one program and one tool host, and a caller that needs no CrewAI."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from meshgate_identities.authority import DevelopmentAuthority
from meshgate_identities.spiffe_id import SpiffeId
from meshgate_wire import broker_pb2 as pb
from meshgate_wire import broker_pb2_grpc as services

MESHGATE = [sys.executable, "-m", "meshgate_deploy.cli"]
PATIENCE_SECONDS = 120.0
MANIFEST = """
    apiVersion: meshgate/v1
    mesh: small
    trustDomain: small.example
    programs:
      nightly: {run: [python, nightly.py]}
    toolhosts:
      box: {tools: [box_tools:look, box_tools:spend]}
    tools:
      box.look: {effect: read}
      box.spend: {effect: external, idempotent: true}
"""
TOOLS = """
    def look(name: str) -> str:
        return "seen " + name


    def spend(amount: int) -> str:
        return f"spent {amount}"
"""


def eventually(check: Callable[[], Any], what: str) -> Any:
    """Polls until `check` gives something true, and returns it."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (found := check()):
        assert time.monotonic() < end, f"not within {PATIENCE_SECONDS} s: {what}"
        time.sleep(0.05)
    return found


@dataclass
class SmallMesh:
    """A mesh that is up."""

    root: Path

    def meshgate(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*MESHGATE, *arguments], cwd=self.root, capture_output=True, text=True, check=False
        )

    def write_policy(self, text: str, *, test: str = "") -> None:
        (self.root / "policies" / "nightly.rego").write_text(text)
        (self.root / "policies" / "nightly_test.rego").write_text(
            f"package mesh.tests.nightly\n\n{test or 'test_it if 1 == 1'}\n"
        )

    def process(self, name: str) -> dict[str, Any]:
        """The one process of that name, as `ps` shows it."""
        status = json.loads(self.meshgate("ps", "-o", "json").stdout)
        (row,) = [row for row in status["processes"] if row["name"] == name]
        return dict(row)

    def records(self, kind: str) -> list[dict[str, Any]]:
        done = self.meshgate("audit", "query", "--kind", kind, "--limit", "100000", "-o", "json")
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))

    def channel(self, app: str = "nightly") -> grpc.Channel:
        """A channel with the app's own SVID, as its launcher would have it."""
        authority = DevelopmentAuthority(
            directory=self.root / ".meshgate" / "ca" / "spiffe", trust_domain="small.example"
        )
        svid = authority.issue(spiffe_id=SpiffeId.parse(f"spiffe://small.example/ns/small/{app}"))
        key = load_der_private_key(svid.key_der, None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        chain = x509.load_der_x509_certificate(svid.chain_der).public_bytes(Encoding.PEM)
        root = authority.root.public_bytes(Encoding.PEM)
        gateway = json.loads((self.root / ".meshgate" / "generated" / "box.json").read_bytes())["gateway"]
        options = (
            ("grpc.ssl_target_name_override", gateway["server_name"]),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
        )
        return grpc.secure_channel(gateway["target"], grpc.ssl_channel_credentials(root, key, chain), options)


class Agent:
    """Calls tools outside of a run, asking again while a call is pending; nothing else is forgiven."""

    def __init__(self, mesh: SmallMesh) -> None:
        self._channel = mesh.channel()
        self._broker = services.BrokerStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, tool: str, arguments: Mapping[str, object]) -> pb.CallToolResponse:
        request = pb.CallToolRequest(
            step_key=uuid7(), tool=tool, arguments_json=json.dumps(dict(arguments)).encode()
        )
        end = time.monotonic() + PATIENCE_SECONDS
        while (answer := self._broker.CallTool(request, timeout=30)).state == pb.CALL_STATE_PENDING:
            assert time.monotonic() < end, "the call stayed pending"
        return answer

    def listed(self) -> list[str]:
        return [tool.tool for tool in self._broker.ListTools(pb.ListToolsRequest(), timeout=30).tools]


def uuid7() -> str:
    """A fresh UUIDv7."""
    value = int(time.time() * 1000) << 80 | 0x7 << 76 | secrets.randbits(12) << 64
    text = f"{value | 0x2 << 62 | secrets.randbits(62):032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


@contextlib.contextmanager
def small_mesh(root: Path, policy: str) -> Iterator[SmallMesh]:
    """Brings the mesh up in `root` and takes it down again."""
    mesh = SmallMesh(root)
    (root / "policies").mkdir()
    for name, text in (("meshgate.yaml", MANIFEST), ("box_tools.py", TOOLS)):
        (root / name).write_text(textwrap.dedent(text).lstrip())
    mesh.write_policy(policy)
    log = root / "up.log"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("w") as output:
        up = subprocess.Popen([*MESHGATE, "up"], cwd=root, stdout=output, stderr=output, env=environment)
    try:
        eventually(lambda: up.poll() is not None or "the mesh is up" in log.read_text(), "mesh up")
        assert up.poll() is None, log.read_text()
        yield mesh
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(60)
        shutil.rmtree(root / ".meshgate", ignore_errors=True)
