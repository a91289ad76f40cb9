"""How many attempts one worker plays at once; the others wait in their order."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from meshgate_agents.launcher.errors import Stopping

POLL_SECONDS = 0.2  # how often one that waits looks whether it is to stop
MAX_AWAY = (
    3  # times the slots: runs that wait for an agent's task keep their programs, and these their memory
)


class Slots:
    """First come, first served. Safe for threads."""

    def __init__(self, count: int) -> None:
        self._free, self._may_be_away = count, MAX_AWAY * count
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def slot(self, stop: threading.Event) -> Iterator[bool]:
        """A slot while it lasts; gives whether it had to be waited for.

        Raises:
            Stopping: `stop` was set first.
        """
        ticket, waited = object(), False
        with self._changed:
            self._waiting.append(ticket)
            try:
                while (self._waiting[0] is not ticket or self._free <= 0) and not stop.is_set():
                    waited = True
                    self._changed.wait(POLL_SECONDS)
                if stop.is_set():
                    raise Stopping("the worker ends")
                self._free -= 1
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield waited
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()

    def leave(self) -> bool:
        """Whoever has a slot lets another have it meanwhile; False when too many have done so."""
        with self._changed:
            if not self._may_be_away:
                return False
            self._may_be_away -= 1
            self._free += 1
            self._changed.notify_all()
            return True

    def come_back(self) -> None:
        """After `leave`: at once, whoever has the slot. The next to end leaves none behind."""
        with self._changed:
            self._may_be_away += 1
            self._free -= 1


class Absence:
    """While a run waits for tasks that it gave to other agents, another run has its slot. Safe for threads.

    Were it kept, two apps whose agents give each other tasks could wait for each other's slots for ever.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._lock = threading.Lock()
        self._waiting, self._away = 0, False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Around one such wait; the slot is away from the first of them to the last."""
        with self._lock:
            self._waiting += 1
            self._away = self._away or self._slots.leave()
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1
                if self._away and not self._waiting:
                    self._away = False
                    self._slots.come_back()
