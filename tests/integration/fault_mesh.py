"""A real mesh whose parts a test can stop, kill and hold, and programs that run on it."""

import base64
import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
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
from grpc_health.v1 import health_pb2, health_pb2_grpc
from meshgate_deploy.control import ask_once
from meshgate_deploy.manifest import load
from meshgate_deploy.state import State, open_state
from meshgate_identities.authority import DevelopmentAuthority
from meshgate_identities.spiffe_id import SpiffeId
from meshgate_identities.tls import gateway_dns_name
from meshgate_wire import broker_pb2, broker_pb2_grpc

MESHGATE = str(Path(sys.executable).with_name("meshgate"))
DESK = Path(__file__).parent / "fault_desk"
SCRIPTED = Path(__file__).resolve().parents[1] / "agents" / "project" / "scripted.py"
PATIENCE_SECONDS = 90.0
POLL_SECONDS = 0.02
REPEATED = {"call_settled", "call_taken", "call_unknown"}  # Dapr delivers at least once, and says so late


def eventually(check: Callable[[], Any], what: str, *, seconds: float = PATIENCE_SECONDS) -> Any:
    """Polls until `check` gives something true, and returns it."""
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(POLL_SECONDS)
    return found


@dataclass
class Ended:
    """A run that ended."""

    status: int
    output: str
    seconds: float

    def lines(self, word: str) -> list[str]:
        """What the program printed after a word."""
        return [line.partition(" ")[2] for line in self.output.splitlines() if line.startswith(word)]


class Run:
    """A program under `meshgate run` that waits at its gate until `go`."""

    def __init__(self, mesh: "Mesh", script: str, name: str, *arguments: str) -> None:
        self.mesh, self.name, self.run_id = mesh, name, f"run-{name}"
        self._out = (mesh.root / f"{name}.out").open("w+")
        program = [sys.executable, script, name, *arguments]
        self._popen = subprocess.Popen(
            [MESHGATE, "run", "--app", "nightly", "--run-id", self.run_id, "--", *program],
            cwd=mesh.root, stdout=self._out, stderr=self._out, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def at_gate(self) -> "Run":
        """Waits until the program has imported everything and started its run."""
        here = self.mesh.root / "gates" / f"{self.name}.here"
        eventually(lambda: here.exists() or self._popen.poll() is not None, f"{self.name} is at its gate")
        assert here.exists(), self._text()
        return self

    def go(self) -> None:
        """Lets it call its tools."""
        (self.mesh.root / "gates" / f"{self.name}.open").touch()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def ended(self) -> Ended:
        """Waits for its end."""
        begun = time.monotonic()
        self._popen.wait(PATIENCE_SECONDS)
        return Ended(self._popen.returncode, self._text(), time.monotonic() - begun)

    def close(self) -> None:
        """Ends it in any case."""
        self._popen.terminate()
        self._popen.wait(PATIENCE_SECONDS)
        self._out.close()

    def _text(self) -> str:
        return Path(self._out.name).read_text()


class Mesh:
    """A mesh that is up, in its own folder."""

    up = (MESHGATE, "up")

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("effects", "hold", "gates", "shown", "book"):
            (root / name).mkdir()
        self._log = (root / "up.log").open("w")
        self._up = self._supervisor()

    def _supervisor(self) -> "subprocess.Popen[bytes]":
        """In a session of its own: a Ctrl-C is for whoever drives the mesh, and that one takes it down."""
        return subprocess.Popen(
            self.up, cwd=self.root, stdin=subprocess.PIPE, stdout=self._log, stderr=self._log,
            start_new_session=True,
        )  # fmt: skip

    @property
    def up_pid(self) -> int:
        """The supervisor's."""
        return self._up.pid

    @classmethod
    def start(
        cls,
        root: Path,
        desk: Path = DESK,
        *,
        env: str = "",
        store: str = "",
        meanwhile: Callable[["Mesh"], None] = lambda _: None,
    ) -> "Mesh":
        """Copies a project, writes its `.env` and where its store is, and brings its mesh up.

        What is to happen while it comes up is `meanwhile`.
        """
        shutil.copytree(desk, root, dirs_exist_ok=True)
        if store:
            with (root / "meshgate.yaml").open("a") as manifest:
                manifest.write(f"store: {store}\n")
        shutil.copy(SCRIPTED, root)
        (root / ".env").write_text(env)
        made = cls(root)
        try:
            meanwhile(made)
            made._await()
        except BaseException:
            made.close()
            raise
        return made

    def _await(self) -> None:
        log = self.root / "up.log"
        eventually(
            lambda: self._up.poll() is not None or "the mesh is up" in log.read_text(), "the mesh is up"
        )
        assert self._up.poll() is None, log.read_text()

    def again(self, number: int = signal.SIGTERM) -> None:
        """Ends its supervisor with a signal and brings it up again."""
        self._up.send_signal(number)
        self._up.wait(PATIENCE_SECONDS)
        self._log.close()
        self._log = (self.root / "up.log").open("w")
        self._up = self._supervisor()
        self._await()

    def close(self) -> None:
        """Takes it down."""
        self._up.send_signal(signal.SIGTERM)
        if self._up.stdin is not None:
            self._up.stdin.close()
        self._up.wait(PATIENCE_SECONDS)
        self._log.close()
        shutil.rmtree(self.root / ".meshgate", ignore_errors=True)

    @property
    def state(self) -> State:
        """Where the supervisor keeps things."""
        return open_state(self.root)

    @contextmanager
    def running(self, *programs: tuple[str, ...]) -> Iterator[list[Run]]:
        """Starts programs at once (script, name, arguments) and waits until each is at its gate."""
        runs = [Run(self, *program) for program in programs]
        try:
            yield [run.at_gate() for run in runs]
        finally:
            for run in runs:
                run.close()

    # What the operator sees.

    def ask(self, method: str, **request: Any) -> dict[str, Any]:
        """Asks the gateway's Admin service through the supervisor."""
        return ask_once(self.state.control, {"op": "admin", "method": method, "request": request})

    def records(self, **filters: str) -> list[dict[str, Any]]:
        """Records that match, oldest first."""
        rows: list[dict[str, Any]] = []
        page = self.ask("QueryRecords", limit=1000, **filters)
        while page["records_json"]:
            rows += [json.loads(base64.b64decode(body)) for body in page["records_json"]]
            page = self.ask("QueryRecords", limit=1000, after_seq=page["last_seq"], **filters)
        return rows

    def calls(self, run: Run) -> dict[str, dict[str, Any]]:
        """The ledger's rows of a run, by tool."""
        return {row["tool"]: row for row in self.ask("ListCalls", run_id=run.run_id)["calls"]}

    def held_up(self, run: Run) -> str:
        """Waits until a run waits for an unknown call; gives the call's id."""

        def waiting() -> str:
            shown = self.ask("ShowRun", run_id=run.run_id, row_only=True)["run"]
            return shown["detail"].removeprefix("unknown ") if shown["state"] == "waiting" else ""

        return str(eventually(waiting, "the run waits"))

    def resolve(self, call_id: str, text: str) -> None:
        """A person says what an unknown call gave."""
        result = base64.b64encode(text.encode()).decode()
        self.ask("ResolveCall", call_id=call_id, state="done", result=result, kind="RESULT_KIND_TEXT")

    def kinds(self, call_id: str) -> list[str]:
        """The kinds of a call's records, oldest first; beside them only deliveries that did nothing."""
        records = self.records(call_id=call_id)
        beside = {record["reason"] for record in records if record["kind"] == "refusal"}
        assert beside <= REPEATED
        return [record["kind"] for record in records if record["kind"] != "refusal"]

    def not_ready(self) -> list[str]:
        """Why the gateway is not ready."""
        return list(self.ask("Status")["not_ready_reasons"])

    def serving(self) -> bool:
        """What gRPC health says over mTLS."""
        asked = health_pb2.HealthCheckRequest(service="meshgate.broker.v1.Broker")
        with self._channel("operator") as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=5)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def call(self, key: str, tool: str, order: str) -> tuple[str, str]:
        """One question of the program's own over the wire: the call's state, or status and reason."""
        request = broker_pb2.CallToolRequest(
            step_key=key, tool=tool, arguments_json=json.dumps({"order": order}).encode()
        )
        with self._channel("nightly") as channel:
            try:
                answer = broker_pb2_grpc.BrokerStub(channel).CallTool(request, timeout=10)
            except grpc.RpcError as error:
                reasons = dict(error.trailing_metadata() or ())
                return error.code().name, reasons.get("meshgate-reason", "")
        return broker_pb2.CallState.Name(answer.state), answer.result.decode()

    def _channel(self, app: str) -> grpc.Channel:
        """A channel with a fresh SVID of an app."""
        manifest = load(self.root / "meshgate.yaml")
        authority = DevelopmentAuthority(directory=self.state.spiffe_ca, trust_domain=manifest.trust_domain)
        issued = authority.issue(spiffe_id=SpiffeId.parse(manifest.spiffe_id(app)))
        key = load_der_private_key(issued.key_der, None)
        chain = x509.load_der_x509_certificate(issued.chain_der)
        credentials = grpc.ssl_channel_credentials(
            authority.root.public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            chain.public_bytes(Encoding.PEM),
        )
        name = gateway_dns_name(trust_domain=manifest.trust_domain, mesh=manifest.mesh)
        target = json.loads((self.state.generated / "gateway.json").read_bytes())["listen"]
        options = (("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1))
        return grpc.secure_channel(target, credentials, options)

    def healed(self) -> None:
        """Waits until the gateway is ready again."""
        eventually(lambda: self.serving() and not self.not_ready(), "the gateway is ready")

    def effects(self, order: str) -> list[str]:
        """The keys under which bodies ran for an order."""
        path = self.root / "effects" / order
        return path.read_text().split() if path.exists() else []

    def booked(self, order: str) -> list[str]:
        """The keys of an order in the payment book."""
        path = self.root / "book" / order
        return path.read_text().split() if path.exists() else []

    # What a test does to it.

    def pid(self, service: str) -> int:
        """A service's process, as the supervisor has it."""
        rows = ask_once(self.state.control, {"op": "status"})["processes"]
        return int(next(row["pid"] for row in rows if row["name"] == service))

    def kill(self, service: str) -> None:
        """SIGKILL."""
        os.kill(self.pid(service), signal.SIGKILL)

    @contextmanager
    def stopped(self, service: str) -> Iterator[int]:
        """SIGSTOP, then SIGCONT if that very process is still there."""
        pid = self.pid(service)
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
            yield pid
        finally:
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            except ProcessLookupError:
                pass
            finally:
                os.close(pidfd)

    @contextmanager
    def held(self, *names: str) -> Iterator[None]:
        """Keeps bodies (by order) in the middle, or the host (`start`) from coming up."""
        paths = [self.root / "hold" / name for name in names]
        for path in paths:
            path.touch()
        try:
            yield
        finally:
            for path in paths:
                path.unlink()

    @contextmanager
    def full_store(self) -> Iterator[None]:
        """No file of the gateway may grow: every write of it fails, as on a full disk."""
        pid = self.pid("gateway")
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    @contextmanager
    def read_only_store(self) -> Iterator[None]:
        """The store's files become immutable, for open descriptors too."""
        files = [str(self.state.data / f"gateway.db{end}") for end in ("", "-wal")]
        subprocess.run(["chattr", "+i", *files], check=True, capture_output=True)
        try:
            yield
        finally:
            subprocess.run(["chattr", "-i", *files], check=True)

    def dispatched(self, call_id: str) -> int:
        """How many instances of the call Dapr has begun, by the keys of its actor store."""
        with closing(sqlite3.connect(f"file:{self.state.data / 'actors.db'}?mode=ro", uri=True)) as db:
            rows = db.execute("SELECT key FROM state WHERE key LIKE ?", (f"%{call_id}%",)).fetchall()
        return len({re.search(rf"{call_id}(-\d+)?", key).group() for (key,) in rows})

    def unread(self, pid: int, port: int) -> int:
        """How many connections of a process to a loopback port hold bytes that it has not read."""
        inodes = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
        rows = [line.split() for lines in tables for line in lines]
        return sum(
            f"socket:[{row[9]}]" in inodes
            and int(row[2].rpartition(":")[2], 16) == port
            and int(row[4].rpartition(":")[2], 16) > 0
            for row in rows
        )

    def sidecar_port(self, app: str) -> int:
        """Where an app's sidecar takes its app's connections."""
        config = json.loads((self.state.generated / f"{app}.json").read_bytes())
        return int(config["dapr"]["grpc_port"])
