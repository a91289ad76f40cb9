"""Whose body runs next, of the calls that a program makes at once of tools that run in itself.

They share the program's memory, so what they leave there goes by their order. Of one place (scope and turn)
one body runs at a time: new ones as they come, which is the order of their decisions, and those on record in
that order again, before any new one.
"""

import threading
import time
from collections.abc import Iterable

from meshgate_agents.launcher.gateway import Entry, Step

PATIENCE_SECONDS = 20.0  # for one on record that nobody asks for again, while nothing moves in its place
BODY_SECONDS = (
    600.0  # for a body: only one that waits for a thread of its own that makes a call waits in vain
)
POLL_SECONDS = 0.2

Place = tuple[str, int]


class Turns:
    """Safe for threads. It orders and never refuses: a turn that does not come is taken after a while."""

    def __init__(self) -> None:
        self._left: dict[Place, list[str]] = {}  # on record and not yet run again, in their order
        self._has: dict[Place, str] = {}
        self._changed = threading.Condition()
        self._moved_at: dict[Place, float] = {}

    def recall(self, journal: Iterable[Entry]) -> None:
        """What earlier attempts ran, oldest first."""
        for entry in journal:
            if entry.answer is not None and entry.answer.arguments:
                self._left.setdefault((entry.scope, entry.turn), []).append(entry.key)

    def take(self, step: Step, stopped: threading.Event) -> None:
        """Waits until it is this step's turn, which lasts until `over`."""
        place, since = (step.scope, step.turn), time.monotonic()
        with self._changed:
            while not self._may(place, step.key) and not stopped.is_set():
                idle = time.monotonic() - max(since, self._moved_at.get(place, 0.0))
                if place in self._has and idle > BODY_SECONDS:
                    break
                if place not in self._has and idle > PATIENCE_SECONDS:
                    self._left.pop(place, None)  # they are not asked for: nobody else waits for them
                    break
                self._changed.wait(POLL_SECONDS)
            self._has[place] = step.key
            self._moved_at[place] = time.monotonic()

    def _may(self, place: Place, key: str) -> bool:
        left = self._left.get(place)
        return self._has.get(place, key) == key and (not left or left[0] == key)

    def over(self, step: Step) -> None:
        """Its body has ended, or there is none."""
        place = (step.scope, step.turn)
        with self._changed:
            if self._has.get(place) == step.key:
                del self._has[place]
            left = self._left.get(place, [])
            if step.key in left:
                left.remove(step.key)
            self._moved_at[place] = time.monotonic()
            self._changed.notify_all()
