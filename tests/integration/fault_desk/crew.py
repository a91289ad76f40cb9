"""An ordinary crew of one agent with a scripted model. Arguments: a name and an order."""
# ruff: noqa: T201 - a program that prints

import sys
import time
from pathlib import Path

import desk_tools
from crewai import Agent, Crew, Task
from crewai.tools import tool
from scripted import Scripted, call

HERE = Path(__file__).parent


class Remembering(Scripted):
    """Writes down what it is shown before it answers."""

    def call(self, messages, tools=None, *args, **kwargs):
        """One reply of the script; the last one quotes the last tool result."""
        reply = super().call(messages, tools, *args, **kwargs)
        (HERE / "shown" / name).write_text("\n".join(self.shown))
        return f"The desk says: {messages[-1]['content']}" if reply == "" else reply


name, order = sys.argv[1:]
script = [[call("lookup", id="a", order=order)], [call("pay", id="b", order=f"{order}-paid")], ""]
model = Remembering(script, native=True)
clerk = Agent(
    role="Clerk", goal="pay", backstory="b", llm=model, verbose=False,
    tools=[tool(desk_tools.lookup), tool(desk_tools.pay)],
)  # fmt: skip
task = Task(description="pay the order", expected_output="a receipt", agent=clerk)
crew = Crew(agents=[clerk], tasks=[task], verbose=False)
(HERE / "gates" / f"{name}.here").touch()
while not (HERE / "gates" / f"{name}.open").exists():
    time.sleep(0.02)
print("ANSWER", crew.kickoff().raw.replace("\n", " "), flush=True)
