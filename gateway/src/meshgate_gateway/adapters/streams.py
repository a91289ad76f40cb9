"""Who may hold a stream open. A stream holds a thread of the server until it is read to its end."""

import threading
from collections import Counter

from meshgate_gateway.errors import Unavailable

MAX_STREAMS = 4  # journals being read at once: an eighth of the default threads
MAX_PER_CALLER = 2


class Streams:
    """Slots, shared between callers: the last free one is for who has none. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()

    def take(self, caller: str) -> "Slot":
        """A slot for a verified caller.

        Raises:
            Unavailable: all are taken, or the caller has its share.
        """
        with self._lock:
            mine, free = self._held[caller], MAX_STREAMS - self._held.total()
            if free == 0 or mine == MAX_PER_CALLER or (mine and free == 1):
                raise Unavailable(
                    "journal_busy", detail=f"{mine} of {MAX_STREAMS - free} open streams are its"
                )
            self._held[caller] += 1
        return Slot(self, caller)

    def free(self, caller: str) -> None:
        """Gives one back."""
        with self._lock:
            self._held[caller] -= 1
            if not self._held[caller]:
                del self._held[caller]

    @property
    def open(self) -> int:
        """How many are held."""
        with self._lock:
            return self._held.total()


class Slot:
    """One held stream; given back once, however often that is asked."""

    def __init__(self, streams: Streams, caller: str) -> None:
        self._streams = streams
        self._caller: str | None = caller
        self._lock = threading.Lock()

    def release(self) -> None:
        """Gives it back."""
        with self._lock:
            caller, self._caller = self._caller, None
        if caller is not None:
            self._streams.free(caller)
