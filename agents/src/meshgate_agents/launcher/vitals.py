"""Who of the children gave a sign of life, and when."""

import threading
import time

from meshgate_agents.launcher.peers import Pulse, pulse

SILENT_SECONDS = 10.0  # five of a child's beats


class Vitals:
    """Safe for threads.

    A process that computes gives a sign of life too: an import, or a library that does not let other threads
    run, can hold back its beats for long. So does one that waits for a processor on a busy machine.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[int, tuple[Pulse, float]] = {}
        self._left: set[tuple[int, int]] = set()

    def beat(self, pid: int) -> None:
        """A sign of life."""
        now = _pulse(pid)
        if now is None:
            return
        with self._lock:
            if (pid, now.started) not in self._left:
                self._seen[pid] = (now, time.monotonic())

    def leave(self, pid: int) -> None:
        """It is done and takes itself down, without beats: how long that may take is no matter of theirs."""
        now = _pulse(pid)
        if now is None:
            return
        with self._lock:
            self._left.add((pid, now.started))
            self._seen.pop(pid, None)

    def silent(self) -> int | None:
        """A process that lives, has beaten, and neither beats nor computes any more; else None."""
        with self._lock:
            seen = dict(self._seen)
        for pid, (before, at) in seen.items():
            if time.monotonic() - at < SILENT_SECONDS:
                continue
            now = _pulse(pid)
            if now is not None and now.started == before.started:
                if not now.runnable and now.ticks == before.ticks:
                    return pid
                self.beat(pid)
                continue
            with self._lock:
                self._seen.pop(pid, None)
        return None


def _pulse(pid: int) -> Pulse | None:
    """How it does; None for a process that has ended."""
    try:
        return pulse(pid)
    except ProcessLookupError:
        return None
