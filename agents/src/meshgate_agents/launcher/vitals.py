"""Who of the children gave a sign of life, and when."""

import threading
import time

from meshgate_agents.launcher.peers import start_time

SILENT_SECONDS = 10.0  # five of a child's beats


class Vitals:
    """Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[int, tuple[int, float]] = {}

    def beat(self, pid: int) -> None:
        """A sign of life."""
        try:
            started = start_time(pid)
        except ProcessLookupError:
            return
        with self._lock:
            self._seen[pid] = (started, time.monotonic())

    def silent(self) -> int | None:
        """A process that lives, has beaten, and beats no more; None when there is none."""
        with self._lock:
            seen = dict(self._seen)
        for pid, (started, at) in seen.items():
            if time.monotonic() - at < SILENT_SECONDS:
                continue
            try:
                same = start_time(pid) == started
            except ProcessLookupError:
                same = False
            if same:
                return pid
            with self._lock:
                self._seen.pop(pid, None)
        return None
