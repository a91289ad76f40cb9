"""The lane of a crew whose agents are apps: workers play its runs, each task is a run of an agent's app."""

import base64
import json
import time
from typing import Any

from chaos.lanes import RUN_SECONDS, WATCH_SECONDS, Lane, Plan, Run, Say
from chaos.split_phases import OVER, SplitStage
from meshgate_deploy.errors import MeshError

APP = "split"
AGENTS = ("teller", "cashier")  # they take turns, as the crew's tasks have it
TASKS = 6


class SplitLane(Lane):
    """One run of the split crew at a time, so that a worker plays one run of ours."""

    _stage: SplitStage

    def __init__(self, stage: SplitStage, plan: Plan, say: Say, names: str) -> None:
        super().__init__(stage, plan, APP, "split", say, names)

    def _begin(self, run_id: str, tools: list[str]) -> Run:
        return Driven(self._stage, run_id, tools)

    def _tools(self, wanted: list[str]) -> list[str]:
        """The crew's tasks are as many as they are."""
        tools = super()._tools(wanted)
        return [*tools, *["keyed"] * (TASKS - len(tools))]

    def _owner(self, number: int) -> str:
        return AGENTS[(number - 1) % len(AGENTS)]


class Driven(Run):
    """A run that the split crew's worker plays, and those that its agents' workers play for it."""

    _stage: SplitStage

    def __init__(self, stage: SplitStage, run_id: str, tools: list[str]) -> None:
        inputs = {"run": run_id, **{f"tool_{number}": tool for number, tool in enumerate(tools, start=1)}}
        data = base64.b64encode(json.dumps(inputs).encode()).decode()
        give_up_at = time.monotonic() + RUN_SECONDS
        while True:
            try:
                stage.mesh.ask("StartRun", app=APP, run_id=run_id, input_json=data)
                break
            except (MeshError, OSError):  # the gateway is being started again; the same start is the same run
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(WATCH_SECONDS)
        super().__init__(stage, run_id)

    @property
    def running(self) -> bool:
        """Whether it has not ended; nobody can say while the gateway is away, so it has not."""
        try:
            return self._row()["state"] not in OVER
        except (MeshError, OSError, ValueError):
            return True

    def close(self) -> None:
        """Cancels it where it has not ended, and what it asked for with it."""
        super().close()
        give_up_at = time.monotonic() + RUN_SECONDS
        while self.running:
            try:
                self._stage.mesh.ask("ControlRun", run_id=self._run_id, action="cancel")
            except (MeshError, OSError):  # another lane's kill: the gateway is being started again
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(WATCH_SECONDS)
            else:
                return

    def _told(self) -> tuple[int | None, list[str] | None]:
        shown = self._stage.mesh.ask("ShowRun", run_id=self._run_id)
        state = shown["run"]["state"]
        if state not in OVER:
            return None, None
        result = json.loads(base64.b64decode(shown["result"]) or "null")
        return int(state != "completed"), json.loads(result["raw"]) if result else None

    def _row(self) -> dict[str, Any]:
        return dict(self._stage.mesh.ask("ShowRun", run_id=self._run_id, row_only=True)["run"])

    def _rows(self) -> list[dict[str, Any]]:
        return [*super()._rows(), *self._stage.runs_of(self._run_id)]
