"""A launcher's part of starting programs: run by `rows.forks`, which is the supervisor to it.

Reads a line `forked` or `executed` per program; answers with a line of JSON: seconds until the program has
imported CrewAI and is served (`ready`), from its death until the next one is (`again`), and MB that are
private to it after a task.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from meshgate_agents.child.framing import receive, send
from meshgate_agents.launcher.children import Children, Program
from meshgate_agents.launcher.environment import OFF, ON, SITE_FOLDER
from meshgate_agents.launcher.forks import Forks

PROGRAM = Path(__file__).resolve().parents[1] / "programs" / "bench_task.py"
SECONDS = 120.0
MEGABYTE = 1024.0


class Served:
    """Answers whatever a program asks, and knows what it told."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self.told = {"imported": threading.Event(), "done": threading.Event()}
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection, contextlib.suppress(OSError):  # killed while it asked
                request = receive(connection)
                operation = request.get("op") if request else ""
                state = "live" if operation in ("model", "seek") else "ok"
                send(connection, {"state": state, "program": "p 0", "run": "r", "attempt": 1})
            if request and operation == "result":
                self.told[str(request["result"])].set()


class Asker:
    """Starts programs one way or the other."""

    def __init__(self, folder: Path, server: Path) -> None:
        self._folder, self._served = folder, Served(folder / "s")
        self._ways = {
            "forked": Children(Forks({sys.executable: server}, self._refused)),
            "executed": Children(),
        }

    def measure(self, way: str) -> Mapping[str, float]:
        """One program, killed after its task, and the one that follows it."""
        children = self._ways[way]
        begun = time.monotonic()
        child = children.start(self._program(), self._env())
        ready = self._seconds(begun, "imported")
        self._seconds(begun, "done")
        pids = [child.pid, *([child.popen.keeper] if way == "forked" else [])]  # type: ignore[union-attr]
        private = sum(map(private_megabytes, pids))
        begun = time.monotonic()
        os.kill(child.pid, signal.SIGKILL)
        child.until_ended()
        children.reap(child)
        child = children.start(self._program(), self._env())
        again = self._seconds(begun, "imported")
        children.abandon(child)
        return {"ready": ready, "again": again, "private": private}

    def _seconds(self, begun: float, word: str) -> float:
        if not self._served.told[word].wait(SECONDS):
            sys.exit(f"a program did not say {word!r}")
        return time.monotonic() - begun

    def _program(self) -> Program:
        for word in self._served.told.values():
            word.clear()
        return Program(
            command=(sys.executable, str(PROGRAM)), cwd=self._folder, streams=(subprocess.DEVNULL, None, None)
        )

    def _env(self) -> dict[str, str]:
        return {
            **ON, **OFF, "PATH": os.environ["PATH"], "HOME": str(self._folder),
            "PYTHONPATH": str(SITE_FOLDER), "CREWAI_STORAGE_DIR": str(self._folder / "storage"),
            "MESHGATE_SOCKET": str(self._folder / "s"),
        }  # fmt: skip

    @staticmethod
    def _refused(why: str) -> None:
        sys.exit(f"this row measures forks: {why}")


def private_megabytes(pid: int) -> float:
    """What no other process shares with it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / MEGABYTE


def main() -> None:
    """Serves until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--server", type=Path, required=True)
    given = parser.parse_args()
    asker = Asker(given.folder, given.server)
    for line in sys.stdin:
        print(json.dumps(asker.measure(line.strip())), flush=True)


if __name__ == "__main__":
    main()
