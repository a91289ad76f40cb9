"""The fork servers of programs: one per interpreter that an app of the mesh is started with.

Each runs in that interpreter, has imported CrewAI there, and is asked by launchers and workers. The
supervisor starts it, opens the socket where it is asked, and tells it which processes may ask: each by pid
and start time, before that process begins. No mesh depends on them.
"""

import contextlib
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from meshgate_agents.child.keeper import READY
from meshgate_agents.launcher.environment import OFF, ON, SITE_FOLDER
from meshgate_identities import attestation

from meshgate_deploy import configs, server_rows
from meshgate_deploy.environment import Environment
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.processes import Command, Processes, alive
from meshgate_deploy.state import State

# The last four are what is imported with an agent's first task.
MODULES = (
    "crewai", "crewai_tools", "crewai.llms.providers.openai.completion", "crewai.skills.tool",
    "crewai.hooks.contexts", "crewai.llms.cache", "openai.resources.chat",
)  # fmt: skip
PYTHON = re.compile(r"python[0-9.]*\Z")
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.1, 30.0
BACKLOG = 64


@dataclass(slots=True)
class ProgramServer:
    """One of them. Safe for threads.

    Attributes:
        path: where it is asked; gone when it is not to be had.
        start: starts it with our ends of two sockets, its control and its listener; what that gives ends it.
        starts: how often it was started.
    """

    path: Path
    start: Callable[[int, int], Callable[[], None]]
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _admitted: list[attestation.Process] = field(default_factory=list)
    _control: socket.socket | None = None
    _listener: socket.socket | None = None
    _end: Callable[[], None] | None = None
    _closed: threading.Event = field(default_factory=threading.Event)
    ready: threading.Event = field(default_factory=threading.Event)
    starts: int = 0

    @property
    def state(self) -> str:
        """See `server_rows.Server`."""
        if self.ready.is_set():
            return "ready"
        return "stopped" if self._listener is None else "starting"

    def open(self) -> None:
        """Starts it; it imports while we go on."""
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self.path))
        self._listener.listen(BACKLOG)
        threading.Thread(target=self._keep, name="program-server", daemon=True).start()

    def admit(self, process: attestation.Process) -> None:
        """Says that a process may ask."""
        with self._lock:
            self._admitted = [one for one in self._admitted if alive(one)] + [process]
            self._tell([process])

    def close(self) -> None:
        """Ends it; programs that were forked from it go on."""
        self._closed.set()
        with self._lock:
            self._stop()
            if self._listener is not None:
                self._listener.close()
                self._listener = None
        self.path.unlink(missing_ok=True)

    def _keep(self) -> None:
        """Starts it again when it was lost; not when it could not import."""
        lost = 0
        while not self._closed.is_set():
            control = self._begin()
            was_ready = control is not None and self._await_end(control)
            self.ready.clear()
            if not was_ready:
                break
            self._closed.wait(min(FIRST_BACKOFF_SECONDS * 2.0**lost, LONGEST_BACKOFF_SECONDS))
            lost = min(lost + 1, 16)
        self.close()

    def _begin(self) -> socket.socket | None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with self._lock, theirs:
            self._stop()
            if self._closed.is_set() or self._listener is None:
                ours.close()
                return None
            self._control = ours
            self.starts += 1
            self._end = self.start(theirs.fileno(), self._listener.fileno())
            self._tell(self._admitted)
        return ours

    def _await_end(self, control: socket.socket) -> bool:
        """Whether it had been ready before it ended."""
        with contextlib.suppress(OSError):
            while word := control.recv(len(READY)):
                if word == READY:
                    self.ready.set()
        return self.ready.is_set()

    def _tell(self, processes: Iterable[attestation.Process]) -> None:
        with contextlib.suppress(OSError):  # it ended: the next one is told
            for one in processes:
                if self._control is not None:
                    self._control.sendall(f"{one.pid} {one.start_ticks}".encode())

    def _stop(self) -> None:
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)  # wakes who waits for its end
            self._control.close()
            self._control = None
        if self._end is not None:
            self._end()
            self._end = None


class ProgramServers:
    """Those of one mesh."""

    def __init__(
        self, *, manifest: Manifest, state: State, processes: Processes, environment: Environment
    ) -> None:
        self._state, self._processes = state, processes
        self._env = {
            **environment.base(), **ON, **OFF, "PYTHONPATH": str(SITE_FOLDER),
            "CREWAI_STORAGE_DIR": str(state.run / "no-storage"),
        }  # fmt: skip
        pythons = sorted(_pythons(manifest, environment))
        self._servers = {
            python: ProgramServer(state.sockets / f"f{number}", partial(self._start, python, _name(number)))
            for number, python in enumerate(pythons)
        }

    @property
    def addresses(self) -> Mapping[str, str]:
        """Where each is asked, by its interpreter."""
        return {python: str(server.path) for python, server in self._servers.items()}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each."""
        return [
            server_rows.row(_name(number), server, self._processes, about=f"forks programs of {python}")
            for number, (python, server) in enumerate(self._servers.items())
        ]

    def open(self) -> None:
        """Starts them."""
        for server in self._servers.values():
            server.open()

    def admit(self, process: attestation.Process) -> None:
        """A launcher or a worker may ask all of them."""
        for server in self._servers.values():
            server.admit(process)

    def close(self) -> None:
        """They end."""
        for server in self._servers.values():
            server.close()

    def _start(self, python: str, name: str, control: int, listener: int) -> Callable[[], None]:
        child = self._processes.start(
            Command(
                name=name, argv=argv(python, control, listener, self._state.project), env=self._env,
                cwd=self._state.run, log=self._state.log(name), descriptors=(control, listener),
            )
        )  # fmt: skip

        def end() -> None:
            child.stop()
            self._processes.forget(child)

        return end


def _name(number: int) -> str:
    return f"fork-server-programs-{number}" if number else "fork-server-programs"


def argv(python: str, control: int, listener: int, folder: Path) -> tuple[str, ...]:
    """How one is started, with SITE_FOLDER on its PYTHONPATH."""
    return (python, "-m", "meshgate_forks", str(control), str(listener), str(folder), *MODULES)


def _pythons(manifest: Manifest, environment: Environment) -> set[str]:
    """The interpreters that the workers of the mesh start."""
    found = set()
    for app in manifest.runners:
        env = environment.for_agent(manifest, app, {})
        word = configs.resolved_command(manifest, app, env)[0]
        path = shutil.which(word, path=env.get("PATH", ""))
        if path is not None and PYTHON.match(Path(path).name):
            found.add(os.path.abspath(path))  # noqa: PTH100 - no link followed: an environment is found from there
    return found
