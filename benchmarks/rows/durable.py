"""The durable brokered call on a real mesh, against a raw Dapr workflow on the same sidecars.

`meshgate up` brings up the whole mesh: Dapr with mTLS and signed histories, OPA, gateway, a tool
host with a tool that returns at once. Subject: a call over mTLS gRPC, until its outcome is there.
Baseline: the gateway's own sidecar is asked, past the gateway, to run the very workflow `call`
with an id that no host takes, and waited for. The host ignores such an id, so its activity does
nothing: one workflow and one no-op cross-app activity, on the same sidecars and workers.

All processes share all cores: on two, a mesh of ten has none to itself.
"""

import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from ca import Authority
from dapr.conf import settings as dapr_settings
from dapr.ext.workflow import DaprWorkflowClient
from load import many_threads, one_at_a_time
from measure import Goal, Row, interleave
from meshgate_deploy import detached
from meshgate_deploy.control import ask_once
from meshgate_deploy.state import open_state
from meshgate_gateway.adapters.dapr_runtime import WORKFLOW
from meshgate_wire import broker_pb2 as pb
from meshgate_wire import broker_pb2_grpc as services
from servers import desk

from rows import Bench
from rows.brokered import busy

IN_FLIGHT = 16  # both ways are at their peak; the gateway holds 16 threads that wait
PATIENCE_SECONDS = 30
PENDING_PAUSE_SECONDS = 0.02
LATENCY, THROUGHPUT = Goal(ratio_most=1.20), Goal(ratio_least=0.85)
LATENCY_CALLS, THROUGHPUT_CALLS = (150, 10), (400, 24)
MESH, DOMAIN, CALLER, HOST = "durable", "durable.example", "caller", "tools"
FILES = {
    "meshgate.yaml": f"""\
apiVersion: meshgate/v1
mesh: {MESH}
trustDomain: {DOMAIN}
programs:
  {CALLER}: {{run: [python, nothing.py]}}
toolhosts:
  {HOST}:
    tools: [bench_tools:nothing]
tools:
  {HOST}.nothing: {{effect: external}}
""",
    f"policies/{CALLER}.rego": f'package mesh.agents.{CALLER}\n\nallow contains "{HOST}.nothing"\n',
    "bench_tools.py": 'def nothing(order: str) -> str:\n    """Returns at once."""\n    return order\n',
    "nothing.py": "",
}


class Wrong(Exception):
    """A call did not end as it must: its speed means nothing."""


def measure(bench: Bench) -> Sequence[Row]:
    """p50 with one in flight, and calls per second with 16."""
    bench.cores.free()
    with ExitStack() as stack:
        project = stack.enter_context(_mesh(bench))
        ways = {"gateway": _brokered(project, stack), "dapr": _raw(project)}
        pids = _pids(project)
        bench.say("durable: the mesh is up")
        for call in ways.values():
            call()
        alone = interleave(
            bench.repeats,
            {
                name: partial(one_at_a_time, call, count=bench.count(*LATENCY_CALLS), warm=5)
                for name, call in ways.items()
            },
        )
        crowd = interleave(
            bench.repeats,
            {
                name: partial(
                    many_threads, call, in_flight=IN_FLIGHT, count=bench.count(*THROUGHPUT_CALLS),
                    server_pids=pids,
                )
                for name, call in ways.items()
            },
        )  # fmt: skip
    p99 = {name: alone.median(name, "p99") for name in ways}
    return [
        Row(
            name="durable.p50",
            unit="ms",
            subject=alone.series("gateway", "p50"),
            baseline=alone.series("dapr", "p50"),
            goal=LATENCY,
            notes=f"1 in flight; p99 {p99['gateway']:.1f} ms, raw {p99['dapr']:.1f} ms",
        ),
        Row(
            name="durable.throughput",
            unit="calls/s",
            subject=crowd.series("gateway", "rate"),
            baseline=crowd.series("dapr", "rate"),
            goal=THROUGHPUT,
            notes=f"{IN_FLIGHT} in flight; of one core: mesh {busy(crowd, 'gateway')}; "
            f"raw: mesh {busy(crowd, 'dapr')}",
        ),
    ]


@contextmanager
def _mesh(bench: Bench) -> Iterator[Path]:
    """A mesh that is up, in a project of its own."""
    project = bench.folder / "p"
    for name, text in FILES.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    detached.start_detached(project, lambda line: print(f"  {line}", file=sys.stderr))
    try:
        yield project
    finally:
        detached.stop(open_state(project), lambda _: None)


def _configuration(project: Path) -> dict[str, object]:
    """The gateway's, as the supervisor wrote it."""
    return dict(json.loads((open_state(project).generated / "gateway.json").read_text()))


def _pids(project: Path) -> list[int]:
    """Every process of the mesh."""
    rows = ask_once(open_state(project).control, {"op": "status"})["processes"]
    return [row["pid"] for row in rows if row["pid"]]


def _brokered(project: Path, stack: ExitStack) -> Callable[[], None]:
    """A call through the gateway, with an SVID of the mesh's development root."""
    authority = Authority(open_state(project).spiffe_ca, mesh=MESH, domain=DOMAIN)
    channel = authority.channel(CALLER, str(_configuration(project)["listen"]))
    stack.callback(channel.close)
    stub = services.BrokerStub(channel)

    def call() -> None:
        request = pb.CallToolRequest(
            step_key=desk.uuid7(), tool=f"{HOST}.nothing", arguments_json=b'{"order":"A-1001"}'
        )
        end = time.monotonic() + PATIENCE_SECONDS
        answer = stub.CallTool(request, timeout=PATIENCE_SECONDS)
        while answer.state == pb.CALL_STATE_PENDING and time.monotonic() < end:
            time.sleep(PENDING_PAUSE_SECONDS)
            answer = stub.CallTool(request, timeout=PATIENCE_SECONDS)
        if answer.state != pb.CALL_STATE_DONE:
            raise Wrong(f"state {answer.state}: {answer.message}")

    return call


def _raw(project: Path) -> Callable[[], None]:
    """The same workflow, scheduled and waited for at the gateway's sidecar."""
    sidecar = _configuration(project)["dapr"]
    if not isinstance(sidecar, dict):
        raise Wrong("the gateway has no sidecar")
    port = str(sidecar["grpc_port"])
    dapr_settings.DAPR_API_TOKEN = Path(str(sidecar["api_token_file"])).read_text().strip()
    client = DaprWorkflowClient(host="127.0.0.1", port=port)

    def call() -> None:
        instance = client.schedule_new_workflow(
            WORKFLOW, input={"call_id": "nothing", "host": HOST}, instance_id=f"raw-{uuid.uuid4().hex}"
        )
        state = client.wait_for_workflow_completion(instance, timeout_in_seconds=PATIENCE_SECONDS)
        if state is None or state.runtime_status.name != "COMPLETED":
            raise Wrong(f"the raw workflow ended as {state}")

    return call
