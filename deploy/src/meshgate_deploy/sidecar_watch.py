"""Finds sidecars that live, answer, and no longer give their app any work; ends them.

Seen on Dapr 1.18.2 when an app's process dies in the moment in which its sidecar begins a workflow: the
sidecar withdraws its actors, waits for that workflow, which waits for a worker, and never takes the next
worker's actors up. Its health stays good, reads are answered, each new workflow hangs. What tells is
its metadata: no connected worker, though the app's worker holds a stream. A restart heals it; what was
under way is delivered again, and the ledger lets a call be taken once.
"""

import json
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshgate_deploy.services import Service, Services

ROUND_SECONDS = 1.0
ANSWER_SECONDS = 1.0
UNSERVED_SECONDS = 5.0  # a worker's first two tries to connect again lie within
SETTLING_SECONDS = 20.0  # of a new sidecar: a worker that found none tries again after 16 s at most
CONTROL = ("placement", "scheduler")  # without them no sidecar can take a worker up


@dataclass(frozen=True, slots=True)
class Sidecar:
    """How a sidecar is asked about itself.

    Attributes:
        health: URL of its health check, under whose root the metadata lies.
        token_file: its API token.
    """

    health: str
    token_file: Path

    def workers(self) -> int | None:
        """How many workers it serves; None when it gives no answer."""
        url = self.health.partition("/v1.0/")[0] + "/v1.0/metadata"
        request = urllib.request.Request(url, headers={"dapr-api-token": self.token_file.read_text().strip()})  # noqa: S310 - loopback
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=ANSWER_SECONDS) as answer:
                told: dict[str, Any] = json.load(answer)
        except (OSError, urllib.error.URLError, ValueError):
            return None
        return int((told.get("workflows") or {}).get("connectedWorkers") or 0)


@dataclass(slots=True)
class SidecarWatch:
    """Watches the sidecars of apps whose process is up.

    Attributes:
        sidecars: by app, as far as they were started.
    """

    services: Services
    sidecars: Callable[[], Mapping[str, Sidecar]]
    say: Callable[[str], None]
    clock: Callable[[], float] = time.time
    _unserved: dict[tuple[int, int], float] = field(default_factory=dict)

    def run(self, stop: threading.Event) -> None:
        """Goes round until told to stop."""
        while not stop.wait(ROUND_SECONDS):
            self.round()

    def round(self) -> None:
        """Asks every sidecar once."""
        if all(self._ready(name) for name in CONTROL):
            for app, sidecar in self.sidecars().items():
                owner, service = self._ready(app), self._ready(f"dapr-{app}")
                if owner is not None and service is not None:
                    self._judge(app, sidecar, owner, service)

    def _ready(self, name: str) -> Service | None:
        service = self.services.find(name)
        return service if service is not None and service.state == "ready" and service.child else None

    def _judge(self, app: str, sidecar: Sidecar, owner: Service, service: Service) -> None:
        if owner.child is None or service.child is None:
            return
        pair = (owner.child.pid, service.child.pid)
        if sidecar.workers() != 0:  # no answer is another fault, with a watch of its own
            self._unserved.pop(pair, None)
            return
        since = self._unserved.setdefault(pair, self.clock())
        settled = self.clock() - service.since > SETTLING_SECONDS
        if settled and self.clock() - since > UNSERVED_SECONDS:
            del self._unserved[pair]
            self.say(f"dapr-{app}: serves no worker although {app} is up; ended, to be started again")
            self.services.kill(service, signal.SIGKILL)
