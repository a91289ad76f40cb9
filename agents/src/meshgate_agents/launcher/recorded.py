"""What earlier attempts of a run finished, and what of it this one has asked for."""

import threading
import time
from collections.abc import Callable, Iterable

from meshgate_agents.launcher.gateway import Entry

STRAY_SECONDS = 20.0  # for the threads of a program that still replay what is recorded of them
POLL_SECONDS = 0.2


class Recorded:
    """The steps on record, by key. Safe for threads."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        given = list(entries)
        self._entries = {one.key: one for one in given if one.reply is not None or one.answer is not None}
        self._scopes: dict[str, list[str]] = {}
        self._effects: dict[str, set[str]] = {}  # per tool, those not asked for
        for entry in self._entries.values():
            self._scopes.setdefault(entry.scope, []).append(entry.key)
        for entry in given:
            self._effects.setdefault(entry.effect_of, set()).add(entry.key)
        self._asked: set[str] = set()
        self._asked_at = time.monotonic()
        self._lock = threading.Lock()

    @property
    def unasked(self) -> int:
        """Steps that nobody has asked for."""
        with self._lock:
            return len(self._entries) - len(self._asked)

    @property
    def expected(self) -> int:
        """Which step of the record, counted from 1, is the first that nobody has asked for; 0 for none."""
        with self._lock:
            left = [place for place, key in enumerate(self._entries, 1) if key not in self._asked]
        return min(left, default=0)

    def get(self, key: str) -> Entry | None:
        """The finished step under a key."""
        return self._entries.get(key)

    def asked(self, entry: Entry) -> None:
        """Somebody asked for this one."""
        with self._lock:
            self._asked.add(entry.key)
            self._effects[entry.effect_of].discard(entry.key)
            self._asked_at = time.monotonic()

    def asked_live(self, key: str, tool: str) -> None:
        """Somebody asked for a call that is not settled: a new one, or one that was under way."""
        with self._lock:
            self._effects.get(tool, set()).discard(key)

    def left_out(self, tool: str, *, busy: Callable[[], bool], stopped: threading.Event) -> str:
        """The key of an effect of this tool that is recorded and not asked for; empty when there is none.

        A program that repeats itself asks for every recorded step without waiting for a live one; threads
        that are still at that are given time, and so are bodies that are being run again (`busy`).
        """
        quiet_since = time.monotonic()
        while not stopped.is_set():
            now = time.monotonic()
            with self._lock:
                left = min(self._effects.get(tool, ()), default="")
                quiet_since = now if busy() else max(quiet_since, self._asked_at)
            if not left or now - quiet_since > STRAY_SECONDS:
                return left
            stopped.wait(POLL_SECONDS)
        return ""

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
