"""A crew of one agent whose model looks at nothing but its prompt. Argument: an order."""
# ruff: noqa: T201 - a program that prints

import sys
from pathlib import Path

import desk_tools
from crewai import Agent, Crew, Task
from crewai.tools import tool
from scripted import Scripted, call

HERE = Path(__file__).parent


class Attentive(Scripted):
    """Looks the order up, pays it, and quotes the receipt. Writes each prompt down that it is shown."""

    def call(self, messages, tools=None, *args, **kwargs):
        """What comes next after the results in the prompt."""
        results = [message["content"] for message in messages if message["role"] == "tool"]
        with (HERE / "shown" / order).open("a") as file:
            file.write(f"{results}\n")
        if len(results) < len(self.replies):
            return self.replies[len(results)]
        return f"The desk says: {results[-1]}"


(order,) = sys.argv[1:]
script = [[call("lookup", id="a", order=order)], [call("pay", id="b", order=f"{order}-paid")]]
clerk = Agent(
    role="Clerk", goal="pay", backstory="b", llm=Attentive(script, native=True), verbose=False,
    tools=[tool(desk_tools.lookup), tool(desk_tools.pay)],
)  # fmt: skip
task = Task(description="pay the order", expected_output="a receipt", agent=clerk)
print("ANSWER", Crew(agents=[clerk], tasks=[task], verbose=False).kickoff().raw, flush=True)
