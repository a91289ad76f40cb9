"""Starts a launcher for each run at a terminal and watches it. All other runs are the workers'."""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshgate_agents.launcher.launch import uuid7
from meshgate_identities.spiffe_id import SpiffeId
from meshgate_identities.workload_api import WorkloadApiServer

from meshgate_deploy import announced, configs
from meshgate_deploy.environment import Environment
from meshgate_deploy.errors import DependencyUnavailable, NotFound, UsageError
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.preloaded import Preloaded
from meshgate_deploy.processes import Child, Command, Processes
from meshgate_deploy.state import State, write_private

MAX_RESTARTS = 5  # of one run's launcher
WATCH_SECONDS = 1.0
STOPPED_SECONDS = 6.0  # a stopped process: three of its heartbeats
LAUNCHER_GRACE_SECONDS = 15.0  # the launcher gives its child 10 s and then records the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What `meshgate run` asks for.

    Attributes:
        asker: variables of the asker's shell; what `environment.ASKED` does not name is left out.
        streams: stdin, stdout, stderr.
        replay: play an earlier run from its journal alone.
    """

    app: str | None
    run_id: str | None
    command: tuple[str, ...]
    cwd: Path
    asker: Mapping[str, str]
    streams: tuple[int, int, int]
    replay: bool = False


@dataclass(slots=True)
class Running:
    """A run whose launcher is alive, or is being started again.

    Attributes:
        command: how its launcher is started.
        restarts: how often the launcher was lost so far.
    """

    run_id: str
    app: str
    command: Command
    child: Child
    started: float
    restarts: int = 0
    stopping: bool = False

    def signal(self, number: int) -> None:
        """Sends a signal to the launcher that is there now."""
        self.child.signal(number)


class Runs:
    """The launchers of one mesh."""

    def __init__(  # noqa: PLR0913 - composed once, in the supervisor
        self,
        *,
        manifest: Manifest,
        state: State,
        processes: Processes,
        workload_api: WorkloadApiServer,
        environment: Environment,
        target: Callable[[], str],
        preloaded: Preloaded,
    ) -> None:
        self._preloaded = preloaded
        self._manifest, self._state, self._processes = manifest, state, processes
        self._workload_api, self._environment, self._target = workload_api, environment, target
        self.definitions: Mapping[str, Mapping[str, Any]] = {}
        self._lock = threading.Lock()
        self._running: dict[str, Running] = {}

    @property
    def rows(self) -> list[dict[str, object]]:
        """One row per launcher."""
        with self._lock:
            return [
                {
                    "name": f"run {row.run_id}", "spiffe_id": self._manifest.spiffe_id(row.app),
                    "state": "running", "pid": row.child.pid, "restarts": row.restarts,
                    "up_seconds": round(time.time() - row.started, 1), "app": row.app, "detail": row.app,
                    **announced.row(configs.programs_file(self._state, row.run_id)),
                }
                for row in self._running.values()
            ]  # fmt: skip

    def start(self, order: Order) -> Running:
        """Starts a launcher for an order.

        Raises:
            NotFound: the app is not in the manifest.
            UsageError: it is not clear which app is meant.
        """
        app = choose_app(self._manifest, order.app, order.command)
        run_id = order.run_id or uuid7()
        with self._lock:  # two that ask for one run at once: one gets it
            if run_id in self._running:
                raise UsageError(
                    f"run {run_id} is under way",
                    next_step=f"meshgate runs watch {run_id}, or another --run-id",
                )
            running = self._running[run_id] = self._begun(app, run_id, order)
        return running

    def _begun(self, app: str, run_id: str, order: Order) -> Running:
        path = self._state.generated / f"run-{run_id}.json"
        env = self._environment.for_agent(self._manifest, app, order.asker)
        command = order.command
        if order.replay and not command:  # a run of what the app runs by itself
            command = tuple(configs.own_command(self._manifest, app, env))
        config = configs.launcher(
            self._manifest, self._state, app, target=self._target(), definitions=self.definitions,
            env=env, run_id=run_id, replay=order.replay, fork_servers=self._preloaded.programs.addresses,
        )  # fmt: skip
        write_private(path, json.dumps(config, indent=2).encode())
        argv = configs.module(sys.executable, "meshgate_agents.launcher", path, "--", *command)
        base = self._environment.base()
        start = Command(
            name=f"launcher-{app}", argv=argv, env=base, cwd=order.cwd, streams=order.streams,
            fork=self._preloaded.fork(app, argv, base), told=self._preloaded.programs.admit,
            death_signal=signal.SIGTERM, grace_seconds=LAUNCHER_GRACE_SECONDS,
        )  # fmt: skip
        return Running(run_id, app, start, self._launch(app, start), time.time())

    def _launch(self, app: str, command: Command) -> Child:
        child = self._processes.start(command)
        self._workload_api.register(child.pid, SpiffeId.parse(self._manifest.spiffe_id(app)))
        return child

    def _ended(self, running: Running) -> int | None:
        """Waits for a launcher's end and sweeps up after it."""
        stopped_since = 0.0
        while (status := running.child.wait(WATCH_SECONDS)) is None:
            stopped_since = (stopped_since or time.monotonic()) if running.child.stopped else 0.0
            if stopped_since and time.monotonic() - stopped_since > STOPPED_SECONDS:
                running.child.signal(signal.SIGKILL)
        self._workload_api.forget(running.child.pid)
        # What the program left in its session, it left without an identity; now it goes.
        running.child.stop()
        self._processes.forget(running.child)
        return status

    def wait(self, running: Running) -> int:
        """Waits for the end of a run; its exit status.

        A launcher handles every signal that asks it to end, so one that dies by a signal was lost: it is
        started again, and the run goes on from its journal.
        """
        status = self._ended(running)
        while status is not None and status < 0 and running.restarts < MAX_RESTARTS and not running.stopping:
            running.restarts += 1
            running.child = self._launch(running.app, running.command)
            status = self._ended(running)
        (self._state.generated / f"run-{running.run_id}.json").unlink(missing_ok=True)
        configs.programs_file(self._state, running.run_id).unlink(missing_ok=True)  # its launcher was killed
        with self._lock:
            self._running.pop(running.run_id, None)
        if status is None:
            raise DependencyUnavailable(f"run {running.run_id} has no status")
        return 128 - status if status < 0 else status

    def stop(self) -> None:
        """Ends every launcher, each with its grace, all at once."""
        with self._lock:
            running = list(self._running.values())
        for row in running:
            row.stopping = True
        threads = [threading.Thread(target=row.child.stop) for row in running]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def choose_app(manifest: Manifest, wanted: str | None, command: Sequence[str]) -> str:
    """The app that a command runs as: named, or the program with just this command, or the only one.

    A crew beside programs is not the only one: who misspells a program's command is not to act as the crew.

    Raises:
        NotFound: the named app does not exist.
        UsageError: several would do.
    """
    agents = [*manifest.crews, *manifest.programs]
    if wanted is not None:
        if wanted in agents:
            return wanted
        if crews := [one.crew for one in manifest.isolated if one.app == wanted]:
            raise UsageError(
                f"{wanted!r} is an agent of crew {crews[0]!r}: it acts only when it is given a task",
                next_step=f"--app {crews[0]}",
            )
        raise NotFound(
            f"no crew or program {wanted!r} in the manifest",
            next_step="--app " + (" | ".join(agents) or "<none>"),
        )
    same = [name for name, program in manifest.programs.items() if program.run == tuple(command)]
    candidates = same or agents
    if len(candidates) == 1:
        return candidates[0]
    raise UsageError(
        "which app does this command run as?",
        why=f"it could be {', '.join(candidates)}"
        if candidates
        else "the manifest has no crew and no program",
        next_step=f"meshgate run --app {'|'.join(candidates) or 'NAME'} -- …",
    )
