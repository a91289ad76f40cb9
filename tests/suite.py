"""`./dev test`: the whole suite by two pytest processes at a time.

One begins with the whole meshes, the other with the parts of all the rest, and whichever is free takes the
next part. What a part said is shown when it has ended, what the meshes' process says at once. Not by xdist:
it would start a module's mesh in each of its workers, since its groups are not looked at under pytest 9.2.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

PYTEST = str(Path(sys.executable).with_name("pytest"))
TESTS = Path(__file__).resolve().parent
INTERRUPTED = 130
NOTHING_SELECTED = 5  # pytest's own: all tests of a part may be of whole meshes
SLICES = 4  # of the agents' tests, which are half of the rest
FIRST = "agents"


class Suite:
    """What is left to do, and what is under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts = deque(parts())
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self.status = 0

    def lane(self, first: Sequence[str] = ()) -> None:
        """Plays part after part until none is left."""
        if first:
            self._play(first, None)
        while True:
            with self._lock:
                if not self._parts or self._stopped:
                    return
                part = self._parts.popleft()
            with tempfile.TemporaryFile() as words:
                self._play(["-m", "not plane", *part], words)
                with self._lock:
                    words.seek(0)
                    sys.stdout.write("\n\n")
                    sys.stdout.flush()
                    shutil.copyfileobj(words, sys.stdout.buffer)
                    sys.stdout.flush()

    def stop(self) -> None:
        """Interrupts what is under way; no further part is begun."""
        with self._lock:
            self._stopped, running = True, list(self._running)
        for one in running:
            one.send_signal(signal.SIGINT)

    def _play(self, arguments: Sequence[str], words: IO[bytes] | None) -> None:
        with self._lock:
            if self._stopped:
                return
            process = subprocess.Popen([PYTEST, *arguments], stdout=words, stderr=words)
            self._running.add(process)
        status = process.wait()
        with self._lock:
            self._running.discard(process)
            if status != NOTHING_SELECTED or words is None:
                self.status = self.status or status


def parts() -> list[list[str]]:
    """Every test file once: those of the agents in slices, then folder by folder, the large ones first."""
    folders: dict[Path, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        folders.setdefault(path.parent, []).append(str(path))
    agents = folders.pop(TESTS / FIRST)
    slices = [agents[number::SLICES] for number in range(SLICES)]
    return [*slices, *sorted(folders.values(), key=len, reverse=True)]


def main() -> int:
    """0 when everything passed, else a status of pytest's own."""
    suite = Suite()
    lanes = [
        threading.Thread(target=suite.lane, args=(["-m", "plane"],)),
        threading.Thread(target=suite.lane),
    ]
    try:
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
    except KeyboardInterrupt:
        suite.stop()
        for lane in lanes:
            lane.join()
        return INTERRUPTED
    return suite.status


if __name__ == "__main__":
    sys.exit(main())
