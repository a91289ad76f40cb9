"""A crew of one agent with several trivial tasks; tells when each began and ended, wherever it is done.

With meshgate the agent is an app of its own: then the crew's process tells of a task as who gave it away, the
agent's as who does it. Plainly (`python bench_split.py`) there is one process and one line for each task. A
task that says `hold` waits at the model's server when it is done. BENCH_TASKS says how many there are.
"""

import os
import time

MODULE = time.clock_gettime(time.CLOCK_BOOTTIME)

import json  # noqa: E402 - after the clock
import urllib.request  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from crewai import Agent, Crew, Task  # noqa: E402


def now() -> float:
    """Seconds, the same for every process of the machine."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def born() -> float:
    """When this process was made, to 10 ms."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


class Timed(Agent):
    """As every agent, with a clock around its task."""

    def execute_task(self, task: Any, context: str | None = None, tools: Any = None) -> Any:
        """CrewAI's own way, or meshgate's."""
        begun = now()
        output = super().execute_task(task, context, tools)
        told = {
            "bench": os.environ.get("MESHGATE_APP", ""), "pid": os.getpid(), "born": born(),
            "module": MODULE, "begun": begun, "ended": now(),
        }  # fmt: skip
        print(json.dumps(told), flush=True)
        if "hold" in str(task.description) and told["bench"] != "desk":
            with urllib.request.urlopen(os.environ["OPENAI_BASE_URL"].removesuffix("/v1") + "/hold"):
                pass
        return output


clerk = Timed(role="Clerk", goal="Answer", backstory="Here for years", verbose=False)
tasks = [
    Task(description=f"Say {{what}} {number}", expected_output="done", agent=clerk, context=[])
    for number in range(int(os.environ.get("BENCH_TASKS", "1")))
]
crew = Crew(agents=[clerk], tasks=tasks, verbose=False)

if __name__ == "__main__":
    crew.kickoff(inputs={"what": "done"})
