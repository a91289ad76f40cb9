"""What earlier attempts of a run finished, and what of it this one has asked for."""

import threading
import time
from collections.abc import Iterable

from meshgate_agents.launcher.gateway import Entry


class Recorded:
    """The steps on record, by key. Safe for threads."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = {entry.key: entry for entry in entries}
        self._scopes: dict[str, list[str]] = {}
        self._effects: dict[str, set[str]] = {}  # per tool, those not asked for
        for entry in self._entries.values():
            self._scopes.setdefault(entry.scope, []).append(entry.key)
            self._effects.setdefault(entry.effect_of, set()).add(entry.key)
        self._asked: set[str] = set()
        self._asked_at = time.monotonic()
        self._lock = threading.Lock()

    @property
    def unasked(self) -> int:
        """Steps that nobody has asked for."""
        with self._lock:
            return len(self._entries.keys() - self._asked)

    def get(self, key: str) -> Entry | None:
        """The finished step under a key."""
        return self._entries.get(key)

    def asked(self, entry: Entry) -> None:
        """Somebody asked for this one."""
        with self._lock:
            self._asked.add(entry.key)
            self._effects[entry.effect_of].discard(entry.key)
            self._asked_at = time.monotonic()

    def left_out(self, tool: str) -> tuple[str, float]:
        """An effect of this tool that nobody has asked for, and for how many seconds nothing was.

        The key is empty when there is none.
        """
        with self._lock:
            left = min(self._effects.get(tool, ()), default="")
            return left, time.monotonic() - self._asked_at

    def answered_within(self, outer: Entry) -> int:
        """What was asked within a step is answered by its outcome: its own scope holds nothing else.

        Returns:
            how many steps that were.
        """
        with self._lock:
            inner = [key for key in self._scopes[outer.scope] if key not in self._asked]
            self._asked.update(inner)
            for key in inner:
                self._effects[self._entries[key].effect_of].discard(key)
        return len(inner)
