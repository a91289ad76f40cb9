"""How many attempts one worker plays at once; the others wait in their order."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from meshgate_agents.launcher.errors import Stopping

POLL_SECONDS = 0.2  # how often one that waits looks whether it is to stop


class Slots:
    """First come, first served. Safe for threads."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def slot(self, stop: threading.Event) -> Iterator[None]:
        """A slot while it lasts.

        Raises:
            Stopping: `stop` was set first.
        """
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while (self._waiting[0] is not ticket or not self._free) and not stop.is_set():
                    self._changed.wait(POLL_SECONDS)
                if stop.is_set():
                    raise Stopping("the worker ends")
                self._free -= 1
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()
