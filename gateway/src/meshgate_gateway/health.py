"""Is the gateway fit to serve? Faults close the gate at once, probes open it again."""

import logging
import threading
from collections.abc import Callable, Mapping

from meshgate_gateway.errors import Unavailable

PROBE_SECONDS = 1.0  # while all is well
RETRY_SECONDS = 0.2  # while something is away: ready again well within a second

_log = logging.getLogger(__name__)


class Health:
    """Holds why the gateway is not ready. Safe for threads."""

    def __init__(
        self, *, probes: Mapping[str, Callable[[], object]], publish: Callable[[bool], None]
    ) -> None:
        self._probes = probes
        self._publish = publish
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._away: set[str] = set(probes)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Stable ids of what is away; empty when ready."""
        with self._lock:
            return tuple(sorted(self._away))

    def fault(self, reason: str) -> None:
        """A request met this fault: not ready from now until its probe works."""
        if reason in self._probes:
            self._set(reason, away=True)
            self._wake.set()

    def probe(self) -> None:
        """One round over everything."""
        for reason, check in self._probes.items():
            try:
                check()
            except Unavailable as error:
                if reason not in self.reasons:
                    _log.warning("not ready", extra={"reason": reason, "detail": error.detail})
                self._set(reason, away=True)
            else:
                self._set(reason, away=False)

    def run(self, stop: threading.Event) -> None:
        """Probes until told to stop."""
        while not stop.is_set():
            self.probe()
            if self.reasons:
                stop.wait(RETRY_SECONDS)
            else:
                self._wake.wait(PROBE_SECONDS)
                self._wake.clear()

    def stop(self) -> None:
        """Wakes the loop and shows NOT_SERVING."""
        self._wake.set()
        self._publish(False)  # noqa: FBT003 - the port has one argument

    def _set(self, reason: str, *, away: bool) -> None:
        with self._lock:
            (self._away.add if away else self._away.discard)(reason)
            self._publish(not self._away)
