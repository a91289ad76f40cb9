"""Real OPA servers on Unix sockets, and fake ones that misbehave."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from meshgate_policies import bundle, opa
from meshgate_policies.engine import OpaEngine

GATEWAY_TOKEN = "gateway-" + "g" * 32
SUPERVISOR_TOKEN = "supervisor-" + "s" * 32

DESK = """\
package mesh.agents.desk

allow contains "orders.lookup"

allow contains "orders.refund" if input.call.args.amount <= data.mesh.limits.refund

approve contains "orders.refund" if input.call.args.amount > data.mesh.limits.refund

deny contains {"tool": "orders.lookup", "reason": "closed_today"} if input.call.args.day == "sunday"

deny contains "orders.lookup" if net.cidr_contains("10.0.0.0/8", input.call.args.address)
"""


def ask(app: str, tool: str, **args: object) -> dict[str, object]:
    """The part of an input that decisions of these tests look at."""
    return {"caller": {"app": app}, "call": {"tool": tool, "kind": "tool", "args": args}, "untrusted": {}}


@dataclass
class RunningOpa:
    """One OPA process and how to reach it."""

    process: subprocess.Popen[bytes]
    socket_path: Path
    info: bundle.BundleInfo

    def engine(self, *, token: str = GATEWAY_TOKEN, timeout_seconds: float = 5.0) -> OpaEngine:
        return OpaEngine(socket_path=str(self.socket_path), token=token, timeout_seconds=timeout_seconds)

    def probe(self) -> None:
        opa.probe(
            socket_path=self.socket_path,
            gateway_token=GATEWAY_TOKEN,
            supervisor_token=SUPERVISOR_TOKEN,
            ready_seconds=30,
            alive=lambda: self.process.poll() is None,
        )

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)


def write_policies(folder: Path, *, desk: str = DESK, refund: int = 50) -> Path:
    """A project's policy folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "desk.rego").write_text(desk)
    (folder / "data.json").write_text(f'{{"mesh": {{"limits": {{"refund": {refund}}}}}}}\n')
    return folder


@contextlib.contextmanager
def run_opa(
    opa_binary: Path, work: Path, *, socket_name: str = "opa.sock", **policies: object
) -> Iterator[RunningOpa]:
    """Builds a bundle, starts an OPA on it, waits until it is probed."""
    folder = write_policies(work / f"policies-{socket_name}", **policies)
    info = bundle.build(user_policies=folder, data={}, out_dir=work / "generated", opa=opa_binary)
    authz = opa.write_authz(work / "authz", gateway_token=GATEWAY_TOKEN, supervisor_token=SUPERVISOR_TOKEN)
    start = opa.OpaProcess(opa=opa_binary, socket_path=work / socket_name, bundle=info.path, authz=authz)
    process = subprocess.Popen(start.argv(), env=start.env(), stdin=subprocess.DEVNULL)
    running = RunningOpa(process, start.socket_path, info)
    try:
        running.probe()
        yield running
    finally:
        process.kill()
        process.wait(timeout=10)


class FakeServer:
    """Answers each connection as a script says; counts connections and keeps requests."""

    def __init__(self, path: Path, serve: Callable[[socket.socket], None]) -> None:
        self.path = path
        self.connections = 0
        self._serve = serve
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._serve(connection)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=5)


def read_request(connection: socket.socket) -> bytes:
    """One whole request with a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = connection.recv(65536)
        if not received:
            raise ConnectionResetError
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    length = int(lengths[0].partition(b":")[2]) if lengths else 0
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def answer(body: bytes, *, status: str = "200 OK", extra: str = "") -> bytes:
    """One HTTP answer."""
    return f"HTTP/1.1 {status}\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body
