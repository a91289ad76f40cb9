"""A crew of one agent with one task, on a model of its own; tells of its import, and of its end."""

import importlib
import signal
from typing import Any

from crewai import Agent, BaseLLM, Crew, Task


class Fixed(BaseLLM):
    """Always the same answer."""

    def call(self, *_arguments: Any, **_more: Any) -> str:  # type: ignore[override]
        """CrewAI's protocol."""
        return "Thought: I now can give a great answer\nFinal Answer: done"

    def supports_function_calling(self) -> bool:
        """It does not."""
        return False

    def get_context_window_size(self) -> int:
        """Plenty."""
        return 100_000


channel = importlib.import_module("_meshgate_child.channel").from_environment()
channel.ask({"op": "result", "result": "imported"})
agent = Agent(role="Clerk", goal="Answer", backstory="Here for years", llm=Fixed(model="fixed"))
task = Task(description="Say done", expected_output="done", agent=agent)
print(Crew(agents=[agent], tasks=[task]).kickoff())
channel.ask({"op": "result", "result": "done"})
signal.pause()
