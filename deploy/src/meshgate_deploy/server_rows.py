"""What `ps` shows of a fork server: it is no app and no service, and no process of the mesh is invisible."""

import os
import time
from typing import Any, Protocol

from meshgate_deploy.processes import Processes

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Server(Protocol):
    """A fork server as the supervisor has it."""

    @property
    def state(self) -> str:
        """`starting` while it imports, `ready`, or `stopped`: then what it would fork is executed."""

    @property
    def starts(self) -> int:
        """How often it was started."""


def row(name: str, server: Server, processes: Processes, *, about: str) -> dict[str, Any]:
    """One fork server.

    Args:
        name: of its process and its log.
        server: what knows its state.
        processes: what knows its process.
        about: what is forked from it.
    """
    child = next((one for one in processes.named(name) if one.running), None)
    state = server.state
    if child is None and state == "ready":  # it was lost, and nobody has asked it since
        state = "ended"
    ticks = child.identity.start_ticks if child else 0
    up = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / TICKS_PER_SECOND if child else 0.0
    return {
        "name": name, "spiffe_id": None, "state": state, "pid": child.pid if child else None,
        "restarts": max(0, server.starts - 1), "up_seconds": round(up, 1), "detail": about,
    }  # fmt: skip
