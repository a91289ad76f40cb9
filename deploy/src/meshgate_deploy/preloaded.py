"""The fork servers of one mesh: which processes of ours begin with their imports done.

Two of them are for processes of ours. One has what gateway, launchers, workers and tool hosts import. The
other has CrewAI too, for hosts whose tools come from Python: it is kept apart so that no line of CrewAI is in
a process that decides. Those for programs are in `program_servers`.
"""

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

from meshgate_deploy import server_rows, store_url
from meshgate_deploy.environment import Environment
from meshgate_deploy.forking import ForkServer
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.processes import Command, Processes
from meshgate_deploy.program_servers import ProgramServers
from meshgate_deploy.state import State

HOST = ("meshgate_toolhost.__main__", "meshgate_toolhost.host")
OURS = ("meshgate_gateway.__main__", "meshgate_agents.launcher.__main__", "meshgate_agents.worker.__main__")
STORES = {False: "meshgate_gateway.adapters.sqlite_store", True: "meshgate_gateway.adapters.postgres_store"}
CREWAI = "crewai.tools"
# Read when CrewAI is imported.
QUIET = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_DISABLE_TRACKING": "true",
    "CREWAI_DISABLE_VERSION_CHECK": "true",
    "CREWAI_TRACING_ENABLED": "false",
}
READ_AT_IMPORT = ("CREWAI_", "OTEL_", "PYTHON", "GRPC_", "DAPR_", "OPENSSL_", "SSL_")

Fork = tuple[ForkServer, Sequence[str]]


class Preloaded:
    """The fork servers, started by the supervisor before anything else.

    Attributes:
        programs: those that launchers and workers ask.
    """

    def __init__(
        self,
        *,
        manifest: Manifest,
        state: State,
        processes: Processes,
        environment: Environment,
        cancelled: threading.Event,
    ) -> None:
        self._cancelled = cancelled
        self._manifest, self._state, self._processes = manifest, state, processes
        self._base = environment.base()
        store = STORES[store_url.is_postgresql(manifest.store)]
        self._ours = self._server("fork-server", (*OURS, *HOST, store), {})
        self.programs = ProgramServers(
            manifest=manifest, state=state, processes=processes, environment=environment
        )
        crewai = (CREWAI,) if find_spec("crewai") else ()  # a host's tools may do without it
        self._crewai = self._server("fork-server-tools", (*HOST, *crewai), QUIET)

    def open(self) -> None:
        """Starts what this mesh needs; they import while the control plane starts."""
        self._ours.open()
        self.programs.open()
        if self._has_tools:
            self._crewai.open()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each that this mesh needs."""
        ours = {"fork-server": self._ours} | ({"fork-server-tools": self._crewai} if self._has_tools else {})
        abouts = {
            "fork-server": "forks gateway, workers, launchers", "fork-server-tools": "forks tool hosts",
        }  # fmt: skip
        made = [
            server_rows.row(name, server, self._processes, about=abouts[name])
            for name, server in ours.items()
        ]
        return [*made, *self.programs.rows]

    @property
    def _has_tools(self) -> bool:
        return any(host.tools for host in self._manifest.toolhosts.values())

    def close(self) -> None:
        """They end."""
        self.programs.close()
        self._ours.close()
        self._crewai.close()

    def fork(self, app: str, argv: Sequence[str], env: Mapping[str, str]) -> Fork | None:
        """How a process of ours is forked; None where its environment changes what an import does.

        Args:
            app: whose process it is.
            argv: the interpreter, its flags, `-m`, a module of ours, and its arguments.
            env: what it gets.
        """
        words = argv[argv.index("-m") + 1 :]
        host = self._manifest.toolhosts.get(app)
        server, known = self._ours, self._base
        if host is not None and host.tools:
            server, known = self._crewai, self._base | QUIET
        if any(env[name] != known.get(name) for name in env if name.startswith(READ_AT_IMPORT)):
            return None
        return server, words

    def _server(self, name: str, modules: Sequence[str], env: dict[str, str]) -> ForkServer:
        return ForkServer(modules, partial(self._start, name, modules, self._base | env), self._cancelled)

    def _start(
        self, name: str, modules: Sequence[str], env: Mapping[str, str], descriptor: int
    ) -> Callable[[], None]:
        flags = (sys.executable, "-I", "-u", "-m", "meshgate_deploy.fork_server")
        child = self._processes.start(
            Command(
                name=name, argv=(*flags, str(descriptor), str(self._state.project), *modules), env=env,
                cwd=self._state.project, log=self._state.log(name), descriptors=(descriptor,),
            )
        )  # fmt: skip

        def end() -> None:
            child.stop()
            self._processes.forget(child)

        return end
