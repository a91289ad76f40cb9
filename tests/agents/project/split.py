"""Crews whose agents may be apps of their own. `split.py NAME` kicks one off and tells what came of it."""
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
from crewai.events.types.agent_events import AgentExecutionCompletedEvent, AgentExecutionStartedEvent
from crewai.tasks.conditional_task import ConditionalTask
from pydantic import BaseModel
from scripted import Scripted, call

HERE = Path(os.environ["MARKS"]).parent
seen: list[str] = []


@crewai_event_bus.on(AgentExecutionStartedEvent)
def _started(_source, event) -> None:
    seen.append(f"started {event.agent.role}")


@crewai_event_bus.on(AgentExecutionCompletedEvent)
def _completed(_source, event) -> None:
    seen.append(f"completed {event.agent.role}: {event.output}")


class Told(Scripted):
    """Replies by what it is shown alone; accounts for tokens; remembers the prompt of each live call."""

    def call(self, messages, tools=None, *args, **kwargs):
        functions = [tool["function"] for tool in tools or []]
        names = sorted([one["name"], one["description"]] for one in functions)
        with (HERE / "prompts").open("a") as file:
            file.write(
                json.dumps([os.environ["MESHGATE_APP"], self.replies[-1], names, messages], default=str)
                + "\n"
            )
        self._track_token_usage_internal({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15})
        done = sum(message["role"] == "assistant" for message in messages)
        reply = self.replies[min(done, len(self.replies) - 1)]
        die = os.environ.get("DIE_AT", "")
        if die and die in json.dumps(reply, default=str) and not (HERE / "died").exists():
            (HERE / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return reply


def agent(role, *replies, tools=(), **more):
    model = Told(list(replies), native=more.pop("native", True))
    return Agent(role=role, goal=f"goal of {role}", backstory="b", tools=list(tools), llm=model, **more)


def pays(role, order="1", **more):
    tools = (desk_tools.refund, desk_tools.lookup)
    return agent(
        role,
        [call("refund", id=f"pay-{order}", order=order, amount=5)],
        f"{role} paid {order}",
        tools=tools,
        **more,
    )


def task(worker, text="work", **more):
    return Task(description=text, expected_output="done", agent=worker, **more)


def sequential() -> Crew:
    """Two agents, the second with what the first gave, roles and tasks with placeholders."""
    clerk, writer = pays("Clerk for {shop}"), agent("Writer", "all written")
    return Crew(
        agents=[clerk, writer], tasks=[task(clerk, "pay for {shop}"), task(writer, "write on {shop}")]
    )


def textual() -> Crew:
    """The same without native tool calls."""
    act = 'Thought: go\nAction: refund\nAction Input: {"order": "1", "amount": 5}'
    end = "Thought: I now can give a great answer\nFinal Answer: paid by text"
    clerk = agent("Clerk", act, end, tools=[desk_tools.refund], native=False)
    return Crew(agents=[clerk], tasks=[task(clerk)])


def delegates() -> Crew:
    """A lead that hands work to a coworker by CrewAI's own tool, and asks another one."""
    job = {"task": "pay order 1", "context": "now", "coworker": "Clerk"}
    question = {"question": "how are you", "context": "none", "coworker": "Writer"}
    lead = agent(
        "Lead",
        [call("delegate_work_to_coworker", id="d", **job)],
        [call("ask_question_to_coworker", id="q", **question)],
        "all done",
        allow_delegation=True,
    )
    clerk, writer = pays("Clerk"), agent("Writer", "I am well")
    return Crew(agents=[lead, clerk, writer], tasks=[task(lead)])


def twins() -> Crew:
    """A lead that hands the very same work to a coworker twice in one reply."""
    job = {"task": "pay order 1", "context": "now", "coworker": "Clerk"}
    calls = [call("delegate_work_to_coworker", id=name, **job) for name in ("d1", "d2")]
    lead = agent("Lead", calls, "all done", allow_delegation=True)
    return Crew(agents=[lead, pays("Clerk")], tasks=[task(lead)])


def hierarchical() -> Crew:
    """A manager that CrewAI makes, with a worker."""
    job = {"task": "pay order 1", "context": "now", "coworker": "Clerk"}
    manager = Told([[call("delegate_work_to_coworker", id="d", **job)], "the clerk has paid"], native=True)
    made = Task(description="see to it", expected_output="done")
    return Crew(agents=[pays("Clerk")], tasks=[made], process=Process.hierarchical, manager_llm=manager)


def managed() -> Crew:
    """A manager that the crew names."""
    job = {"task": "pay order 1", "context": "now", "coworker": "Clerk"}
    manager = agent(
        "Manager",
        [call("delegate_work_to_coworker", id="d", **job)],
        "managed",
        allow_delegation=True,
    )
    made = Task(description="see to it", expected_output="done")
    return Crew(agents=[pays("Clerk")], tasks=[made], process=Process.hierarchical, manager_agent=manager)


def named() -> Crew:
    """Roles, goals and backstories with placeholders, of the one who hands work over and of its coworkers."""
    job = {"task": "pay order 1", "context": "now", "coworker": "Clerk for S"}
    question = {"question": "how are you", "context": "none", "coworker": "Writer"}
    lead = agent(
        "Lead of {shop}",
        [call("delegate_work_to_coworker", id="d", **job)],
        [call("ask_question_to_coworker", id="q", **question)],
        "all done",
        allow_delegation=True,
    )
    clerk, writer = pays("Clerk for {shop}"), agent("Writer", "I am well")
    writer.goal = "writes for {shop}"
    return Crew(agents=[lead, clerk, writer], tasks=[task(lead, "lead {shop}")])


def managed_named() -> Crew:
    """A manager over roles with placeholders; the second task is meant for one of them."""
    jobs = [
        {"task": f"pay {name}", "context": "now", "coworker": f"{name} for S"} for name in ("Clerk", "Aide")
    ]
    manager = agent(
        "Manager",
        [call("delegate_work_to_coworker", id="d", **jobs[0])],
        [call("delegate_work_to_coworker", id="e", **jobs[1])],
        "managed",
        allow_delegation=True,
    )
    clerk, aide = pays("Clerk for {shop}"), pays("Aide for {shop}", "2")
    made = Task(description="see to {shop}", expected_output="done")
    return Crew(
        agents=[clerk, aide],
        tasks=[made, task(clerk)],
        process=Process.hierarchical,
        manager_agent=manager,
    )


def async_tasks() -> Crew:
    """Two at a time, then one that waits for both."""
    workers = [pays("A", "1"), pays("B", "2"), agent("C", "both paid")]
    tasks = [task(worker, worker.role, async_execution=worker.role != "C") for worker in workers]
    tasks[2].context = tasks[:2]
    return Crew(agents=workers, tasks=tasks)


class Report(BaseModel):
    """What a task must give."""

    paid: int


def pydantic() -> Crew:
    """An object of a class that the task names, and task-level tools."""
    clerk = agent("Clerk", [call("refund", id="a", order="1", amount=5)], '{"paid": 1}')
    return Crew(agents=[clerk], tasks=[task(clerk, output_pydantic=Report, tools=[desk_tools.refund])])


def _nicer(output):
    return (True, output.raw) if "nicely" in output.raw else (False, "say it nicer")


class Nicer(Told):
    """Says it nicer once the guardrail has spoken."""

    def call(self, messages, *args, **kwargs):
        reply = super().call(messages, *args, **kwargs)
        return "nicely paid" if reply == "rude" and "nicer" in json.dumps(messages) else reply


def guarded() -> Crew:
    """A guardrail, which is the caller's; the work is asked for again."""
    clerk = agent("Clerk", "rude")
    clerk.llm = Nicer(["rude"], native=True)
    return Crew(agents=[clerk], tasks=[task(clerk, guardrail=_nicer)])


def callbacks() -> Crew:
    """A callback of the task, of the crew, and one of each step."""
    clerk, writer = agent("Clerk", "one"), agent("Writer", "two")
    tasks = [task(clerk, callback=lambda output: _note(f"task {output.raw}")), task(writer)]
    return Crew(
        agents=[clerk, writer],
        tasks=tasks,
        task_callback=lambda output: _note(f"crew {output.raw}"),
        step_callback=lambda step: _note(f"step {getattr(step, 'output', '?')}"),
    )


def _note(text: str) -> None:
    with (HERE / "notes").open("a") as file:
        file.write(text + "\n")


def human() -> Crew:
    """Asks a person."""
    clerk = agent("Clerk", "one")
    return Crew(agents=[clerk], tasks=[task(clerk, human_input=True)])


def large() -> Crew:
    """A context over the bound."""
    clerk, writer = agent("Clerk", "x" * 300_000), agent("Writer", "two")
    return Crew(agents=[clerk, writer], tasks=[task(clerk), task(writer)])


def huge() -> Crew:
    """A result over the bound."""
    clerk = agent("Clerk", "x" * 1_100_000)
    return Crew(agents=[clerk], tasks=[task(clerk)])


def jotted() -> Crew:
    """A task that wants JSON of a class."""
    clerk = agent("Clerk", '{"paid": 1}')
    return Crew(agents=[clerk], tasks=[task(clerk, output_json=Report)])


class Odd(Agent):
    """Gives what is no text, as a subclass of CrewAI's may."""

    def _finalize_task_execution(self, task, result):
        super()._finalize_task_execution(task, result)
        return {"paid": 1}


def odd() -> Crew:
    """A result that a task cannot use, in one process either."""
    clerk = Odd(role="Clerk", goal="g", backstory="b", llm=Told(["one"], native=True))
    return Crew(agents=[clerk], tasks=[task(clerk)])


def planned() -> Crew:
    """Plans first; then a task, one on a condition that holds, and one on a condition that does not."""
    plans = [{"task_number": place, "task": "t", "plan": f" by plan {place}"} for place in (1, 2)]
    planner = Told([json.dumps({"list_of_plans_per_task": plans})], native=True)
    clerk, writer = pays("Clerk"), agent("Writer", "two")
    when = {"holds": lambda output: "paid" in output.raw, "never": lambda _output: False}
    more = [
        ConditionalTask(condition=when[name], description=name, expected_output="done", agent=writer)
        for name in when
    ]
    return Crew(
        agents=[clerk, writer],
        tasks=[task(clerk), *more],
        planning=True,
        planning_llm=planner,
    )


def flow():
    """No crew."""
    from crewai.flow.flow import Flow, start

    class Nothing(Flow):
        @start()
        def begin(self) -> None:
            return None

    return Nothing()


def tell(*results) -> None:
    crewai_event_bus.flush()
    told = [
        {
            "raw": result.raw,
            "pydantic": repr(result.pydantic),
            "tasks": [
                [one.raw, one.agent, repr(one.pydantic), one.description] for one in result.tasks_output
            ],
            "usage": result.token_usage.model_dump(),
        }
        for result in results
    ]
    print("ANSWER", json.dumps(told))
    print("EVENTS", json.dumps(seen))


def main(crew, how: str) -> None:
    if how == "each":
        tell(*crew.kickoff_for_each([{"shop": "S"}, {"shop": "T"}, {"shop": "S"}]))
    elif how == "each_async":
        tell(*asyncio.run(crew.kickoff_for_each_async([{"shop": "S"}, {"shop": "T"}])))
    elif how == "async":
        tell(asyncio.run(crew.akickoff({"shop": "S"})))
    elif how == "stream":
        crew.stream = True
        streamed = crew.kickoff({"shop": "S"})
        for _ in streamed:
            pass
        tell(streamed.result)
    else:
        tell(crew.kickoff({"shop": "S"}))


if __name__ == "__main__":
    name, how = [*sys.argv[1:], "once"][:2]
    main(globals()[name](), how)
