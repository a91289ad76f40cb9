"""A crew of one agent with several trivial tasks; tells when each began and ended, wherever it is done.

With meshgate the agent is an app of its own: then the crew's process tells of a task as who gave it away, the
agent's as who does it. Plainly (`python bench_split.py`) there is one process and one line for each task. A
task that says `rest` is given after a rest, as a model's work leaves it; one that says `hold` waits at the
model's server when it is done. BENCH_TASKS says how many there are.
"""

import os
import time

MODULE = time.clock_gettime(time.CLOCK_BOOTTIME)

import json  # noqa: E402 - after the clock
import sys  # noqa: E402
import urllib.request  # noqa: E402
from typing import Any  # noqa: E402

from crewai import Agent, Crew, Task  # noqa: E402

REST_SECONDS = 2.5


def now() -> float:
    """Seconds, the same for every process of the machine."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def timed(work: Any) -> Any:
    """The same, with a clock around it."""

    def execute_task(self: Any, task: Any, *arguments: Any, **named: Any) -> Any:
        if "rest" in str(task.description) and os.environ.get("MESHGATE_APP") == "desk":
            time.sleep(REST_SECONDS)
        begun = now()
        output = work(self, task, *arguments, **named)
        told = {
            "bench": os.environ.get("MESHGATE_APP", ""), "module": MODULE, "begun": begun,
            "ended": now(),
        }  # fmt: skip
        print(json.dumps(told), flush=True)
        if "hold" in str(task.description) and told["bench"] != "desk":
            with urllib.request.urlopen(os.environ["OPENAI_BASE_URL"].removesuffix("/v1") + "/hold"):
                pass
        return output

    return execute_task


# CrewAI's own way, or meshgate's. A class of ours below Agent would cost 50 ms in each process.
Agent.execute_task = timed(Agent.execute_task)  # type: ignore[method-assign]
clerk = Agent(role="Clerk", goal="Answer", backstory="Here for years", verbose=False)
tasks = [
    Task(description=f"Say {{what}} {number}", expected_output="done", agent=clerk, context=[])
    for number in range(int(os.environ.get("BENCH_TASKS", "1")))
]
crew = Crew(agents=[clerk], tasks=tasks, verbose=False)

if __name__ == "__main__":
    crew.kickoff(inputs={"what": sys.argv[1] if sys.argv[1:] else "done"})
