"""An ordinary CrewAI program that times itself; runs with meshgate and without it.

    bench_crew.py WHAT[:NUMBER…]…

What: `crew:KICKOFFS`, `turns:TURNS`, `model:CALLS`, `blob:SIZE:TIMES`, `cut` (ends itself by SIGKILL when it
first comes here, so that a second attempt answers what stands before it from the journal) and `idle` (waits
for the end of standard input). Prints a JSON object: what was asked for, and milliseconds per step.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench_tools import blob, lookup
from crewai import Agent, BaseLLM, Crew, Task


class Scripted(BaseLLM):
    """A model on loopback's near side: `turns` tool calls, one after another, then an answer."""

    turns: int
    marks: list[float] = []  # noqa: RUF012 - pydantic copies it

    def call(self, messages: Any, *_args: Any, **_named: Any) -> Any:
        """The next reply, by how many replies the messages hold."""
        self.marks.append(time.perf_counter())
        done = (
            sum(message["role"] == "assistant" for message in messages) if isinstance(messages, list) else 0
        )
        if done >= self.turns:
            return "Thought: I now can give a great answer\nFinal Answer: done"
        function = SimpleNamespace(name="lookup", arguments=json.dumps({"order": f"A-{done}"}))
        return [SimpleNamespace(id=f"call_{done}", type="function", function=function)]

    def supports_function_calling(self) -> bool:
        """Native tool calls."""
        return True

    def supports_stop_words(self) -> bool:
        """So that CrewAI does not cut for us."""
        return True

    def get_context_window_size(self) -> int:
        """Large enough for every turn."""
        return 10_000_000


def crew_of(turns: int) -> tuple[Crew, Scripted]:
    """One agent, one task, so many tool calls."""
    model = Scripted(model="scripted", turns=turns)
    agent = Agent(
        role="Clerk", goal="g", backstory="b", tools=[lookup], llm=model, max_iter=turns + 5, verbose=False
    )
    task = Task(description="Look orders up.", expected_output="done", agent=agent)
    return Crew(agents=[agent], tasks=[task], verbose=False), model


def kickoffs(count: int) -> list[float]:
    """Each a crew of three tool calls."""
    taken = []
    for _ in range(count):
        crew, _model = crew_of(3)
        taken.append(timed(crew.kickoff))
    return taken


def turns(count: int) -> list[float]:
    """One crew with so many turns; from one model call to the next, so a model step and a tool call."""
    crew, model = crew_of(count)
    crew.kickoff()
    return [(after - before) * 1000 for before, after in zip(model.marks, model.marks[1:], strict=False)]


def model_calls(count: int) -> list[float]:
    """The model alone, with a request of usual size."""
    model = Scripted(model="scripted", turns=0)
    return [
        timed(lambda n=n: model.call([{"role": "user", "content": f"{n} {'x' * 2000}"}]))
        for n in range(count)
    ]


def blobs(size: int, times: int) -> list[float]:
    """A tool's result of that size."""
    return [timed(lambda n=n: blob.run(size=size + n)) for n in range(times)]


def cut() -> list[float]:
    """The first attempt ends here."""
    mark = Path("cut.mark")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    mark.unlink()
    return []


def idle() -> list[float]:
    """Ready and at rest, until standard input ends."""
    print("ready", flush=True)
    sys.stdin.read()
    return []


def timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1000


def asked(what: str) -> list[float]:
    """Does what one argument says."""
    name, *numbers = what.split(":")
    ways: dict[str, Callable[..., list[float]]] = {
        "crew": kickoffs, "turns": turns, "model": model_calls, "blob": blobs, "cut": cut, "idle": idle,
    }  # fmt: skip
    return ways[name](*map(int, numbers))


if __name__ == "__main__":
    print(json.dumps({what: asked(what) for what in sys.argv[1:]}), flush=True)
