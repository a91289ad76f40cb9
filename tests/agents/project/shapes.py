"""More shapes of CrewAI programs, as users write them. May be cut at the DIE_AT_CALL-th live model call."""
# ruff: noqa: T201

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import desk_tools
from crewai import Agent, Crew, Process, Task
from crewai.events import crewai_event_bus
from crewai.flow.flow import Flow, listen, router, start
from crewai.flow.persistence import persist
from crewai.state.checkpoint_config import CheckpointConfig
from looker import Looker
from pydantic import BaseModel
from scripted import Scripted, call

HERE = Path(os.environ["MARKS"]).parent


def live() -> None:
    """Counts the live calls of all models in a file; the process may be killed at one."""
    with (HERE / "model-calls").open("a") as file:
        file.write("1")
    calls = len((HERE / "model-calls").read_text())
    if calls == int(os.environ.get("DIE_AT_CALL", "0")) and not (HERE / "died").exists():
        (HERE / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)


class CutLooker(Looker):
    """The same, for a checkpoint to hold."""

    def call(self, *args, **kwargs):
        live()
        return super().call(*args, **kwargs)


class Cut(Scripted):
    """Replies by what it is shown alone."""

    def call(self, messages, tools=None, *args, **kwargs):
        live()
        return self.choose(messages, kwargs.get("response_model"))

    def choose(self, messages, _model):
        done = sum(message["role"] == "assistant" for message in messages)
        return self.replies[min(done, len(self.replies) - 1)]


def agent(*replies, role="Clerk", tools=(desk_tools.refund, desk_tools.lookup), kind=Cut, **more):
    model = kind(list(replies), native=True)
    return Agent(role=role, goal="g", backstory="b", tools=list(tools), llm=model, max_iter=12, **more)


def pays(order, *, role="Clerk"):
    """An agent that pays one order and says so."""
    return agent([call("refund", id=f"pay-{order}", order=order, amount=5)], f"paid {order}", role=role)


def task(worker, text="work", **more):
    return Task(description=text, expected_output="done", agent=worker, **more)


def tell(*answers) -> None:
    print("ANSWER", json.dumps([getattr(answer, "raw", answer) for answer in answers]), flush=True)


@persist()
class Desk(Flow):
    """A crew, a router that goes by its answer, and a tool that a method calls by itself."""

    @start()
    def intake(self):
        self.state["intake"] = Crew(agents=[worker := pays("1")], tasks=[task(worker)]).kickoff().raw

    @router(intake)
    def sort(self):
        return "good" if self.state["intake"] == "paid 1" else "bad"

    @listen("good")
    def close(self):
        self.state["looked"] = desk_tools.lookup.run(order="2")
        return pays("3", role="Closer").kickoff("close it").raw + " after " + self.state["intake"]

    @listen("bad")
    def complain(self):
        return "bad"


def flow() -> None:
    tell(Desk().kickoff())


def agent_kickoff() -> None:
    tell(pays("1").kickoff("pay it"))


def akickoff() -> None:
    tell(asyncio.run(Crew(agents=[worker := pays("1")], tasks=[task(worker)]).akickoff()))


def async_tasks() -> None:
    """Two at a time, then one that waits for both."""
    workers = [pays("1", role="A"), pays("2", role="B"), agent("both paid", role="C", tools=())]
    tasks = [task(worker, worker.role, async_execution=worker.role != "C") for worker in workers]
    tasks[2].context = tasks[:2]
    tell(Crew(agents=workers, tasks=tasks).kickoff())


def for_each() -> None:
    """The same crew for each of two inputs, and for one of them twice."""
    crew = Crew(agents=[worker := pays("1")], tasks=[task(worker, "work on {order}")])
    tell(*crew.kickoff_for_each([{"order": "x"}, {"order": "y"}, {"order": "x"}]))


def hierarchical() -> None:
    """A manager that hands the work to its coworker."""
    job = {"task": "pay order 1", "context": "now", "coworker": "Clerk"}
    manager = Cut([[call("delegate_work_to_coworker", id="d", **job)], "the clerk has paid"], native=True)
    worker = pays("1")
    made = Task(description="see to it", expected_output="done")
    tell(Crew(agents=[worker], tasks=[made], process=Process.hierarchical, manager_llm=manager).kickoff())


class Report(BaseModel):
    """What a task must give."""

    paid: int


def pydantic_task() -> None:
    pay = [call("refund", id="a", order="1", amount=5)]
    result = Crew(
        agents=[worker := agent(pay, '{"paid": 1}')], tasks=[task(worker, output_pydantic=Report)]
    ).kickoff()
    tell(result.pydantic.paid, type(result.pydantic).__name__)


class Told(Cut):
    """Says it nicer once the guardrail has spoken."""

    def choose(self, messages, model):
        nicer = "nicer" in json.dumps(messages)
        reply = super().choose(messages, model)
        return "nicely paid" if nicer and reply == "rude" else reply


def guardrail() -> None:
    """A guardrail that goes by the text alone: the work is done again, by the same crew."""
    worker = agent([call("lookup", id="a", order="1")], "rude", kind=Told)
    check = lambda output: (output.raw != "rude", output.raw if output.raw != "rude" else "say it nicer")  # noqa: E731
    tell(Crew(agents=[worker], tasks=[task(worker, guardrail=check)]).kickoff())


def checkpoints() -> None:
    """CrewAI's own checkpoints, after each task: tools and models of classes, or it would write none."""
    workers = [
        Agent(
            role=role, goal="g", backstory="b", tools=[desk_tools.lookup], llm=CutLooker(model=f"looker-{n}")
        )
        for n, role in enumerate("AB", 1)
    ]
    where = CheckpointConfig(location=str(HERE / "checkpoints"), on_events=["task_completed"])
    crew = Crew(agents=workers, tasks=[task(worker, worker.role) for worker in workers], checkpoint=where)
    tell(crew.kickoff())
    crewai_event_bus.flush()
    for path in (HERE / "checkpoints").rglob("*.json"):
        restored = Crew.from_checkpoint(CheckpointConfig(restore_from=str(path)))
        done = [one.output.raw if one.output else None for one in restored.tasks]
        tools = [type(tool).__name__ for worker in restored.agents for tool in worker.tools]
        print("RESTORED", json.dumps([path.name, done, tools]), flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
