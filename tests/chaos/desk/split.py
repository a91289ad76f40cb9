"""A crew whose agents are apps of their own: six orders, one a task, handled by two agents in turn."""

import json
import os
import re
import secrets
from types import SimpleNamespace
from typing import Any

import desk_tools
from crewai import Agent, BaseLLM, Crew, Task
from crewai.tools import tool
from desk_client import ask

TASK = re.compile(r"Handle order <(\S+)> with (\w+)")
TASKS = 6
APP = os.environ.get("MESHGATE_APP", "")
life = ""  # tells the processes of one app from each other; in no prompt


class Outside(BaseLLM):
    """A model that lives in the checker's process."""

    def call(self, messages: Any, *_args: Any, **_kwargs: Any) -> Any:
        """One tool call for each task, then its result as the answer."""
        order, used = [found for m in messages for found in TASK.findall(str(m.get("content")))][-1]
        results = [m["content"] for m in messages if m.get("role") == "tool"]
        result = results[-1] if results else None
        about = {"run": order.rpartition("-")[0], "app": APP, "life": life}
        reply = ask("model", order=order, tool=used, result=result, **about)
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
    """After each task, in the crew's process, also one that is replayed."""
    done.append(output.raw)
    run = TASK.findall(output.description)[-1][0].rpartition("-")[0]
    ask("between", run=run, app=APP, life=life, task=len(done))


def told(result: Any) -> Any:
    """The answers to all orders as the crew's result."""
    result.raw = json.dumps([output.raw for output in result.tasks_output])
    return result


def _agent(role: str) -> Agent:
    tools = [tool(getattr(desk_tools, each)) for each in ("look", "keyed", "pay")]
    model = Outside(model="outside")
    return Agent(role=role, goal="handle orders", backstory="b", llm=model, tools=tools, verbose=False)


def crew() -> Crew:
    """The crew: in its own app it is kicked off, in an agent's app one agent of it is put to work."""
    global life  # noqa: PLW0603 - one crew a process
    life = secrets.token_hex(4)
    agents = [_agent("Teller"), _agent("Cashier")]
    tasks = [
        Task(
            description=f"Handle order <{{run}}-{number}> with {{tool_{number}}}.",
            expected_output="a receipt",
            agent=agents[(number - 1) % len(agents)],
        )
        for number in range(1, TASKS + 1)
    ]
    ask("hello", app=APP, life=life)
    return Crew(
        agents=agents, tasks=tasks, task_callback=between, after_kickoff_callbacks=[told], verbose=False
    )
