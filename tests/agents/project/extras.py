"""Crews with what CrewAI has beside agents, tasks and tools. `extras.py NAME HOW`, as `split.py`."""
# ruff: noqa: T201

import json
import os
import shutil
import sys
import threading

import desk_tools
import split
from crewai import Agent, Crew
from crewai.events import crewai_event_bus
from crewai.events.types.llm_events import LLMCallCompletedEvent
from crewai.events.types.tool_usage_events import ToolUsageFinishedEvent
from crewai.knowledge.source.string_knowledge_source import StringKnowledgeSource
from crewai.memory.unified_memory import Memory
from crewai.state.checkpoint_config import CheckpointConfig
from looker import Looker
from remembers import EMBEDDER, Letters, Minded
from scripted import call
from split import HERE, Told, agent, pays, task

FOLDER = HERE / "checkpoints"


class Remembering(Told):
    """Is the memory's model too."""

    def call(self, messages, tools=None, *args, **kwargs):
        reply = super().call(messages, tools, *args, **kwargs)
        model = kwargs.get("response_model")
        return Minded._memory(self, model) if model else reply


def remembers(role, *replies, tools=(), **more):
    model = Remembering(list(replies), native=True)
    return Agent(role=role, goal="g", backstory="b", tools=list(tools), llm=model, **more)


def memory(**more) -> Crew:
    """Memory by one word: the second recalls what the first one saved, and looks for more."""
    pay = call("refund", id="pay", order="1", amount=5)
    first = remembers("Clerk", [pay], "paid 1", tools=[desk_tools.refund])
    search = call("search_memory", id="s", queries=["who was paid"])
    second = remembers("Writer", [search], "all written")
    given = {"memory": True, **more}
    return Crew(agents=[first, second], tasks=[task(first), task(second)], embedder=EMBEDDER, **given)


def elsewhere() -> Crew:
    """The same in a folder that the project names."""
    mind = Memory(llm=Remembering(["mind"], native=True), embedder=Letters(), storage=str(HERE / "mind"))
    return memory(memory=mind)


def withheld() -> Crew:
    """An agent's process cannot write there."""
    crew = elsewhere()
    if os.environ["MESHGATE_APP"] != "desk":
        shutil.rmtree(HERE / "mind")
    return crew


def knowledge() -> Crew:
    """What one agent knows, and what all of the crew know."""
    facts = [StringKnowledgeSource(content="the refund desk pays within a week")]
    clerk = agent("Clerk", "refund desk week", knowledge_sources=facts)
    writer = agent("Writer", "crew rule")
    rules = [StringKnowledgeSource(content="a crew rule: refund no cruise")]
    tasks = [task(clerk, "when are refunds paid"), task(writer, "which rule is there")]
    return Crew(agents=[clerk, writer], tasks=tasks, knowledge_sources=rules, embedder=EMBEDDER)


class Seen(Looker):
    """Remembers what it was shown; a checkpoint can hold it."""

    def call(self, messages, tools=None, *args, **kwargs):
        with (HERE / "prompts").open("a") as file:
            shown = [os.environ["MESHGATE_APP"], self.model, messages]
            file.write(json.dumps(shown, default=str) + "\n")
        return super().call(messages, tools, *args, **kwargs)


def checkpoints(*at: str) -> Crew:
    """CrewAI's own, after each task."""
    where = CheckpointConfig(location=str(FOLDER), on_events=list(at or ("task_completed",)))
    workers = [
        Agent(role=role, goal="g", backstory="b", tools=[desk_tools.lookup], llm=Seen(model=f"looker-{n}"))
        for n, role in enumerate(("Clerk", "Writer"), 1)
    ]
    return Crew(agents=workers, tasks=[task(worker) for worker in workers], checkpoint=where)


def within() -> Crew:
    """At what happens in an agent's process."""
    return checkpoints("task_completed", "llm_call_completed")


def everywhere() -> Crew:
    return checkpoints("*")


def in_time() -> Crew:
    """Less than it may take."""
    clerk = pays("Clerk", max_execution_time=60)
    return Crew(agents=[clerk], tasks=[task(clerk)])


class Slow(Told):
    """Takes longer than its agent may."""

    def call(self, *args, **kwargs):
        threading.Event().wait(1.5)
        return super().call(*args, **kwargs)


def too_long() -> Crew:
    clerk = agent("Clerk", "late", max_execution_time=1, max_retry_limit=0)
    clerk.llm = Slow(["late"], native=True)
    return Crew(agents=[clerk], tasks=[task(clerk)])


def _wait(_controller) -> None:
    split._note("waits")


def paced(**more) -> Crew:
    """An agent that may ask once a minute."""
    from crewai.utilities.rpm_controller import RPMController

    RPMController._wait_for_next_minute = _wait
    clerk = pays("Clerk", **({} if more else {"max_rpm": 1}))
    return Crew(agents=[clerk], tasks=[task(clerk)], **more)


def crew_paced() -> Crew:
    return paced(max_rpm=1)


def listened() -> Crew:
    """Somebody listens to what happens in the agent's process, wherever the crew is built."""
    crewai_event_bus.on(ToolUsageFinishedEvent)(_finished)
    clerk = pays("Clerk")
    return Crew(agents=[clerk], tasks=[task(clerk)])


def _finished(_source, event) -> None:
    split._note(f"used {event.tool_name}")


def _replied(_source, _event) -> None:
    split._note("replied")


def files() -> Crew:
    clerk = agent("Clerk", "seen")
    made = task(clerk)
    made.__dict__["input_files"] = {"scan": "scan.png"}  # as crewai[file-processing] leaves it
    return Crew(agents=[clerk], tasks=[made])


def plain() -> Crew:
    clerk = pays("Clerk")
    return Crew(agents=[clerk], tasks=[task(clerk)])


def main(name: str, how: str) -> None:
    """Some crews are changed by the script, after they are built."""
    if how == "restored":
        first = min(FOLDER.rglob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        crew = Crew.from_checkpoint(CheckpointConfig(restore_from=str(first)))
        for worker, made in zip(crew.agents, globals()[name]().agents, strict=True):
            worker.llm = made.llm  # CrewAI restores only models of its own
        split.tell(crew.kickoff())
        return
    crew = globals()[name]()
    if how == "alone":
        print("ANSWER", json.dumps(crew.agents[0].kickoff("pay").raw))
        return
    if how == "called":
        crew.step_callback = split._note
    if how == "heard":
        crewai_event_bus.on(LLMCallCompletedEvent)(_replied)
    split.main(crew, how)


if __name__ == "__main__":
    main(*[*sys.argv[1:], "once"][:2])
