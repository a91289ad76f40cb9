"""Crews that write CrewAI's checkpoints, or go on from one."""
# ruff: noqa: T201

import json
import os
import sys
from pathlib import Path

import desk_tools
from crewai import Agent, Crew, Task
from crewai.state.checkpoint_config import CheckpointConfig
from looker import Looker

HERE = Path(os.environ["MARKS"]).parent
FOLDER = HERE / "checkpoints"


def work():
    """Two tasks: the first looks order 1 up, the second order 2; a checkpoint after each."""
    workers = [
        Agent(
            role=f"R{n}", goal="g", backstory="b", tools=[desk_tools.lookup], llm=Looker(model=f"looker-{n}")
        )
        for n in (1, 2)
    ]
    where = CheckpointConfig(location=str(FOLDER), on_events=["task_completed"])
    tasks = [Task(description=f"look {one.role}", expected_output="seen", agent=one) for one in workers]
    return Crew(agents=workers, tasks=tasks, checkpoint=where)


def write() -> None:
    """A whole run, its checkpoints left behind."""
    print("ANSWER", json.dumps(work().kickoff().raw))


def restore() -> None:
    """Goes on from the first checkpoint, and calls every restored tool by every way in."""
    first = min(FOLDER.rglob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    crew = Crew.from_checkpoint(CheckpointConfig(restore_from=str(first)))
    for worker in crew.agents:
        for tool in worker.tools or []:
            for way in ("run", "_run"):
                print("RESTORED", type(tool).__name__, str(getattr(tool, way)(order="9")), flush=True)
    for number, worker in enumerate(crew.agents, 1):
        worker.llm = Looker(model=f"looker-{number}")  # CrewAI restores only models of its own
    print("ANSWER", json.dumps(crew.kickoff().raw), flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
