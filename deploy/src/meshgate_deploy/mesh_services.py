"""What each service of a mesh is started with, given what was started before it."""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from meshgate_identities.attestation import Process
from meshgate_identities.spiffe_id import SpiffeId
from meshgate_identities.tls import gateway_dns_name

from meshgate_deploy import configs, dapr_plane
from meshgate_deploy.dapr_plane import Invocation, Plane
from meshgate_deploy.enrolment import Enroller
from meshgate_deploy.environment import Environment
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.ports import LOOPBACK, free_ports
from meshgate_deploy.preloaded import QUIET, Preloaded
from meshgate_deploy.processes import Command
from meshgate_deploy.runtime import RuntimeBinaries
from meshgate_deploy.services import Service, Start, http_ready
from meshgate_deploy.state import State, new_token, write_private
from meshgate_deploy.terminals import Terminals

SYSTEM_PATH = "/usr/bin:/bin"


class MeshServices:
    """Makes the services of one mesh. Keeps the addresses that earlier ones were given."""

    def __init__(  # noqa: PLR0913 - composed once, in the supervisor
        self,
        *,
        manifest: Manifest,
        state: State,
        binaries: RuntimeBinaries,
        environment: Environment,
        enroller: Enroller,
        preloaded: Preloaded,
        terminals: Terminals,
    ) -> None:
        self._manifest, self._state, self._binaries = manifest, state, binaries
        self._preloaded, self._terminals = preloaded, terminals
        self._environment, self._enroller = environment, enroller
        self.plane = Plane(manifest.mesh, manifest.trust_domain, "", "", "", "")
        self.sidecars: dict[str, Invocation] = {}
        self._replicas: dict[str, Invocation] = {}
        self.gateway_target = f"{LOOPBACK}:{free_ports(1)[0]}"

    def sentry(self) -> Service:
        """Sentry; afterwards the plane knows its address and root."""

        def invoke(ports: list[int]) -> Invocation:
            made = dapr_plane.sentry(self._binaries.sentry, self._state, self._manifest.trust_domain, ports)
            self.plane = replace(self.plane, sentry=made.address)
            return made

        return Service("sentry", self._dapr("sentry", 3, invoke), self._enroller.service_id("sentry"))

    def control(self, name: str) -> Service:
        """Placement or scheduler."""

        def invoke(ports: list[int]) -> Invocation:
            # A fresh token for each start: it lives no longer than the enrolment needs it.
            token = self._enroller.for_service(name)
            write_private(dapr_plane.token_file(self._state, name), token.encode())
            if name == "placement":
                made = dapr_plane.placement(self._binaries.placement, self._state, self.plane, ports)
                self.plane = replace(self.plane, placement=made.address)
            else:
                made = dapr_plane.scheduler(self._binaries.scheduler, self._state, self.plane, ports)
                self.plane = replace(self.plane, scheduler=made.address)
            return made

        prepare = self._dapr(name, 4 if name == "placement" else 3, invoke)
        return Service(name, prepare, self._enroller.service_id(name))

    def trust_anchors(self) -> None:
        """Takes over Sentry's root, once Sentry is up."""
        self.plane = replace(self.plane, trust_anchors=(self._state.dapr_ca / "ca.crt").read_text())

    def sidecar(self, app: str, name: str = "") -> Service:
        """An app's sidecar, or with a replica's name that one's: another process of the same app."""
        name = name or app
        api_token = new_token(dapr_plane.api_token_file(self._state, name))

        def invoke(ports: list[int]) -> Invocation:
            self.enrol(app)
            made = dapr_plane.sidecar(
                self._binaries.daprd, self._state, self.plane, app=app, ports=ports, api_token=api_token
            )
            # In its environment only, in no file.
            made = replace(made, env={**made.env, **self._environment.for_sidecar(self._manifest)})
            (self.sidecars if name == app else self._replicas)[name] = made
            return made

        prepare = self._dapr(f"dapr-{name}", 4, invoke, api_token)
        return Service(f"dapr-{name}", prepare, self._enroller.app_id(app))

    @property
    def all_sidecars(self) -> dict[str, Invocation]:
        """By name, those of replicas too."""
        return self.sidecars | self._replicas

    def enrol(self, app: str) -> None:
        """Writes a fresh enrolment token for an app's sidecar."""
        write_private(dapr_plane.token_file(self._state, app), self._enroller.for_app(app).encode())

    def enrol_control(self) -> None:
        """Writes fresh enrolment tokens for placement and scheduler."""
        for name in ("placement", "scheduler"):
            token = self._enroller.for_service(name)
            write_private(dapr_plane.token_file(self._state, name), token.encode())

    def toolhost(self, host: str) -> Service:
        """A tool host; ready for the catalogue when its definitions are written."""
        definitions = configs.definitions_file(self._state, host)
        definitions.unlink(missing_ok=True)
        return self._ours(
            host,
            "meshgate_toolhost",
            lambda: configs.toolhost(
                self._manifest, self._state, host,
                target=self.gateway_target, sidecar=self.sidecars[host].address,
            ),
            env=lambda: self._environment.for_host(self._manifest, host),
            ready=definitions.exists,
        )  # fmt: skip

    def own_tools(self, app: str) -> Command:
        """Describes the tools that an app runs itself, and ends."""
        configs.definitions_file(self._state, app).unlink(missing_ok=True)
        path = self._state.generated / f"{app}.own-tools.json"
        config = configs.own_tools(self._manifest, self._state, app)
        write_private(path, json.dumps(config, indent=2).encode())
        argv = configs.module(sys.executable, "meshgate_toolhost.own_tools", path)
        env = self._environment.for_own_tools(self._manifest, app)
        return self._command(f"{app}-tools", argv, QUIET | env)

    def gateway(self, policy: Callable[[], Mapping[str, str]]) -> Service:
        """The gateway, once sidecars, OPA and the catalogue are there; `policy` says what is in force."""
        key = configs.payload_key_file(self._state)
        if not key.exists():
            write_private(key, os.urandom(32))
        manifest = self._manifest
        return self._ours(
            "gateway",
            "meshgate_gateway",
            lambda: configs.gateway(
                manifest, self._state, listen=self.gateway_target,
                sidecar=self.sidecars["gateway"].address, opa=policy(),
            ),
            env=lambda: self._environment.for_gateway(manifest),
            ready=configs.ready_file(self._state, "gateway").exists,
            dns_names=(gateway_dns_name(trust_domain=manifest.trust_domain, mesh=manifest.mesh),),
        )  # fmt: skip

    def worker(self, app: str, name: str, definitions: Mapping[str, Mapping[str, Any]]) -> Service:
        """A worker that plays an app's runs, once the tools are known."""
        return self._ours(
            app,
            "meshgate_agents.worker",
            lambda: configs.worker(
                self._manifest, self._state, app, name=name, definitions=definitions,
                target=self.gateway_target, sidecar=self.all_sidecars[name].address,
                env=self._environment.for_agent(self._manifest, app, {}),
                fork_servers=self._preloaded.programs.addresses,
            ),
            env=self._environment.base,
            told=partial(self._admit, app),
            ready=configs.ready_file(self._state, name).exists,
            name=name,
            death_signal=signal.SIGTERM,  # it ends its programs before it goes
        )  # fmt: skip

    def _admit(self, app: str, worker: Process) -> None:
        """What a worker may ask for: forks of programs, and terminals of its app's runs."""
        self._preloaded.programs.admit(worker)
        self._terminals.admit(app, worker)

    def _ours(  # noqa: PLR0913 - what tells one process of ours from another
        self,
        app: str,
        module: str,
        config: Callable[[], Mapping[str, Any]],
        *,
        env: Callable[[], dict[str, str]],
        ready: Callable[[], bool],
        dns_names: tuple[str, ...] = (),
        death_signal: signal.Signals = signal.SIGKILL,
        name: str = "",
        told: Callable[[Process], None] | None = None,
    ) -> Service:
        name = name or app
        path = configs.config_file(self._state, name)

        def prepare(_fresh: bool) -> Start:  # noqa: FBT001 - the shape of Service.prepare
            configs.ready_file(self._state, name).unlink(missing_ok=True)
            write_private(path, json.dumps(config(), indent=2).encode())
            argv, given = configs.module(sys.executable, module, path), env()
            command = replace(
                self._command(name, argv, given), death_signal=death_signal,
                fork=self._preloaded.fork(app, argv, given), user_code=app in self._manifest.toolhosts,
                told=told,
            )  # fmt: skip
            return Start(
                command=command,
                ready=ready,
                spiffe_id=SpiffeId.parse(self._manifest.spiffe_id(app)),
                dns_names=dns_names,
            )

        return Service(name, prepare, self._manifest.spiffe_id(app))

    def _dapr(
        self, name: str, ports: int, invoke: Callable[[list[int]], Invocation], token: str = ""
    ) -> Callable[[bool], Start]:
        chosen: list[int] = []

        def prepare(fresh: bool) -> Start:  # noqa: FBT001 - the shape of Service.prepare
            if fresh or not chosen:
                chosen[:] = free_ports(ports)
            made = invoke(chosen)
            env = {"PATH": SYSTEM_PATH, "HOME": str(self._state.run), **made.env}
            return Start(command=self._command(name, made.argv, env), ready=http_ready(made.health, token))

        return prepare

    def _command(self, name: str, argv: Any, env: Mapping[str, str]) -> Command:
        return Command(
            name=name, argv=tuple(argv), env=env, cwd=self._state.project, log=self._state.log(name),
            death_signal=signal.SIGKILL,
        )  # fmt: skip
