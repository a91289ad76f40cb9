"""A crew whose one agent is an app of its own: it calls a tool, and says as whom it does."""

import json
import os

import desk_tools
from crewai import LLM, Agent, Crew, Task
from crewai.llms.base_llm import BaseLLM
from crewai.tools import tool

refund = tool(desk_tools.refund)


class Scripted(BaseLLM):
    """A model that calls the tool once, and then answers with what it heard, and its process's user."""

    def call(self, messages, *args, **kwargs):
        """The next reply."""
        heard = json.dumps(messages)
        if "Observation:" in heard.replace("Observation: the result", ""):
            return f"Thought: I now know the final answer\nFinal Answer: paid, as {os.getuid()}"
        return 'Thought: I pay.\nAction: refund\nAction Input: {"order": "A-1"}'

    def supports_function_calling(self):
        """It is told of tools in its prompt."""
        return False


def desk():
    """The crew."""
    clerk = Agent(role="Clerk", goal="Pay.", backstory="B.", llm=Scripted(model="scripted"), tools=[refund])
    task = Task(description="Pay A-1.", expected_output="A word.", agent=clerk)
    return Crew(agents=[clerk], tasks=[task])
