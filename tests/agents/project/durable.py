"""Runs one shape of program that may be cut and run again; prints what came of it."""
# ruff: noqa: B008, T201

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import desk_tools
from crewai import Agent, Crew, Task
from crewai.events import crewai_event_bus
from crewai.events.types.llm_events import LLMCallCompletedEvent, LLMCallStartedEvent
from pydantic import BaseModel
from scripted import Scripted, call, final, react

HERE = Path(os.environ["MARKS"]).parent
seen: list[str] = []


@crewai_event_bus.on(LLMCallStartedEvent)
def _started(_source, _event) -> None:
    seen.append("started")


@crewai_event_bus.on(LLMCallCompletedEvent)
def _completed(_source, event) -> None:
    seen.append(f"completed {event.usage} {event.finish_reason}")


class Counted(Scripted):
    """Counts its live calls in a file, accounts for tokens, and tells the bus."""

    def call(self, messages, tools=None, *args, **kwargs):
        with (HERE / "model-calls").open("a") as file:
            file.write("1")
        reply = self.choose(messages)
        self._track_token_usage_internal({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15})
        from crewai.events.types.llm_events import LLMCallType
        from crewai.llms.base_llm import llm_call_context

        with llm_call_context():
            self._emit_call_started_event(messages=messages)
            self._emit_call_completed_event(
                reply,
                LLMCallType.LLM_CALL,
                messages=messages,
                usage={"total_tokens": 15},
                finish_reason="stop",
            )
        return reply

    def choose(self, messages):
        """By how many replies the messages hold already, so that no state of the process matters."""
        done = sum(message["role"] == "assistant" for message in messages)
        if os.environ.get("DIE_AT_REPLY") == str(done) and not (HERE / "died").exists():
            (HERE / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.replies[min(done, len(self.replies) - 1)]


def agent(replies, *, native=True, tools=(desk_tools.refund, desk_tools.LookupTool())):
    return Agent(
        role="Clerk", goal="g", backstory="b", tools=list(tools), llm=Counted(replies, native), max_iter=12
    )


def crew(worker, **task):
    made = Task(description="work", expected_output="done", agent=worker, **task)
    return Crew(agents=[worker], tasks=[made])


def tell(answer) -> None:
    text = getattr(answer, "raw", str(answer))
    usage = getattr(answer, "token_usage", None)
    asyncio.run(asyncio.sleep(0))
    crewai_event_bus.flush()
    print("ANSWER", json.dumps([text, usage.total_tokens if usage else None, sorted(seen)]))


def native() -> None:
    """Two tool calls in turn, then twins of one reply, then the end."""
    replies = [
        [call("refund", id="a", order="1", amount=5)],
        [call("lookup", id="b", order="2")],
        [call("refund", id="c", order="3", amount=5), call("refund", id="d", order="3", amount=5)],
        final("all paid"),
    ]
    tell(crew(agent(replies)).kickoff())


def textual() -> None:
    """The same by text."""
    replies = [react("refund", order="1", amount=5), react("lookup", order="2"), final("all paid")]
    tell(crew(agent(replies, native=False)).kickoff())


class Report(BaseModel):
    """What a task must give."""

    paid: int


def structured() -> None:
    """A reply that is a pydantic object."""

    class Structured(Counted):
        def choose(self, messages):
            return Report(paid=3) if self.wants else super().choose(messages)

        def call(self, messages, tools=None, *args, **kwargs):
            self.wants = kwargs.get("response_model") is Report
            return super().call(messages, tools, *args, **kwargs)

    model = Structured([final("unused")], True)
    reply = model.call([{"role": "user", "content": "how many?"}], response_model=Report)
    print("TYPE", type(reply).__name__, reply.paid, flush=True)
    desk_tools.refund.run(order="9")
    _die_once()
    print("AGAIN", type(model.call([{"role": "user", "content": "more?"}], response_model=Report)).__name__)


def changing() -> None:
    """A program that does not repeat itself: its prompt holds the number of the process."""
    replies = [
        [call("refund", id="a", order="1", amount=5)],
        [call("refund", id="b", order=str(os.getpid()))],
    ]
    worker = agent([*replies, final("end")])
    made = Task(description=f"process {os.getpid()}", expected_output="done", agent=worker)
    tell(Crew(agents=[worker], tasks=[made]).kickoff())


def clock() -> None:
    """Inputs that differ in each attempt: a kickoff of another scope. It dies before its second reply."""
    replies = [[call("refund", id="a", order="1", amount=5)], final("end")]
    tell(crew(agent(replies)).kickoff(inputs={"now": os.getpid()}))


def limited() -> None:
    """An agent that may ask once a minute; how often it would have waited is in a file."""
    from crewai.utilities.rpm_controller import RPMController

    def wait(_controller) -> None:
        with (HERE / "waits").open("a") as file:
            file.write("1")

    RPMController._wait_for_next_minute = wait
    replies = [[call("refund", id="a", order="1")], [call("refund", id="b", order="2")], final("all paid")]
    worker = agent(replies)
    task = Task(description="work", expected_output="done", agent=worker)
    made = Crew(agents=[worker], tasks=[task], max_rpm=1)
    tell(asyncio.run(_awaited(RPMController(max_rpm=1))) if os.environ["ASYNC"] else made.kickoff())


async def _awaited(limit) -> str:
    model = Counted(["", "", "all paid"], True)
    for done in range(3):
        limit.check_or_wait()
        reply = await model.acall([{"role": "assistant", "content": str(n)} for n in range(done)])
    return reply


def raising() -> None:
    """Fails with an exception after a step."""
    desk_tools.refund.run(order="1")
    raise ValueError("the secret is 42")


def failing_model() -> None:
    """A model that raises once and is asked again."""

    class Flaky(Counted):
        def choose(self, messages):
            if not (HERE / "raised").exists():
                (HERE / "raised").touch()
                raise ConnectionError("the model is away")
            return super().choose(messages)

    model = Flaky([final("well")], True)
    for _ in range(2):
        try:
            print("REPLY", model.call([{"role": "user", "content": "hello"}]), flush=True)
            break
        except ConnectionError:
            continue
    desk_tools.refund.run(order="1")
    _die_once()
    print("END")


def large() -> None:
    """A reply that is larger than a step may be."""
    print(len(Counted(["x" * 4_000_000], True).call([{"role": "user", "content": "hello"}])))


def odd() -> None:
    """A reply that no journal can hold."""

    class Odd:
        """Nothing that could be told apart from another one."""

    print(Counted([Odd()], True).call([{"role": "user", "content": "hello"}]))


def nothing() -> None:
    """Makes no step."""


def guarded() -> None:
    """A guardrail that rejects the first answer: CrewAI lets the agent do all of it again."""
    verdicts = [(False, "say it nicer"), (True, "all paid")]
    replies = [[call("refund", id="a", order="1", amount=5), call("refund", id="b", order="1", amount=5)]]
    again = [[call("refund", id="c", order="1", amount=5)]]

    class InOrder(Counted):
        def choose(self, messages):
            return self.replies.pop(0)

    model = InOrder([*replies, final("rude"), *again, final("nice")], True)
    worker = Agent(role="Clerk", goal="g", backstory="b", tools=[desk_tools.refund], llm=model)
    tell(crew(worker, guardrail=lambda _output: verdicts.pop(0)).kickoff())


def _die_once() -> None:
    if not (HERE / "died").exists():
        (HERE / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
