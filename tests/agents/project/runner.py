"""An ordinary script with a DurableRunner. Each line it prints says in which process it was printed."""
# ruff: noqa: T201

import os
import sys

import durable
from crewai import Agent, Crew, Task
from crewai.flow.flow import Flow, start
from meshgate_agents import DurableRunner, RunFailed
from scripted import call

HERE = "inner" if os.environ.get("MESHGATE_SOCKET") else "outer"
ONCE = [[call("refund", id="a", order="1", amount=5)], [call("lookup", id="b", order="2")], "all paid"]


def crew(**task):
    return durable.crew(durable.agent(ONCE), **task)


def one() -> None:
    inputs = {"when": os.environ.get("WHEN") or os.getpid()}
    runner = DurableRunner(name="desk", crew=crew())
    result = runner.run(inputs, run_id=os.environ.get("RUN_ID"), on_event=tell)
    print("AFTER", HERE, type(result).__name__, result.raw, result.token_usage.total_tokens, flush=True)
    print("TASKS", [(task.agent, len(task.messages) > 0) for task in result.tasks_output])


def tell(event) -> None:
    print("EVENT", event.event, event.attempt, event.kind, event.what, flush=True)


def two() -> None:
    """Two runs in turn; the second needs the first one's result."""
    first = DurableRunner(name="desk", crew=crew()).run()
    print("BETWEEN", HERE, first.raw, flush=True)
    replies = [[call("refund", id="z", order=first.raw)], "and that"]
    second = DurableRunner(name="desk", agent=durable.agent(replies), max_iterations=4).run("what else?")
    print("AFTER", HERE, type(second).__name__, second.raw, flush=True)


def structured() -> None:
    """A task that gives a pydantic object."""
    model = durable.Counted(['{"paid": 3}'], native=True)
    clerk = Agent(role="Clerk", goal="g", backstory="b", llm=model)
    task = Task(description="count", expected_output="n", agent=clerk, output_pydantic=durable.Report)
    result = DurableRunner(name="desk", crew=Crew(agents=[clerk], tasks=[task])).run()
    print("AFTER", HERE, result.pydantic == durable.Report(paid=3), result["paid"], flush=True)


def raising() -> None:
    """The crew raises; the script catches what it gets."""

    class Broken(Flow):
        @start()
        def begin(self):
            raise ValueError("the desk is closed")

    try:
        DurableRunner(name="desk", flow=Broken()).run()
    except (RunFailed, ValueError) as error:
        print(
            "CAUGHT", HERE, type(error).__name__, "ValueError: the desk is closed" in str(error), flush=True
        )


def flow() -> None:
    """A flow that returns JSON."""

    class Plain(Flow):
        @start()
        def begin(self):
            return {"sum": self.state["a"] + 1}

    print("AFTER", HERE, DurableRunner(name="desk", flow=Plain()).run({"a": 1}), flush=True)


def odd() -> None:
    """A flow whose result cannot travel."""

    class Odd(Flow):
        @start()
        def begin(self):
            return object()

    result = DurableRunner(name="desk", flow=Odd()).run()
    print("AFTER", HERE, type(result).__name__, flush=True)


if __name__ == "__main__":
    print("BEFORE", HERE, flush=True)
    globals()[sys.argv[1]]()
