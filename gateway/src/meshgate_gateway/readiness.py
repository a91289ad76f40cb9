"""Can this gateway decide, record and execute right now? Told by gRPC health."""

import logging
import threading
from collections.abc import Callable

from grpc_health.v1 import health, health_pb2
from meshgate_policies.errors import PolicyUnavailable

from meshgate_gateway.broker import Books, Broker
from meshgate_gateway.errors import Unavailable

PERIOD_SECONDS = 0.5  # R3: not ready within a second of a failed part
SERVICE = "meshgate.broker.v1.Broker"

log = logging.getLogger(__name__)


class Readiness:
    """Writes a probe to the store and asks the engine, twice a second."""

    def __init__(self, *, books: Books, broker: Broker) -> None:
        self._books = books
        self._broker = broker
        self.servicer = health.HealthServicer()
        self._reasons: list[str] = ["starting"]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="readiness", daemon=True)
        self._set()

    def start(self) -> None:
        """Checks once, then keeps checking."""
        self.check()
        self._thread.start()

    def close(self) -> None:
        """Reports NOT_SERVING and stops."""
        self._stop.set()
        self._reasons = ["stopping"]
        self._set()

    def reasons(self) -> list[str]:
        """Why not, empty when ready."""
        return list(self._reasons)

    def check(self) -> None:
        """Probes every part."""
        parts: tuple[Callable[[], None], ...] = (self._probe_store, self._probe_policy)
        reasons = []
        for part in parts:
            try:
                part()
            except (Unavailable, PolicyUnavailable) as error:
                reasons.append(getattr(error, "reason", "policy_unavailable"))
        if reasons != self._reasons:
            log.warning("readiness.changed", extra={"reasons": reasons})
        self._reasons = reasons
        self._set()

    def _probe_store(self) -> None:
        now = self._books.now_ms()
        sql = "INSERT INTO probe VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET at_ms = excluded.at_ms"
        self._books.store.transact(lambda tx: tx.execute(sql, (now,)))

    def _probe_policy(self) -> None:
        self._broker.policy.engine.evaluate({"caller": {"app": ""}, "call": {"tool": "", "args": {}}})

    def _set(self) -> None:
        serving = health_pb2.HealthCheckResponse.ServingStatus
        status = serving.NOT_SERVING if self._reasons else serving.SERVING
        for service in ("", SERVICE):
            self.servicer.set(service, status)

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_SECONDS):
            self.check()
