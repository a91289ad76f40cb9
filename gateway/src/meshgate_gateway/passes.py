"""One pass of a sweep: when it began, and how much of it a durable runtime that fails may take."""

import logging
from collections.abc import Callable

from meshgate_gateway.errors import DeliveriesSpent, RuntimeUnavailable

MAX_FAILURES = 3  # of a runtime that refuses at once; each is a line in the log
MAX_MS = 4_000  # two questions to a sidecar that hangs; the keeper has more to do

_log = logging.getLogger(__name__)


class Pass:
    """Asks the runtime for as long as it answers; what was not asked is left to the next pass.

    Attributes:
        now: when the pass began, in milliseconds.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms, self._failures = now_ms, 0
        self.now = now_ms()

    @property
    def open(self) -> bool:
        """Whether the runtime is to be asked anything more in this pass."""
        return self._failures < MAX_FAILURES and self._now_ms() - self.now < MAX_MS

    def asked(self, ask: Callable[[], object], **about: str) -> bool:
        """Asks unless the pass is over; True when the runtime took it.

        One that was delivered too often is no fault of the runtime, and keeps nobody else from it.
        """
        if not self.open:
            return False
        try:
            ask()
        except DeliveriesSpent:
            return False
        except RuntimeUnavailable as error:
            self._failures += 1
            _log.warning("not delivered", extra={**about, "detail": error.detail})
            return False
        return True
