"""Finds the process that plays a role right now. What the supervisor calls things is known here alone."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from fakes.live_mesh import started_in
from integration.fault_mesh import Mesh
from meshgate_deploy.control import ask_once
from meshgate_deploy.errors import MeshError

SERVICES = {
    "gateway": "gateway",
    "opa": "opa",
    "toolhost": "orders",
    "gateway-daprd": "dapr-gateway",
    "host-daprd": "dapr-orders",
    "scheduler": "scheduler",
    "placement": "placement",
    "sentry": "sentry",
}
HEALTHY = ("ready", "running")


def find(mesh: Mesh, role: str, *, app: str, run_id: str) -> int | None:
    """The pid of a victim that serves; None while there is none."""
    if role == "child":
        return _child(mesh, run_id)
    names = [SERVICES[role]] if role in SERVICES else [f"dapr-{app}"]
    if role == "launcher":
        names = [f"run {run_id}", app]  # a launcher of this run alone, or a worker of the whole app
    try:
        rows = ask_once(mesh.state.control, {"op": "status"})["processes"]
    except (MeshError, OSError):
        return None
    serving = [row for row in rows if row["name"] in names and row["state"] in HEALTHY]
    return int(serving[0]["pid"]) if serving and serving[0]["pid"] else None


def _child(mesh: Mesh, run_id: str) -> int | None:
    """The process that runs the program itself: below the supervisor, by its own command line."""
    for pid in started_in(mesh.up_pid):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if len(words) > 2 and words[1].endswith("desk.py") and words[2] == run_id:
                return pid
    return None


class Process:
    """One process, held by a descriptor: a signal never reaches another one under the same number."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def signal(self, number: signal.Signals) -> bool:
        """Sends it; False when the process is gone."""
        try:
            signal.pidfd_send_signal(self._descriptor, number)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """Lets the descriptor go."""
        os.close(self._descriptor)
