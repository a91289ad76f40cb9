"""An ordinary crew of one agent with a scripted model; `make` builds it."""

import desk_tools
from crewai import Agent, Crew, Task
from crewai.tools import tool
from scripted import Scripted, call


class Paying(Scripted):
    """Pays the order that its task names."""

    def call(self, messages, tools=None, *args, **kwargs):
        """One reply of the script; the last one quotes the last tool result."""
        reply = super().call(messages, tools, *args, **kwargs)
        return f"The desk says: {messages[-1]['content']}" if reply == "" else reply


def make():
    """A crew whose agent looks up one order and pays another."""
    script = [[call("lookup", id="a", order="o-crew")], [call("pay", id="b", order="o-crew-paid")], ""]
    clerk = Agent(
        role="Clerk", goal="pay", backstory="b", llm=Paying(script, native=True), verbose=False,
        tools=[tool(desk_tools.lookup), tool(desk_tools.pay)],
    )  # fmt: skip
    task = Task(description="pay {order}", expected_output="a receipt", agent=clerk)
    return Crew(agents=[clerk], tasks=[task], verbose=False)
