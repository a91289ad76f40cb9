"""The local supervisor: brings a mesh up in order, keeps it up, takes orders, takes it down.

Order: workload API; Sentry; placement and scheduler; at once OPA, sidecars and tool hosts' imports;
the catalogue and, from it, the policy's listing; the gateway; the hosts' connections; the probes.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from meshgate_agents.launcher.launch import uuid7
from meshgate_identities.authority import DevelopmentAuthority
from meshgate_identities.hardening import refuse_inspection
from meshgate_identities.workload_api import WorkloadApiServer

from meshgate_deploy import (
    catalogue,
    configs,
    dapr_plane,
    generate,
    held_certificates,
    isolation,
    log_files,
    manifest_checks,
    own_tools,
    probes,
    runtime,
    store_check,
    store_url,
    strays,
    user_checks,
    users,
)
from meshgate_deploy.activation import Activation
from meshgate_deploy.admin_client import Operator
from meshgate_deploy.control import STREAMS, ControlServer, Send
from meshgate_deploy.enrolment import RENEW_SECONDS, Enroller
from meshgate_deploy.environment import Environment, carried
from meshgate_deploy.errors import (
    Cancelled,
    DependencyUnavailable,
    IntegrityFailed,
    ManifestError,
    UsageError,
)
from meshgate_deploy.manifest import Manifest, load
from meshgate_deploy.mesh_services import MeshServices
from meshgate_deploy.orders import Order, choose_app, forward
from meshgate_deploy.policy_plane import PolicyPlane
from meshgate_deploy.preloaded import Preloaded
from meshgate_deploy.processes import Processes, become_subreaper, clean_leftovers, reap_orphans
from meshgate_deploy.replays import Replays
from meshgate_deploy.runtime import RuntimeBinaries
from meshgate_deploy.services import Service, Services
from meshgate_deploy.sidecar_watch import Sidecar, SidecarWatch
from meshgate_deploy.state import State, prepare_app, prepare_apps, prepare_state, write_private
from meshgate_deploy.status import status
from meshgate_deploy.terminals import Terminals

Say = Callable[[str], None]
TICK_SECONDS = 0.5
CONNECT_SECONDS = 30.0
HOST_RESTARTS = 3  # before it has connected even once: it will not
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """One mesh of one project. Use from the main thread."""

    def __init__(self, *, project: Path, say: Say) -> None:
        self._say = say
        self.manifest: Manifest = load(project / "meshgate.yaml")
        problems = manifest_checks.check_modules(self.manifest, project)
        if problems:
            raise ManifestError(problems)
        self.state: State = prepare_state(project)
        self._environment = Environment(project=self.state.project)
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._begun = time.monotonic()
        self._checks: list[probes.Check] = []

    def run(self) -> None:
        """Brings the mesh up, serves until told to stop, takes it down.

        Raises:
            MeshError: something did not come up; everything started was stopped again.
        """
        with self._alone():
            # This may build for minutes: nothing runs yet, so signals still end us as usual.
            binaries = runtime.find_or_install(progress=self._say)
            refuse_inspection()
            become_subreaper()
            control = ControlServer(path=self.state.control, handle=self._handle)
            for name in clean_leftovers(self.state.run / "processes.json"):
                self._say(f"{name}: left by an earlier start that crashed; ended")
            if left := strays.end_everywhere(self.state.sockets, self.state.app_sockets):
                self._say(f"{left} processes of programs: left by an earlier start; ended")
            processes = Processes(record=self.state.run / "processes.json")
            before = {number: signal.signal(number, self._signalled) for number in SIGNALS}
            try:
                self._compose(processes, binaries)
                control.start()
                self._live()
            finally:
                processes.close()
                control.close()
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _live(self) -> None:
        self._workload_api.start()
        self._terminals.start()
        try:
            self._up()
            self._serve()
        except DependencyUnavailable as error:
            if self._stop.is_set() and not self._ready.is_set():
                raise Cancelled("the start was cancelled", next_step="meshgate up") from error
            raise
        finally:
            self._down()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the project's lock: one supervisor at a time."""
        lock = self.state.run / "lock"
        lock.touch(mode=0o600)
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DependencyUnavailable(
                    "the mesh is up already, or is starting", next_step="meshgate ps, or meshgate down"
                ) from error
            yield

    def stop(self) -> None:
        """Asks `run` to end; from any thread."""
        self._stop.set()

    def _signalled(self, _number: int, _frame: object) -> None:
        self._stop.set()

    def _compose(self, processes: Processes, binaries: RuntimeBinaries) -> None:
        manifest, state = self.manifest, self.state
        self._authority = DevelopmentAuthority(directory=state.spiffe_ca, trust_domain=manifest.trust_domain)
        self._workload_api = WorkloadApiServer(socket_path=state.workload_api, authority=self._authority)
        self._enroller = Enroller(
            control_trust_domain=dapr_plane.control_trust_domain(manifest.trust_domain),
            namespace=manifest.mesh,
        )
        self._processes = processes
        self._preloaded = Preloaded(
            manifest=manifest, state=state, processes=processes, environment=self._environment,
            cancelled=self._stop,
        )  # fmt: skip
        self._policies = PolicyPlane(manifest=manifest, state=state, opa=binaries.opa)
        self._operator = Operator(
            authority=self._authority, manifest=manifest, target=lambda: self._mesh.gateway_target
        )
        self._terminals = Terminals(state.terminals, self._operator.call)
        self._mesh = MeshServices(
            manifest=manifest, state=state, binaries=binaries, environment=self._environment,
            enroller=self._enroller, preloaded=self._preloaded, terminals=self._terminals,
        )  # fmt: skip
        self._services = Services(
            processes=processes, workload_api=self._workload_api, report=self._report, cancelled=self._stop
        )
        self._replays = Replays(
            manifest=manifest, state=state, processes=processes, workload_api=self._workload_api,
            environment=self._environment, target=lambda: self._mesh.gateway_target,
            preloaded=self._preloaded,
        )  # fmt: skip

    def _up(self) -> None:
        """The order of a start."""
        manifest, services, mesh = self.manifest, self._services, self._mesh
        self._prepare()
        services.watch()  # from here on: what ends before all are up is started again too
        services.start(mesh.sentry())
        mesh.trust_anchors()
        self._together(
            [partial(self._start, partial(mesh.control, name)) for name in ("placement", "scheduler")]
        )
        self._together(
            [
                self._start_opa,
                *(partial(self._start_host, host) for host in manifest.toolhosts),
                *(partial(self._describe, app) for app in manifest.own_tools),
                *(
                    partial(self._start, partial(mesh.sidecar, app, name))
                    for app in manifest.apps
                    if app not in manifest.toolhosts
                    for name in manifest.replicas(app)
                ),
            ]
        )
        self._write_catalogue()
        self._together(
            [
                partial(services.start, mesh.gateway(self._policies.place)),
                *(
                    partial(self._start, partial(mesh.worker, app, name, self._replays.definitions))
                    for app in manifest.runners
                    for name in manifest.replicas(app)
                ),
            ]
        )
        self._await_hosts()
        self._probe()
        watch = SidecarWatch(services=services, sidecars=self._sidecars, say=self._say)
        threading.Thread(target=watch.run, args=(self._stop,), name="sidecars", daemon=True).start()
        self._ready.set()
        self._say(f"the mesh is up in {time.monotonic() - self._begun:.1f} s")

    def _prepare(self) -> None:
        """What can be refused or written before a service runs."""
        for app, name in self._environment.missing(self.manifest):
            self._say(f"{app}: {name} is named for it but set neither in .env nor in the environment")
        isolation.require(self.manifest, self.state)
        self._prepare_users()
        store_check.require(self.manifest, self._environment, file=configs.store_file(self.state))
        self._preloaded.open()
        generate.dapr_resources(self.manifest, self.state)
        if not store_url.is_postgresql(self.manifest.store):
            generate.make_actor_store(self.state)
        self._enroller.write_jwks(self.state.generated / "dapr" / "jwks.json")

    def _prepare_users(self) -> None:
        """Of apps whose programs have one of their own."""
        found = users.every(self.manifest)
        envs = {app: self._environment.for_agent(self.manifest, app, {}) for app in found}
        user_checks.require(self.manifest, self.state, envs)
        if found:
            prepare_apps(self.state)
        for app in found:
            prepare_app(self.state, app)

    def _sidecars(self) -> dict[str, Sidecar]:
        return {
            name: Sidecar(made.health, dapr_plane.api_token_file(self.state, name))
            for name, made in self._mesh.all_sidecars.items()
        }

    def _start(self, make: Callable[[], Service]) -> None:
        self._services.start(make())

    def _start_opa(self) -> None:
        self._policies.clean()
        with self._policies.sources() as sources:
            self._first = self._policies.engine(self._policies.build(sources))
        self._services.start(self._first.service)

    def _start_host(self, host: str) -> None:
        self._services.start(self._mesh.sidecar(host))
        self._services.start(self._mesh.toolhost(host))

    def _describe(self, app: str) -> None:
        own_tools.describe(self._processes, self._mesh.own_tools(app), self._stop)

    def _write_catalogue(self) -> None:
        apps = (*self.manifest.toolhosts, *self.manifest.own_tools)
        files = {app: configs.definitions_file(self.state, app) for app in apps}
        self._replays.definitions = catalogue.read_definitions(files)
        made = catalogue.catalogue(self.manifest, self._replays.definitions)
        write_private(configs.catalogue_file(self.state), json.dumps(made, indent=2).encode())
        self._policies.active = self._policies.rehearse(self._first, made["tools"])
        self._activation = Activation(
            plane=self._policies, services=self._services, gateway=self._operator, tools=made["tools"]
        )

    def _await_hosts(self) -> None:
        give_up_at = time.monotonic() + CONNECT_SECONDS
        for host in self.manifest.toolhosts:
            ready = configs.ready_file(self.state, host)
            service = self._services.find(host)
            while not ready.exists():
                dying = service is not None and service.restarts > HOST_RESTARTS
                if dying or time.monotonic() > give_up_at or self._stop.is_set():
                    raise DependencyUnavailable(
                        f"tool host {host} did not connect to the gateway", next_step=f"meshgate logs {host}"
                    )
                time.sleep(0.02)
            self._say(f"{host}: connected")

    def _probe(self) -> None:
        self._checks = probes.check_plane(self.manifest, self.state, self._mesh.sidecars)
        bad = [check for check in self._checks if not check.ok]
        if bad:
            why = "\n".join(f"{check.name}: {check.detail}" for check in bad)
            raise IntegrityFailed(
                "the Dapr plane does not refuse what it must", why=why, next_step=bad[0].fix
            )
        self._say(f"probes: {len(self._checks)} checks of the Dapr plane passed")

    def _together(self, steps: Iterable[Callable[[], None]]) -> None:
        """Runs steps at once; raises the first failure after all ended."""
        with ThreadPoolExecutor(16, thread_name_prefix="start") as pool:
            futures = [pool.submit(step) for step in steps]
        for future in futures:
            future.result()

    def _serve(self) -> None:
        renew_at = time.monotonic() + RENEW_SECONDS
        while not self._stop.wait(TICK_SECONDS):
            reap_orphans(known=lambda: self._processes.pids)
            folders = (self.state.sockets, self.state.app_sockets)
            strays.end_adopted(*folders, known=lambda: self._processes.pids)
            log_files.bound(self.state.logs)
            if time.monotonic() > renew_at:
                renew_at = time.monotonic() + RENEW_SECONDS
                for app in self.manifest.apps:
                    self._mesh.enrol(app)
                self._mesh.enrol_control()

    def _down(self) -> None:
        self._ready.clear()
        self._terminals.close()
        self._replays.stop()
        self._services.stop()
        self._preloaded.close()
        self._workload_api.close()
        shutil.rmtree(self.state.app_sockets, ignore_errors=True)  # also what killed workers left there
        self._say("the mesh is down")

    def _report(self, service: Service) -> None:
        took = f" in {service.seconds:.1f} s" if service.state == "ready" else ""
        detail = f": {service.detail}" if service.detail else ""
        if service.state != "starting":
            self._say(f"{service.name}: {service.state}{took}{detail}")

    def _handle(
        self, request: dict[str, Any], descriptors: list[int], connection: socket.socket, send: Send
    ) -> None:
        operation = request.get("op")
        if operation == "status":
            send(self._status())
        elif operation == "identity":
            send(held_certificates.held(self.manifest, self._workload_api, str(request["of"])))
        elif operation == "down":
            self._stop.set()
            send({"stopping": True, "pid": os.getpid()})
        elif not self._ready.is_set():
            raise DependencyUnavailable("the mesh is still starting", next_step="meshgate ps")
        elif operation == "admin":
            send(self._operator.call(str(request["method"]), dict(request.get("request") or {})))
        elif operation == "probe":
            self._checks = probes.check_plane(self.manifest, self.state, self._mesh.sidecars)
            send(
                {
                    "checks": [
                        {"name": c.name, "ok": c.ok, "detail": c.detail, "fix": c.fix} for c in self._checks
                    ]
                }
            )
        elif operation == "activate":
            dry_run = request.get("dry_run") is True
            send(
                {"result": self._activation.activate(dry_run=dry_run, say=lambda text: send({"note": text}))}
            )
        elif operation == "run":
            self._run_order(request, descriptors, connection, send)
        else:
            raise UsageError(f"the supervisor knows no {operation!r}")

    def _status(self) -> dict[str, Any]:
        return status(
            self.manifest, self.state, services=self._services.rows, replays=self._replays.rows,
            fork_servers=self._preloaded.rows, ready=self._ready.is_set(),
        )  # fmt: skip

    def _run_order(
        self, request: dict[str, Any], descriptors: list[int], connection: socket.socket, send: Send
    ) -> None:
        """A detached run needs neither the asker nor this supervisor."""
        command = tuple(map(str, request["command"]))
        app = choose_app(self.manifest, request.get("app"), command)
        run_id, asker = str(request.get("run_id") or uuid7()), dict(request.get("asker") or {})
        if not descriptors:
            order = {"app": app, "run_id": run_id, "command": command, "cwd": str(request["cwd"])}
            answer = self._operator.call("StartRun", {**order, "env": carried(asker)})
            send({"run_id": answer["run"]["run_id"], "app": app})
            return
        if len(descriptors) != STREAMS:
            raise UsageError(f"{len(descriptors)} streams for a run; it has three")
        attended = Order(
            app=app, run_id=run_id, command=command, cwd=Path(request["cwd"]), asker=asker,
            streams=(descriptors[0], descriptors[1], descriptors[2]),
        )  # fmt: skip
        play = self._replay if request.get("replay") is True else self._attend
        send({"exit": play(attended, connection, lambda: send({"run_id": run_id, "app": app}))})

    def _attend(self, order: Order, connection: socket.socket, begun: Callable[[], None]) -> int:
        with self._terminals.at(order) as terminal:
            threading.Thread(target=forward, args=(connection, terminal.signal), daemon=True).start()
            terminal.ordered()
            begun()
            return terminal.wait()

    def _replay(self, order: Order, connection: socket.socket, begun: Callable[[], None]) -> int:
        replaying = self._replays.start(order)
        begun()
        threading.Thread(target=forward, args=(connection, replaying.signal), daemon=True).start()
        return self._replays.wait(replaying)
