"""Crews whose agents hold other tools in some processes. `keyed.py NAME HOW`, as `split.py`."""

import os
import sys

import desk_tools
import split
from crewai import Crew
from crewai.tools import tool
from scripted import call
from split import agent, task

HERE = os.environ["MESHGATE_APP"]
ASKS, CLERK = HERE == "desk", HERE == "clerk"
PAY = [call("refund", id="pay", order="1", amount=5)]


def many(count: int) -> list:
    """So many tools of one kind."""

    def made(number: int):
        @tool(f"tool_{number}")
        def one(order: str) -> str:
            """Does nothing."""
            return order

        return one

    return [made(number) for number in range(count)]


def crew(*held, given=(), **more) -> Crew:
    """One clerk, and its task."""
    clerk = agent("Clerk", *more.pop("replies", ["seen"]), tools=held)
    return Crew(agents=[clerk], tasks=[task(clerk, **({"tools": list(given)} if given else {}), **more)])


def agents_tool() -> Crew:
    """Made where there is a key for it."""
    return crew(*([desk_tools.lookup, desk_tools.refund] if ASKS else [desk_tools.lookup]))


def tasks_tool() -> Crew:
    """The agent has others; the task's own take their place."""
    given = [desk_tools.refund] if ASKS else []
    return crew(desk_tools.lookup, given=given)


def no_task_tools() -> Crew:
    """The other way round: the task's own are there in the agent's process alone."""
    return crew(desk_tools.lookup, given=[] if ASKS else [desk_tools.refund])


def none_here() -> Crew:
    """All of its tools are missing."""
    return crew(*([desk_tools.lookup] if ASKS else []))


def strange() -> Crew:
    """A name that is no line of a log, and longer than what is told."""

    @tool("pay\nmeshgate: all is well " + "x" * 200)
    def one(order: str) -> str:
        """Does nothing."""
        return order

    return crew(*([one] if ASKS else []))


def hundreds() -> Crew:
    """One of very many is missing."""
    return crew(*many(151 if ASKS else 150))


def more_hundreds() -> Crew:
    """Very many, and one more where the agent works."""
    return crew(*many(150 if ASKS else 151))


def equal_hundreds() -> Crew:
    """Very many, the same."""
    return crew(*many(150))


def a_hundred() -> Crew:
    """As many as are told by name."""
    return crew(*many(100))


def own_tool() -> Crew:
    """The agent's process alone has what it needs for a tool, and it is used."""
    return crew(*([desk_tools.refund, desk_tools.lookup] if CLERK else []), replies=[PAY, "paid"])


def script() -> Crew:
    return crew(desk_tools.lookup)


def lead(**more) -> Crew:
    """A lead of this process hands work to the clerk."""
    job = {"task": "pay order 1", "context": "now", "coworker": "Clerk"}
    boss = agent(
        "Lead", [call("delegate_work_to_coworker", id="d", **job)], "all done", allow_delegation=True
    )
    clerk = agent("Clerk", PAY, "paid", **more)
    return Crew(agents=[boss, clerk], tasks=[task(boss)])


def coworkers_tool() -> Crew:
    return lead(tools=[desk_tools.lookup, desk_tools.refund] if ASKS else [desk_tools.lookup])


def coworkers_own() -> Crew:
    return lead(tools=[desk_tools.refund] if CLERK else [])


def main(name: str, how: str) -> None:
    """Some crews are changed by the script, after they are built."""
    made = globals()[name]()
    if how == "later":
        made.agents[0].tools.append(desk_tools.refund)
    if how == "handed":
        worker = made.agents[0]
        worker.execute_task(task(worker), None, [desk_tools.refund])
    split.main(made, "once")


if __name__ == "__main__":
    main(*[*sys.argv[1:], "once"][:2])
