"""An agent that is an app of its own is not executed here: its task becomes a call, as a tool's does.

The seam is `Agent.execute_task` and `aexecute_task`: a crew's tasks, a manager's work and CrewAI's own
delegation tools all pass there.
"""

import asyncio
import functools
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import carrying, colleagues, delegated_forms, expectations, held_tools, own_tools, personas, progress
from .channel import Channel, end_process
from .framing import Message
from .scopes import current, delegation_step

NAMES = ("execute_task", "aexecute_task")
ALONE = ("kickoff", "kickoff_async", "akickoff")  # without a task
MAX_ARGUMENTS_BYTES = 262_144  # the gateway's own bound


class DelegationDenied(Exception):
    """Policy, or the gateway's own rules, do not let this agent be asked."""

    __module__ = "meshgate"


class DelegationFailed(Exception):
    """The other agent's run has failed, or what it gave cannot be used."""

    __module__ = "meshgate"


class DelegationRefused(Exception):
    """Nothing was asked: this task cannot be carried over to the agent's own process."""

    __module__ = "meshgate"


@dataclass(frozen=True)
class Asked:
    """A delegation that is ready to be sent, made where the program made it.

    Attributes:
        of_crew: the task is one of its crew's, not one that was made on the way.
    """

    agent: Any
    task: Any
    to: colleagues.Colleague
    request: Message
    of_crew: bool

    @property
    def who(self) -> str:
        """For a person or a model."""
        return f"agent {str(self.agent.role)!r} (app {self.to.app!r})"


def intercept(agent_class: type, channel: Channel) -> None:
    """Puts ours around the methods by which an agent is given a task.

    Raises:
        RuntimeError: Agent is not what we know, so nothing may run.
    """
    missing = [name for name in (*NAMES, *ALONE) if not callable(agent_class.__dict__.get(name))]
    if missing:
        raise RuntimeError(f"this CrewAI is not supported: Agent lacks {missing}")
    for name in NAMES:
        setattr(agent_class, name, _replacement(agent_class.__dict__[name], channel))
    for name in ALONE:
        setattr(agent_class, name, _kept_here(agent_class.__dict__[name]))


def _kept_here(original: Callable[..., Any]) -> Callable[..., Any]:
    """An agent that is an app has no work without a task of its crew."""

    def check(agent: Any) -> None:
        to = _elsewhere(agent)
        if to is not None:
            raise DelegationRefused(
                f"agent {str(agent.role)!r} works in app {to.app!r}, and {original.__name__} would have it "
                "work in this one; give it a task of its crew, or make an agent of another role"
            )

    @functools.wraps(original)
    def sync(agent: Any, /, *args: Any, **kwargs: Any) -> Any:
        check(agent)
        return original(agent, *args, **kwargs)

    @functools.wraps(original)
    async def awaited(agent: Any, /, *args: Any, **kwargs: Any) -> Any:
        check(agent)
        return await original(agent, *args, **kwargs)

    return awaited if asyncio.iscoroutinefunction(original) else sync


def _replacement(original: Callable[..., Any], channel: Channel) -> Callable[..., Any]:
    signature = inspect.signature(original)

    def prepared(agent: Any, args: "tuple[Any, ...]", kwargs: "dict[str, Any]") -> "Asked | None":
        given = signature.bind(agent, *args, **kwargs).arguments
        return prepare(agent, given["task"], given.get("context"), given.get("tools") or ())

    @functools.wraps(original)
    def sync(agent: Any, /, *args: Any, **kwargs: Any) -> Any:
        asked = prepared(agent, args, kwargs)
        if asked is None:
            return original(agent, *args, **kwargs)
        _tell_started(asked)
        return _finished(asked, channel.ask(asked.request))

    @functools.wraps(original)
    async def awaited(agent: Any, /, *args: Any, **kwargs: Any) -> Any:
        asked = prepared(agent, args, kwargs)
        if asked is None:
            return await original(agent, *args, **kwargs)
        _tell_started(asked)
        return _finished(asked, await own_tools.aside(channel.ask, asked.request))

    return awaited if asyncio.iscoroutinefunction(original) else sync


def prepare(agent: Any, task: Any, context: "str | None", tools: "Sequence[Any]" = ()) -> "Asked | None":
    """The request for an agent that works elsewhere; None for one that works here.

    Args:
        agent: who is to do it.
        task: what.
        context: what came before.
        tools: handed along with the task.

    Raises:
        DelegationRefused: it cannot be carried over.
    """
    to = _elsewhere(agent)
    if to is None:
        return None
    index = carrying.index_of(agent, task)
    hindrance = carrying.hindrance(agent, task, index=index, to=to, tools=tools)
    if hindrance:
        raise DelegationRefused(f"agent {str(agent.role)!r} works in app {to.app!r}: {hindrance}")
    arguments = _arguments(agent, task, context, to=to, index=index)
    text = json.dumps(arguments, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > MAX_ARGUMENTS_BYTES:
        raise DelegationRefused(
            f"agent {str(agent.role)!r} works in app {to.app!r}: task, context and personas have "
            f"{len(data)} bytes, {MAX_ARGUMENTS_BYTES} at most can be carried over; hand over less context"
        )
    request = {
        "op": "delegate",
        "app": to.app,
        "arguments": text,
        "step": delegation_step(app=to.app, arguments=data),
        "untrusted": {"role": current().role},
    }
    return Asked(agent, task, to, request, index is not None)


def _elsewhere(agent: Any) -> "colleagues.Colleague | None":
    try:
        return colleagues.elsewhere(agent)
    except colleagues.Ambiguous as error:
        raise DelegationRefused(str(error)) from error


def _arguments(
    agent: Any, task: Any, context: "str | None", *, to: colleagues.Colleague, index: "int | None"
) -> Message:
    """All that travels. A task with no index is a coworker's, to which CrewAI gives nobody to ask in turn."""
    told = {} if index is None else personas.told(agent, task, to)
    expected = expectations.of(agent)
    held = held_tools.told(held_tools.of(agent, task, index=index))
    return {
        "crew": to.crew,
        "agent": to.agent,
        "persona": personas.of(agent),
        "task": {
            "index": index,
            "name": str(task.name or ""),
            "description": carrying.description(agent, task),
            "expected_output": str(task.expected_output),
        },
        "context": None if context is None else str(context),
        **({"colleagues": told} if told else {}),
        **({"expects": expected} if expected else {}),
        **({"tools": held} if held else {}),
    }


def _finished(asked: Asked, answer: Message) -> Any:
    """The agent's output, as its `execute_task` gives it; what Task reads of the agent afterwards is set."""
    asked.agent._last_messages = []  # noqa: SLF001 - what it was told stays in its own process
    try:
        output = _output(asked, answer)
    except (DelegationDenied, DelegationFailed, DelegationRefused) as error:
        _tell_error(asked, str(error))
        raise
    _tell_completed(asked, output)
    return output


def _output(asked: Asked, answer: Message) -> Any:
    state = answer.get("state")
    progress.step(kind="delegate", what=asked.to.app, replayed=bool(answer.get("replayed")))
    if state == "denied":
        raise DelegationDenied(f"{asked.who}: {answer['text']}")
    if state == "failed":
        raise DelegationFailed(f"{asked.who} failed: {answer.get('said') or answer['text']}")
    if state == "refused":
        raise DelegationRefused(f"{asked.who}: {answer['text']}")
    if state != "done":
        end_process(f"the launcher gave an unknown answer: {state!r}")
    try:
        given = json.loads(answer["result"])
        output = delegated_forms.rebuild(given["output"], asked.task, of_crew=asked.of_crew)
    except (ValueError, KeyError, TypeError, RecursionError, delegated_forms.NoForm) as error:
        raise DelegationFailed(f"{asked.who} gave no usable result: {error}") from error
    delegated_forms.account(asked.agent, given.get("usage"))
    return output


def _tell_started(asked: Asked) -> None:
    from crewai.events.event_bus import crewai_event_bus
    from crewai.events.types.agent_events import AgentExecutionStartedEvent

    agent, task = asked.agent, asked.task
    prompt = task.prompt()
    event = AgentExecutionStartedEvent(agent=agent, tools=agent.tools, task_prompt=prompt, task=task)
    crewai_event_bus.emit(agent, event=event)


def _tell_completed(asked: Asked, output: Any) -> None:
    from crewai.events.event_bus import crewai_event_bus
    from crewai.events.types.agent_events import AgentExecutionCompletedEvent

    event = AgentExecutionCompletedEvent(agent=asked.agent, task=asked.task, output=str(output))
    crewai_event_bus.emit(asked.agent, event=event)


def _tell_error(asked: Asked, error: str) -> None:
    from crewai.events.event_bus import crewai_event_bus
    from crewai.events.types.agent_events import AgentExecutionErrorEvent

    crewai_event_bus.emit(
        asked.agent, event=AgentExecutionErrorEvent(agent=asked.agent, task=asked.task, error=error)
    )
