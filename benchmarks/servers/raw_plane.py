"""A Dapr plane as `meshgate up` makes it, without anything of ours behind its sidecars.

The same control plane, the same resources, access policies, signing and store; two sidecars with plain
workers (`servers.raw_dapr`). Reads a line per call, answers with the milliseconds that it took. A process of
its own: at its end it kills all that is below it.
"""

import argparse
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from meshgate_deploy import dapr_plane, generate, runtime
from meshgate_deploy.enrolment import Enroller
from meshgate_deploy.environment import Environment
from meshgate_deploy.manifest import load
from meshgate_deploy.mesh_services import MeshServices
from meshgate_deploy.preloaded import Preloaded
from meshgate_deploy.processes import Processes
from meshgate_deploy.services import Services
from meshgate_deploy.state import State, prepare_state
from meshgate_deploy.terminals import Terminals
from meshgate_identities.authority import DevelopmentAuthority
from meshgate_identities.workload_api import WorkloadApiServer

from servers.raw_dapr import CALLEE, CALLER

BENCHMARKS = Path(__file__).resolve().parents[1]
MANIFEST = f"""\
apiVersion: meshgate/v1
mesh: raw
trustDomain: raw.example
programs:
  {CALLEE}: {{run: [python, nothing.py]}}
"""


def main() -> None:
    """Serves until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", type=Path, required=True)
    project = parser.parse_args().project
    project.mkdir(parents=True)
    (project / "meshgate.yaml").write_text(MANIFEST)
    (project / "nothing.py").write_text("")
    state = prepare_state(project)
    with ExitStack() as stack:
        mesh = _up(stack, state)
        workers = {}
        for app in (CALLEE, CALLER):
            port = mesh.sidecars[app].address.rpartition(":")[2]
            workers[app] = stack.enter_context(_worker(app, port, state))
        print("ready", flush=True)
        for _ in sys.stdin:
            print(_asked(workers[CALLER]), flush=True)


def _up(stack: ExitStack, state: State) -> MeshServices:
    """What `Supervisor._up` starts of Dapr, in its order."""
    manifest = load(state.project / "meshgate.yaml")
    cancelled, environment = threading.Event(), Environment(project=state.project)
    processes = Processes(record=state.run / "processes.json")
    stack.callback(processes.close)
    authority = DevelopmentAuthority(directory=state.spiffe_ca, trust_domain=manifest.trust_domain)
    enroller = Enroller(
        control_trust_domain=dapr_plane.control_trust_domain(manifest.trust_domain), namespace=manifest.mesh
    )
    mesh = MeshServices(
        manifest=manifest, state=state, binaries=runtime.find_or_install(progress=lambda _: None),
        environment=environment, enroller=enroller, terminals=Terminals(state.terminals, lambda *_: {}),
        preloaded=Preloaded(
            manifest=manifest, state=state, processes=processes, environment=environment, cancelled=cancelled
        ),
    )  # fmt: skip
    services = Services(
        processes=processes, report=lambda _: None, cancelled=cancelled,
        workload_api=WorkloadApiServer(socket_path=state.workload_api, authority=authority),
    )  # fmt: skip
    stack.callback(services.stop)
    generate.dapr_resources(manifest, state)
    generate.make_actor_store(state)
    enroller.write_jwks(state.generated / "dapr" / "jwks.json")
    services.start(mesh.sentry())
    mesh.trust_anchors()
    for name in ("placement", "scheduler"):
        services.start(mesh.control(name))
    for app in (CALLER, CALLEE):
        services.start(mesh.sidecar(app))
    return mesh


@contextmanager
def _worker(app: str, port: str, state: State) -> Iterator["subprocess.Popen[str]"]:
    command = [
        sys.executable, "-m", "servers.raw_dapr", app, "--port", port,
        "--token-file", str(dapr_plane.api_token_file(state, app)),
    ]  # fmt: skip
    with (state.logs / f"worker-{app}.log").open("w") as log, subprocess.Popen(
        command, cwd=BENCHMARKS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
    ) as popen:  # fmt: skip
        try:
            if _read(popen) != "ready":
                raise RuntimeError(f"the raw worker of {app} did not start")
            yield popen
        finally:
            popen.kill()


def _asked(popen: "subprocess.Popen[str]") -> str:
    if popen.stdin is None:
        raise RuntimeError("no pipe")
    popen.stdin.write("go\n")
    popen.stdin.flush()
    return _read(popen)


def _read(popen: "subprocess.Popen[str]") -> str:
    line = popen.stdout.readline() if popen.stdout else ""
    if not line:
        raise RuntimeError("a raw worker ended")
    return line.strip()


if __name__ == "__main__":
    main()
