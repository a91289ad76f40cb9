"""FAKE: a gateway that keeps runs in memory, and a worker in the test's own process that plays them."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meshgate_agents.launcher.announcing import Announcement
from meshgate_agents.launcher.children import Children
from meshgate_agents.launcher.errors import GatewayUnavailable, RunHeld, RunOver
from meshgate_agents.launcher.gateway import Begun, End, Known
from meshgate_agents.launcher.settings import GatewayAddress, Settings
from meshgate_agents.worker.plays import Plays


class Store:
    """FAKE: a gateway that keeps runs and refuses old attempts, in this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runs: dict[str, dict] = {}
        self.away = False
        self.broken: set[str] = set()
        self.ends: list[tuple[str, str]] = []

    def add(self, run_id: str, *command: str, given: object = None) -> None:
        order = {"command": list(command)} if command else {}
        order |= {} if given is None else {"input": given}
        self.runs[run_id] = {
            "state": "pending", "attempt": 0, "order": json.dumps(order).encode(), "result": b"",
            "forsaken": False, "failures": 0, "lost": 0, "moved": False,
        }  # fmt: skip

    def state(self, run_id: str) -> str:
        with self.lock:
            return str(self.runs[run_id]["state"])

    def read_run(self, run_id: str) -> Known:
        with self.lock:
            if self.away:
                raise GatewayUnavailable(reason="away", detail="says the test")
            if run_id in self.broken:
                raise KeyError("a bug in one run")
            if run_id not in self.runs:
                raise RunOver("run_unknown")
            run = self.runs[run_id]
            return Known(
                state=run["state"], forsaken=run["forsaken"], input_json=run["order"],
                failures=run["failures"] + (run["state"] == "running" and not run["moved"]), lost=run["lost"],
                attempt=run["attempt"],
            )  # fmt: skip

    def start_attempt(self, *, run_id: str, instance: str, after: int) -> Begun:
        with self.lock:
            run = self.runs[run_id]
            if run["state"] == "paused":
                raise RunHeld("run_paused")
            if run["attempt"] != after:
                raise RunOver("attempt_superseded")
            run["attempt"] += 1
            run |= {"state": "running", "forsaken": False}
            return Begun(run["attempt"], run["failures"])

    def journal(self, *, run_id: str, attempt: int) -> list:
        return []

    def heartbeat(self, *, run_id: str, attempt: int, steps: int) -> str:
        with self.lock:
            self._current(run_id, attempt)
            return str(self.runs[run_id]["state"])

    def end_attempt(self, *, run_id: str, attempt: int, end: End) -> str:
        with self.lock:
            self._current(run_id, attempt)
            self.runs[run_id]["state"] = end.state
            self.ends.append((end.state, end.detail))
            return str(end.state)

    def finish(self, *, run_id: str, attempt: int, end: End) -> None:
        with self.lock:
            if self.away:
                raise GatewayUnavailable(reason="away", detail="says the test")
            self._current(run_id, attempt)
            self.runs[run_id] |= {"state": end.state, "result": end.result, "detail": end.detail}

    def _current(self, run_id: str, attempt: int) -> None:
        run = self.runs[run_id]
        if run["state"] in ("completed", "failed", "cancelled") or run["attempt"] != attempt:
            raise RunOver("attempt_superseded")


@contextmanager
def a_worker(store: Store, tmp_path: Path, terminals: Path | None = None) -> Iterator[Plays]:
    """Plays runs of `desk` until it is left; `terminals` is where it asks for terminals."""
    (tmp_path / "s").mkdir()
    settings = Settings(
        app="desk", kind="program", mesh="m", trust_domain="d", workload_api="",
        gateway=GatewayAddress(target="", server_name=""), project_root=tmp_path, socket_dir=tmp_path / "s",
        tools=(), expects_report=False, env={"PATH": os.environ["PATH"]}, run_id=None,
        step_deadline_seconds=5, attempts=3, backoff_seconds=0.05, stall_seconds=600, replay=False,
        isolation=None,
    )  # fmt: skip
    children = Children()
    made = Plays(
        settings=settings, runs_at_once=16, command=[sys.executable, "-c", "print(1)"], gateway=store,
        children=children,
        announcement=Announcement(tmp_path / "desk.ready"), terminals=terminals,
    )  # fmt: skip
    try:
        yield made
    finally:
        made.stop()
        children.end()
