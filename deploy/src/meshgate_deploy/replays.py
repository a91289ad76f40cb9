"""Starts a launcher for each replay at a terminal and watches it. Runs are the workers'."""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshgate_identities.spiffe_id import SpiffeId
from meshgate_identities.workload_api import WorkloadApiServer

from meshgate_deploy import announced, configs
from meshgate_deploy.environment import Environment
from meshgate_deploy.errors import UsageError
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.orders import Order
from meshgate_deploy.preloaded import Preloaded
from meshgate_deploy.processes import Child, Command, Processes
from meshgate_deploy.state import State, write_private

WATCH_SECONDS = 1.0
STOPPED_SECONDS = 6.0  # a stopped process: three of its heartbeats
LAUNCHER_GRACE_SECONDS = 15.0  # the launcher gives its child 10 s


@dataclass(slots=True)
class Replaying:
    """A replay whose launcher is alive."""

    run_id: str
    app: str
    child: Child
    started: float

    def signal(self, number: int) -> None:
        """Sends a signal to the launcher."""
        self.child.signal(number)


class Replays:
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
        self._running: dict[str, Replaying] = {}

    @property
    def rows(self) -> list[dict[str, object]]:
        """One row per launcher."""
        with self._lock:
            return [
                {
                    "name": f"replay {row.run_id}", "spiffe_id": self._manifest.spiffe_id(row.app),
                    "state": "running", "pid": row.child.pid, "restarts": 0,
                    "up_seconds": round(time.time() - row.started, 1), "app": row.app, "detail": row.app,
                    **announced.row(configs.programs_file(self._state, row.run_id)),
                }
                for row in self._running.values()
            ]  # fmt: skip

    def start(self, order: Order) -> Replaying:
        """Starts a launcher that plays a run from its journal alone.

        Raises:
            UsageError: that run is being replayed.
        """
        with self._lock:  # two that ask for one run at once: one gets it
            if order.run_id in self._running:
                raise UsageError(f"run {order.run_id} is being replayed", next_step="wait for its end")
            begun = self._running[order.run_id] = self._begun(order)
        return begun

    def _begun(self, order: Order) -> Replaying:
        app, run_id = order.app, order.run_id
        path = self._path(run_id)
        env = self._environment.for_agent(self._manifest, app, order.asker)
        # Without one it is a run of what the app runs by itself.
        command = order.command or tuple(configs.own_command(self._manifest, app, env))
        config = configs.launcher(
            self._manifest, self._state, app, target=self._target(), definitions=self.definitions,
            env=env, run_id=run_id, replay=True, fork_servers=self._preloaded.programs.addresses,
        )  # fmt: skip
        write_private(path, json.dumps(config, indent=2).encode())
        argv = configs.module(sys.executable, "meshgate_agents.launcher", path, "--", *command)
        base = self._environment.base()
        start = Command(
            name=f"launcher-{app}", argv=argv, env=base, cwd=order.cwd, streams=order.streams,
            fork=self._preloaded.fork(app, argv, base), told=self._preloaded.programs.admit,
            death_signal=signal.SIGTERM, grace_seconds=LAUNCHER_GRACE_SECONDS,
        )  # fmt: skip
        child = self._processes.start(start)
        self._workload_api.register(child.pid, SpiffeId.parse(self._manifest.spiffe_id(app)))
        return Replaying(run_id, app, child, time.time())

    def wait(self, replaying: Replaying) -> int:
        """Waits for the end of a replay and sweeps up after it; its exit status."""
        child, stopped_since = replaying.child, 0.0
        while (status := child.wait(WATCH_SECONDS)) is None:
            stopped_since = (stopped_since or time.monotonic()) if child.stopped else 0.0
            if stopped_since and time.monotonic() - stopped_since > STOPPED_SECONDS:
                child.signal(signal.SIGKILL)
        self._workload_api.forget(child.pid)
        # What the program left in its session, it left without an identity; now it goes.
        child.stop()
        self._processes.forget(child)
        self._path(replaying.run_id).unlink(missing_ok=True)
        configs.programs_file(self._state, replaying.run_id).unlink(missing_ok=True)  # if it was killed
        with self._lock:
            self._running.pop(replaying.run_id, None)
        return 128 - status if status < 0 else status

    def stop(self) -> None:
        """Ends every launcher, each with its grace, all at once."""
        with self._lock:
            running = list(self._running.values())
        threads = [threading.Thread(target=row.child.stop) for row in running]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _path(self, run_id: str) -> Path:
        return self._state.generated / f"replay-{run_id}.json"
