"""Finds the process that plays a role right now. What the supervisor calls things is known here alone."""

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fakes.live_mesh import started_in
from integration.fault_mesh import Mesh
from meshgate_deploy.control import ask_once
from meshgate_deploy.errors import MeshError

Row = Mapping[str, Any]

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
KICKED_OFF, AT_WORK = ["-m", "meshgate_kickoff"], ["-m", "meshgate_agent"]  # programs of a split crew
HEALTHY = ("ready", "running")


def find(mesh: Mesh, role: str, *, app: str, run_id: str) -> int | None:
    """The pid of a victim that serves; None while there is none."""
    try:
        rows = ask_once(mesh.state.control, {"op": "status"})["processes"]
    except (MeshError, OSError):
        return None
    if role == "child":
        return _child(mesh, rows, app, run_id)
    names = [SERVICES[role]] if role in SERVICES else [f"dapr-{app}"]
    if role == "launcher":
        names = [f"run {run_id}", app]  # a launcher of this run alone, or a worker of the whole app
    serving = [row for row in rows if row["name"] in names and row["state"] in HEALTHY]
    return int(serving[0]["pid"]) if serving and serving[0]["pid"] else None


def _child(mesh: Mesh, rows: list[Row], app: str, run_id: str) -> int | None:
    """The process that runs the program itself: as its launcher says, or else by where and what it is.

    A forked one is neither below its launcher nor has a command line of its own, so that it is known only if
    the launcher says so.
    """
    told = [
        (each["attempt"] or 0, each["pid"])
        for row in rows
        for each in row.get("programs") or ()
        if each["run_id"] == run_id
    ]
    if told:
        return int(max(told)[1])
    workers = [row for row in rows if row["name"] == app and row["pid"] and row["state"] in HEALTHY]
    if any("programs" in row for row in workers):
        return None  # that worker tells, and has none now
    if workers:  # it plays one run of ours at a time
        return _below(int(workers[0]["pid"]), lambda words: words[1:3] in (KICKED_OFF, AT_WORK))
    return _below(mesh.up_pid, lambda words: words[1].endswith("desk.py") and words[2] == run_id)


def _below(parent: int, wanted: Callable[[list[str]], bool]) -> int | None:
    for pid in started_in(parent):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if len(words) > 2 and wanted(words):
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
