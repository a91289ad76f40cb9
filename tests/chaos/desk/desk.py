"""An ordinary crew: one agent, one task an order. Arguments: a name, then the tool of each task."""
# ruff: noqa: T201 - a program that prints

import json
import re
import secrets
import sys
from types import SimpleNamespace
from typing import Any

import desk_tools
from crewai import Agent, BaseLLM, Crew, Task
from crewai.tools import tool
from desk_client import ask

LIFE = secrets.token_hex(4)  # tells the processes of one run from each other; in no prompt
TASK = re.compile(r"Handle order <(\S+)> with (\w+)")
name, *wanted = sys.argv[1:]


class Outside(BaseLLM):
    """A model that lives in the checker's process."""

    def call(self, messages: Any, *_args: Any, **_kwargs: Any) -> Any:
        """One tool call for each task, then its result as the answer."""
        order, used = [found for m in messages for found in TASK.findall(str(m.get("content")))][-1]
        results = [m["content"] for m in messages if m.get("role") == "tool"]
        result = results[-1] if results else None
        reply = ask("model", run=name, life=LIFE, order=order, tool=used, result=result)
        if "text" in reply:
            return reply["text"]
        function = SimpleNamespace(name=used, arguments=json.dumps({"order": order}))
        return [SimpleNamespace(id=f"call-{order}", type="function", function=function)]

    def supports_function_calling(self) -> bool:
        """Yes."""
        return True

    def supports_stop_words(self) -> bool:
        """Yes."""
        return True

    def get_context_window_size(self) -> int:
        """Large enough."""
        return 100_000


done: list[str] = []


def between(output: Any) -> None:
    """After each task, also one that is replayed."""
    done.append(output.raw)
    ask("between", run=name, life=LIFE, task=len(done))


clerk = Agent(
    role="Clerk", goal="handle orders", backstory="b", llm=Outside(model="outside"), verbose=False,
    tools=[tool(getattr(desk_tools, each)) for each in ("look", "keyed", "pay")],
)  # fmt: skip
tasks = [
    Task(description=f"Handle order <{name}-{number}> with {used}.", expected_output="a receipt", agent=clerk)
    for number, used in enumerate(wanted, start=1)
]
ask("hello", run=name, life=LIFE)
Crew(agents=[clerk], tasks=tasks, task_callback=between, verbose=False).kickoff()
print("ANSWER", json.dumps(done), flush=True)
