"""Brings a mesh up in order, each part health-gated, watches it, and takes it down.

It alone reads secrets, mints tokens and issues identities on one machine.
"""

import json
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import grpc
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from meshgate_identities.authority import DevelopmentAuthority, write_private
from meshgate_identities.spiffe_id import SpiffeId
from meshgate_identities.tls import gateway_dns_name
from meshgate_identities.workload_api import WorkloadApiServer
from meshgate_policies import bundle, opa
from meshgate_policies.errors import PolicyInvalid
from meshgate_wire import broker_pb2_grpc as rpc

from meshgate_deploy import configs, environment
from meshgate_deploy.configs import Endpoints, Places
from meshgate_deploy.dapr_plane import DaprPlane, Launch, choose_ports, free_port
from meshgate_deploy.errors import EXIT_NOT_FOUND, EXIT_USAGE, UserError
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.processes import Managed, ProcessTable, wait_for
from meshgate_deploy.runtime import RuntimeBinaries

START_SECONDS = 30.0
PORT_ATTEMPTS = 3  # a port that was free when chosen can be taken when it is bound
MAX_SOCKET_PATH = 80  # sun_path holds 108 bytes; the launchers' sockets lie one folder deeper
WATCH_SECONDS = 0.2
STOP_FIRST = ("gateway",)

Say = Callable[[str], None]


def places_of(project: Path) -> Places:
    """The state folder (0700) of a project, and a folder for sockets whose paths are short enough."""
    state = project / ".meshgate"
    for folder in (state, *(state / name for name in ("run", "logs", "generated", "data", "ca"))):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    sockets = state / "run"
    if len(str(sockets / "control.sock")) > MAX_SOCKET_PATH:
        note = state / "run" / "socket_dir"
        if not note.exists() or not Path(note.read_text()).is_dir():
            note.write_text(tempfile.mkdtemp(prefix="meshgate-"))
        sockets = Path(note.read_text())
    return Places(project=project, state=state, sockets=sockets)


class Supervisor:
    """One mesh on this machine."""

    def __init__(self, *, project: Path, manifest: Manifest, binaries: RuntimeBinaries, say: Say) -> None:
        self.manifest = manifest
        self.places = places_of(project.resolve())
        self._binaries = binaries
        self._say = say
        self.table = ProcessTable(folder=self.places.state / "run", logs=self.places.state / "logs")
        self._authority = DevelopmentAuthority(
            directory=self.places.state / "ca" / "spiffe", trust_domain=manifest.trust_domain
        )
        self._workload_api = WorkloadApiServer(
            socket_path=self.places.workload_api, authority=self._authority
        )
        self._known = environment.known_variables(self.places.project)
        self._plane = DaprPlane(
            mesh=manifest.mesh,
            trust_domain=manifest.trust_domain,
            state=self.places.state,
            binaries=binaries,
            ports=choose_ports(),
        )
        self._apps = {"gateway": "gateway", **manifest.apps()}
        ports = {app: (free_port(), free_port()) for app in self._apps}
        self.endpoints = Endpoints(free_port(), ports)
        self._catalogue: dict[str, Mapping[str, object]] = {}
        self._recipes: dict[str, Callable[[], Managed]] = {}
        self._gates: dict[str, Callable[[], bool]] = {}
        self._lock = threading.Lock()
        self._runs = 0

    def up(self) -> None:
        """Starts everything, in order.

        Raises:
            UserError: something did not start; what was started is stopped again.
        """
        try:
            self._prepare()
            self._start_control_plane()
            self._start_apps()
            self._start_gateway()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Stops everything; safe to repeat."""
        self._recipes.clear()
        launchers = [name for name in self.table.rows if name.startswith("run-")]
        self.table.stop_all([*launchers, *STOP_FIRST])
        self._workload_api.close()

    def watch_once(self) -> None:
        """Starts again what has died; call it in a loop."""
        for name, recipe in list(self._recipes.items()):
            managed = self.table.rows.get(name)
            if managed is not None and not managed.alive():
                self._say(f"{name} ended with {managed.popen.returncode}; starting it again")
                recipe()

    def run(
        self, app: str, argv: Sequence[str], *, stdio: tuple[int, int, int], run_id: str | None = None
    ) -> Managed:
        """Starts a launcher for one run of an app.

        Raises:
            UserError: no such crew or program.
        """
        kinds = self.manifest.apps()
        if kinds.get(app) not in ("crew", "program"):
            known = ", ".join(sorted(a for a, k in kinds.items() if k != "toolhost")) or "none"
            raise UserError(
                f"there is no crew or program '{app}'", why=f"the manifest has: {known}",
                fix="use `meshgate run --app NAME -- ...`", exit_code=EXIT_NOT_FOUND,
            )  # fmt: skip
        with self._lock:
            self._runs += 1
            name = f"run-{self._runs}-{app}"
        config = configs.launcher_config(
            self.manifest,
            self.places,
            self.endpoints,
            app,
            self._app_environment(app),
            self._catalogue,
            run_id,
        )
        path = self.places.state / "run" / f"{name}.json"
        write_private(path, json.dumps(config).encode())
        module = [sys.executable, "-m", "meshgate_agents.launcher", "--config", str(path), "--", *argv]
        managed = self.table.start(
            name, module, env=environment.for_process(self._known, ()), cwd=self.places.project, stdio=stdio
        )
        self._workload_api.register(managed.popen.pid, self.spiffe_id(app))
        return managed

    def finish_run(self, managed: Managed) -> None:
        """Forgets a launcher that has ended."""
        self._workload_api.forget(managed.popen.pid)
        self.table.stop(managed.name)

    def admin(self) -> rpc.AdminStub:
        """The gateway's operator door, with an identity issued for this call."""
        svid = self._authority.issue(spiffe_id=self.spiffe_id("operator"))
        leaf = x509.load_der_x509_certificate(svid.chain_der).public_bytes(Encoding.PEM)
        key = load_der_private_key(svid.key_der, None)
        credentials = grpc.ssl_channel_credentials(
            self._authority.root.public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            leaf,
        )
        name = gateway_dns_name(trust_domain=self.manifest.trust_domain, mesh=self.manifest.mesh)
        options = [("grpc.ssl_target_name_override", name), ("grpc.enable_http_proxy", 0)]
        return rpc.AdminStub(grpc.secure_channel(self.endpoints.gateway, credentials, options=options))

    def spiffe_id(self, app: str) -> SpiffeId:
        """The identity of one app."""
        return SpiffeId.of_app(trust_domain=self.manifest.trust_domain, namespace=self.manifest.mesh, app=app)

    def _prepare(self) -> None:
        for name in self.table.clean_leftovers():
            self._say(f"{name}: left by an earlier supervisor, ended")
        self._plane.forget_tokens()
        for stale in (self.places.state / "run").glob("ready-*"):
            stale.unlink()
        for stale in (self.places.state / "run").glob("definitions-*"):
            stale.unlink()
        self._plane.write_resources(self._apps)
        plain = yaml.safe_dump(configs.dapr_yaml(self.manifest, self.places), sort_keys=False)
        (self.places.state / "generated" / "dapr.yaml").write_text(plain)
        self._policy = self._build_policy()
        self._workload_api.start()

    def _build_policy(self) -> dict[str, str]:
        folder = self.places.project / self.manifest.policies
        tokens = {name: secrets.token_urlsafe(32) for name in ("gateway", "supervisor")}
        run = self.places.state / "run"
        for name, token in tokens.items():
            write_private(run / f"opa-token-{name}", token.encode())
        try:
            built = bundle.build(
                opa=self._binaries.opa, user_policies=folder, tokens=tokens,
                out_dir=self.places.state / "generated" / "policy",
            )  # fmt: skip
        except PolicyInvalid as error:
            raise UserError(
                "the policies do not compile", why=str(error), fix="run `meshgate policy check`",
                exit_code=EXIT_USAGE,
            ) from error  # fmt: skip
        self._bundle = built
        return {
            "socket": str(self.places.sockets / "opa.sock"),
            "token_file": str(run / "opa-token-gateway"),
            "revision": built.revision,
            "digest": built.sha256,
        }

    def _start_control_plane(self) -> None:
        plane, ca = self._plane, self._plane.credentials / "ca.crt"
        self._start(
            "sentry", plane.sentry, lambda: ca.exists() and _listens(_flag(plane.sentry().argv, "--port"))
        )
        for name, launch in (("placement", plane.placement), ("scheduler", plane.scheduler)):
            self._start(name, launch, partial(_launch_listens, launch), wait=False)
        self._gate("placement")
        self._gate("scheduler")

    def _start_apps(self) -> None:
        self._start("opa", self._opa, self._opa_ready, wait=False)
        for host in self.manifest.toolhosts:
            self._write(host, configs.toolhost_config(self.manifest, self.places, self.endpoints, host))
        for app in self._apps:
            http = self.endpoints.dapr_ports[app][1]
            self._plane.api_token(app)
            self._start(
                f"daprd-{app}",
                partial(self._plane.sidecar, app, *self.endpoints.dapr_ports[app]),
                partial(_healthy, f"http://127.0.0.1:{http}/v1.0/healthz/outbound"),
                wait=False,
            )
        for host in self.manifest.toolhosts:
            path = self.places.definitions(host)
            self._start(host, partial(self._ours, "meshgate_toolhost", host), path.exists, wait=False)
        for name in ("opa", *(f"daprd-{app}" for app in self._apps), *self.manifest.toolhosts):
            self._gate(name)

    def _start_gateway(self) -> None:
        tools: dict[str, object] = {}
        for host in self.manifest.toolhosts:
            definitions = json.loads(self.places.definitions(host).read_text())
            tools |= configs.catalogue_tools(self.manifest, host, definitions)
        self._check_tool_rules(tools)
        self._catalogue = tools  # type: ignore[assignment]
        apps = {app: {"kind": kind} for app, kind in self.manifest.apps().items()}
        self._write("catalogue", {"tools": tools, "apps": apps})
        config = configs.gateway_config(self.manifest, self.places, self.endpoints, self._policy)
        self._write("gateway", config)
        ready = self.places.ready("gateway")
        self._start("gateway", lambda: self._ours("meshgate_gateway", "gateway"), ready.exists)
        for host in self.manifest.toolhosts:
            self._gates[host] = self.places.ready(host).exists
            self._gate(host)

    def _check_tool_rules(self, tools: Mapping[str, object]) -> None:
        unknown = sorted(set(self.manifest.tools) - set(tools))
        if unknown:
            raise UserError(
                f"`tools:` names {unknown[0]}, which no tool host offers",
                why=f"the hosts offer: {', '.join(sorted(tools))}",
                fix="correct the id in meshgate.yaml, or add the tool to a host",
                exit_code=EXIT_USAGE,
            )

    def _app_environment(self, app: str) -> dict[str, str]:
        named = (self.manifest.crews.get(app) or self.manifest.programs[app]).env
        hidden = {name for host in self.manifest.toolhosts.values() for name in host.secrets}
        env = environment.for_process(self._known, named, hidden)
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
        return {**env, "CREWAI_STORAGE_DIR": str(self.places.state / "data" / f"crewai-{app}")}

    def _ours(self, module: str, app: str) -> Launch:
        host = self.manifest.toolhosts.get(app)
        named = [*host.secrets, *host.env] if host else []
        env = environment.for_process(self._known, named)
        env |= {"CREWAI_DISABLE_TELEMETRY": "true", "OTEL_SDK_DISABLED": "true", "PYTHONUNBUFFERED": "1"}
        return Launch([sys.executable, "-m", module, "--config", str(self.places.config(app))], env)

    def _opa(self) -> Launch:
        path = Path(self._policy["socket"])
        path.unlink(missing_ok=True)
        return Launch(opa.server_argv(opa=self._binaries.opa, socket_path=path, bundle=self._bundle.path), {})

    def _opa_ready(self) -> bool:
        token = (self.places.state / "run" / "opa-token-supervisor").read_text()
        return opa.healthy(Path(self._policy["socket"]), token)

    def _start(
        self, name: str, launch: Callable[[], Launch], ready: Callable[[], bool], *, wait: bool = True
    ) -> None:
        def recipe() -> Managed:
            planned = launch()
            base = environment.for_process(self._known, ())
            managed = self.table.start(
                name, planned.argv, env={**base, **planned.env}, cwd=self.places.project
            )
            if name in self._apps:
                dns = [gateway_dns_name(trust_domain=self.manifest.trust_domain, mesh=self.manifest.mesh)]
                self._workload_api.register(
                    managed.popen.pid, self.spiffe_id(name), dns if name == "gateway" else ()
                )
            return managed

        self._gates[name] = ready
        recipe()
        self._recipes[name] = recipe
        if wait:
            self._gate(name)

    def _gate(self, name: str) -> None:
        began = time.monotonic()
        wait_for(self.table.rows[name], self._gates[name], START_SECONDS)
        self._say(f"{name:24} ready  +{time.monotonic() - began:4.1f} s")

    def _write(self, name: str, content: Mapping[str, object]) -> None:
        write_private(self.places.config(name), json.dumps(content, indent=1).encode())


def bring_up(make: Callable[[], Supervisor]) -> Supervisor:
    """Makes and starts a supervisor; again with other ports when one was taken meanwhile.

    Raises:
        UserError: as `Supervisor.up`.
    """
    for _ in range(PORT_ATTEMPTS - 1):
        supervisor = make()
        try:
            supervisor.up()
        except UserError as error:
            if "address already in use" not in error.why:
                raise
        else:
            return supervisor
    supervisor = make()
    supervisor.up()
    return supervisor


def _launch_listens(launch: Callable[[], Launch]) -> bool:
    return _listens(_flag(launch().argv, "--port"))


def _flag(argv: Sequence[str], flag: str) -> int:
    return int(argv[argv.index(flag) + 1])


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.5).close()
    except OSError:
        return False
    return True


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310 - loopback, fixed scheme
            return 200 <= answer.status < 300  # noqa: PLR2004 - HTTP success
    except OSError:
        return False
