"""A mesh with two agents and one tool host, and what an attacker on it holds."""

import contextlib
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes import dapr_wire
from fakes.dapr_wire import Answer, Enrolled, Target
from fakes.live_mesh import LiveMesh, eventually

MESH = "desk"
SCHEDULE = "/dapr.proto.scheduler.v1.Scheduler/ScheduleJob"
INTERNAL = "/dapr.proto.internals.v1.ServiceInvocation/"

PROJECT = {
    "meshgate.yaml": """
        apiVersion: meshgate/v1
        mesh: desk
        trustDomain: desk.example
        programs:
          nightly: {run: [python, nightly.py]}
          weekly: {run: [python, waiting.py]}
        toolhosts:
          orders:
            tools: [desk_tools:refund, desk_tools:slow]
        tools:
          orders.refund: {effect: irreversible}
          orders.slow: {effect: irreversible, deadlineSeconds: 120}
    """,
    "policies/nightly.rego": """
        package mesh.agents.nightly

        allow contains "orders.refund"

        allow contains "orders.slow"
    """,
    "policies/weekly.rego": """
        package mesh.agents.weekly

        allow contains "orders.refund"
    """,
    "desk_tools.py": """
        import pathlib
        import time

        HERE = pathlib.Path(__file__).parent

        def _effect(line: str) -> str:
            with (HERE / "effects").open("a") as file:
                file.write(line + "\\n")
            return "did " + line

        def refund(order: str) -> str:
            return _effect("refund " + order)

        def slow(order: str) -> str:
            done = _effect("slow " + order)
            while not (HERE / ("go-" + order)).exists():
                time.sleep(0.05)
            return done
    """,
    "waiting.py": """
        import pathlib
        import time

        while not pathlib.Path("go-victim").exists():
            time.sleep(0.05)
    """,
    "nightly.py": """
        import sys

        import desk_tools
        from crewai.tools import tool

        body = getattr(desk_tools, sys.argv[1])
        body.__doc__ = "Does."
        for order in sys.argv[2:]:
            print("GOT", repr(tool(body).run(order=order)))
    """,
}


@dataclass(frozen=True)
class Attacked:
    """A mesh that is up, from the view of who attacks it and who counts the damage."""

    mesh: LiveMesh

    @property
    def root(self) -> Path:
        return self.mesh.root

    @property
    def trust_anchors(self) -> bytes:
        return (self.root / ".meshgate/ca/dapr/ca.crt").read_bytes()

    def api(self, app: str) -> str:
        """The HTTP API of an app's sidecar."""
        return f"http://127.0.0.1:{self.mesh.flag(f'dapr-{app}', 'dapr-http-port')}"

    def internal(self, app: str) -> str:
        """Where other sidecars reach an app's."""
        return f"127.0.0.1:{self.mesh.flag(f'dapr-{app}', 'dapr-internal-grpc-port')}"

    def invoke_actor(self, by: str, target: Target, method: str, body: bytes) -> tuple[int, str]:
        """A protobuf body through the sidecar of `by`, with its own token."""
        url = f"{self.api(by)}/v1.0/actors/{target.kind}/{target.actor}/method/{method}"
        kind = "application/x-protobuf"
        return ask("PUT", url, self.mesh.secret(f"{by}.dapr-api"), body, content_type=kind)

    def enrol(self, app: str, token: str) -> tuple[Answer, Enrolled | None]:
        """A certificate as an app, from Sentry."""
        address = self.mesh.flag("dapr-gateway", "sentry-address")
        return dapr_wire.enrol(address, roots=self.trust_anchors, app=app, mesh=MESH, token=token)

    def plant(
        self, who: Enrolled, app: str, target: Target, event: bytes,
        *, retry: bytes = dapr_wire.DROP, due: str = "0s",
    ) -> Answer:  # fmt: skip
        """A job at the scheduler, in an app's name."""
        body = dapr_wire.job(app, MESH, target, event, retry=retry, due=due)
        address = self.mesh.flag("dapr-gateway", "scheduler-host-address")
        return dapr_wire.call(address, SCHEDULE, body, roots=self.trust_anchors, identity=who)

    def ledger(self) -> list[tuple[Any, ...]]:
        """The gateway's calls."""
        return self._rows("gateway.db", "SELECT call_id, state, take, updated_ms FROM calls ORDER BY 1")

    def histories(self, instance: str) -> list[str]:
        """What Dapr keeps under an instance's name."""
        return [row[0] for row in self._rows("actors.db", "SELECT key FROM state") if instance in row[0]]

    def _rows(self, name: str, query: str) -> list[tuple[Any, ...]]:
        path = self.root / ".meshgate/data" / name
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
            return store.execute(query).fetchall()

    def seen(self) -> tuple[Any, ...]:
        """Everything a successful attack would change."""
        return self.mesh.effects(), self.ledger(), len(self.mesh.records())

    def refusals(self, call_id: str) -> list[tuple[str, str]]:
        """Method and reason of what was refused of a call."""
        rows = self.mesh.records(kind="refusal", call_id=call_id)
        return [(row["method"], row["reason"]) for row in rows]

    def count(self, kind: str, call_id: str) -> int:
        """How many records of a kind a call has."""
        return len(self.mesh.records(kind=kind, call_id=call_id))

    def ran(self, tool: str, *orders: str, app: str = "nightly") -> list[str]:
        """Lets an agent call a tool, honestly, once per order; the ids of the calls."""
        before = {row[0] for row in self.ledger()}
        with self.mesh.running(app, "nightly.py", tool, *orders) as run:
            output, _ = run.communicate(timeout=180)
        made = sorted({row[0] for row in self.ledger()} - before)
        assert len(made) == len(orders), output
        return made

    @contextmanager
    def under_way(self, order: str) -> Iterator[tuple[str, Callable[[], str]]]:
        """A call that is in its tool: its id, and what lets it go on and gives the agent's output."""
        before = {row[0] for row in self.ledger()}

        def released() -> str:
            (self.root / f"go-{order}").touch()
            return run.communicate(timeout=180)[0]

        with self.mesh.running("nightly", "nightly.py", "slow", order) as run:
            eventually(lambda: f"slow {order}" in self.mesh.effects(), "the tool begins")
            (call_id,) = {row[0] for row in self.ledger()} - before
            try:
                yield str(call_id), released
            finally:
                (self.root / f"go-{order}").touch()


def ask(
    method: str, url: str, token: str, body: bytes | None = None, *, content_type: str = "application/json"
) -> tuple[int, str]:
    """A request to a sidecar's HTTP API: status and text."""
    headers = {"dapr-api-token": token, "content-type": content_type}
    request = urllib.request.Request(url, data=body, headers=headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def actor(app: str, kind: str, name: str, reminder: str = "run-activity") -> Target:
    """A workflow or activity actor of an app."""
    return Target(f"dapr.internal.{MESH}.{app}.{kind}", name, reminder)


@contextmanager
def at_work(attacked: Attacked, app: str, run_id: str) -> Iterator[None]:
    """A run of an agent's app that its worker plays until the block ends."""
    gate = attacked.root / f"go-{run_id}"
    gate.unlink(missing_ok=True)
    started = attacked.mesh.command("runs", "start", app, "--run-id", run_id)
    assert started.returncode == 0, started.stderr
    try:
        eventually(lambda: attacked.mesh.asked("runs", "show", run_id)["attempt"] > 0, "it is at work")
        yield
    finally:
        gate.touch()
