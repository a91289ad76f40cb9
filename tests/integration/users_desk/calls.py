"""A crew whose one agent is an app of its own: it calls a tool, and says as whom it does."""
# ruff: noqa: RUF012 - a default as pydantic has it

import json
import os
from typing import Any

import desk_tools
from crewai import Agent, BaseLLM, Crew, Task
from crewai.tools import tool

refund = tool(desk_tools.refund)


class Scripted(BaseLLM):
    """A model that calls the tool, and then says which user its process has."""

    asked: list[Any] = []

    def call(self, messages: Any, tools: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The next reply."""
        self.asked.append(messages)
        if len(self.asked) > 1:
            return f"Thought: I now can give a great answer\nFinal Answer: paid by {os.getuid()}"
        return f"Thought: go\nAction: refund\nAction Input: {json.dumps({'order': 'A-1'})}"

    def supports_function_calling(self) -> bool:
        """It is told of tools in its prompt."""
        return False

    def supports_stop_words(self) -> bool:
        """As most do."""
        return True


def desk() -> Crew:
    """The crew."""
    model = Scripted(model="scripted")
    clerk = Agent(role="Clerk", goal="Pay.", backstory="B.", llm=model, tools=[refund])
    task = Task(description="Pay A-1.", expected_output="A word.", agent=clerk)
    return Crew(agents=[clerk], tasks=[task])
