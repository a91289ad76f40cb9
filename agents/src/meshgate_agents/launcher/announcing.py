"""A file that says what a process plays: each run with its attempt and, while one runs, its program.

A program need not descend from the process that started it, so nobody else could tell whose it is.
"""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from meshgate_agents.launcher.calling import Attempt
from meshgate_agents.launcher.children import Child

OnStart = Callable[[Child], None]


class Announcement:
    """One process's file; without a path nothing is written. Safe for threads.

    It holds `{"runs": [{"run_id", "attempt", "pid", "started"}], "standby": {"pid", "started"}}`, the second
    where a program stands ready. A run that has begun no attempt yet has
    only its id; `pid` and its start time (ticks since boot) are there while a program runs. Whoever reads
    it checks both: after a process was killed, its last word stays.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._rows: dict[str, dict[str, str | int]] = {}
        self._standby: Child | None = None
        self._ended = False

    def open(self) -> None:
        """The file appears, if it is not there yet."""
        with self._lock:
            self._write()

    def add(self, run_id: str) -> None:
        """A run is played from now on."""
        self._put(run_id, {})

    def remove(self, run_id: str) -> None:
        """It is not played any more."""
        with self._lock:
            self._rows.pop(run_id, None)
            self._write()

    @contextmanager
    def program(self, attempt: Attempt, then: OnStart) -> Iterator[OnStart]:
        """While it lasts, an attempt is played. What it gives takes the program and hands it on to `then`."""
        known: dict[str, str | int] = {"attempt": attempt.number} if attempt.number else {}  # else a replay
        self._put(attempt.run_id, known)

        def begun(child: Child) -> None:
            then(child)  # first: from now on the program may ask
            self._put(attempt.run_id, known | {"pid": child.pid, "started": child.started})

        try:
            yield begun
        finally:
            self._put(attempt.run_id, known)

    def stands(self, child: Child | None) -> None:
        """The program that stands ready for a next task."""
        with self._lock:
            self._standby = child
            self._write()

    def close(self) -> None:
        """The file goes, and nothing is written any more."""
        with self._lock:
            self._ended = True
            if self._path is not None:
                with contextlib.suppress(OSError):
                    self._path.unlink(missing_ok=True)

    def _put(self, run_id: str, known: dict[str, str | int]) -> None:
        with self._lock:
            self._rows[run_id] = {"run_id": run_id, **known}
            self._write()

    def _write(self) -> None:
        if self._path is None or self._ended:
            return
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # the folder went away, or the disk is full: a run goes on
            temporary.touch(mode=0o600)
            told: dict[str, object] = {"runs": [row for _, row in sorted(self._rows.items())]}
            if self._standby is not None:
                told["standby"] = {"pid": self._standby.pid, "started": self._standby.started}
            temporary.write_text(json.dumps(told), encoding="ascii")
            temporary.replace(self._path)
