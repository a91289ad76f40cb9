"""What earlier attempts of a run finished, and what of it this one has asked for."""

import threading
from collections.abc import Iterable

from meshgate_agents.launcher.gateway import Entry


class Recorded:
    """The steps on record, by key. Safe for threads."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = {entry.key: entry for entry in entries}
        self._scopes: dict[str, list[str]] = {}
        for entry in self._entries.values():
            self._scopes.setdefault(entry.scope, []).append(entry.key)
        self._asked: set[str] = set()
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

    def answered_within(self, outer: Entry) -> int:
        """What was asked within a step is answered by its outcome: its own scope holds nothing else.

        Returns:
            how many steps that were.
        """
        with self._lock:
            inner = [key for key in self._scopes[outer.scope] if key not in self._asked]
            self._asked.update(inner)
        return len(inner)
