"""Opens a scope around each kickoff, task and agent, and marks native tool calls with their id."""

import asyncio
import functools
import json
from collections.abc import Callable
from typing import Any

from .scopes import opened, tool_call
from .step_keys import digest

# Gives key, role, and what tells objects with equal keys apart in this process.
Opening = Callable[[Any, tuple[Any, ...], dict[str, Any]], tuple[str, str, str]]


def open_kickoffs(crew_class: type) -> None:
    """A crew's kickoff: its key and a digest of the inputs."""
    _open(crew_class, ("kickoff", "kickoff_async", "akickoff"), "kickoff", _kickoff)


def open_tasks(task_class: type) -> None:
    """A task's execution, counted where it is called, not in the thread that it starts."""
    _open(task_class, ("execute_sync", "execute_async", "aexecute_sync"), "task", _task)


def open_agents(agent_class: type) -> None:
    """An agent at work on a task, alone, or as a coworker."""
    names = ("execute_task", "aexecute_task", "kickoff", "kickoff_async", "akickoff")
    _open(agent_class, names, "agent", _agent)


def mark_native_calls(owner: Any, name: str, position: int) -> None:
    """Runs a native tool call with the model's id of it in the context.

    Args:
        owner: the class or module that holds the function.
        name: its name there.
        position: where among the positional arguments the tool call is.
    """
    original = getattr(owner, name)

    @functools.wraps(original)
    def marked(*args: Any, **kwargs: Any) -> Any:
        call = args[position] if len(args) > position else kwargs.get("tool_call")
        with tool_call(_id_of(call)):
            return original(*args, **kwargs)

    setattr(owner, name, marked)


def _id_of(call: Any) -> str:
    found = call.get("id") if isinstance(call, dict) else getattr(call, "id", None)
    return found if isinstance(found, str) else ""


def _open(owner: type, names: tuple[str, ...], kind: str, opening: Opening) -> None:
    for name in names:
        original = owner.__dict__.get(name)
        if original is not None:
            setattr(owner, name, _opening(original, kind, opening))


def _opening(original: Callable[..., Any], kind: str, opening: Opening) -> Callable[..., Any]:
    @functools.wraps(original)
    def sync(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        key, role, thing = opening(self, args, kwargs)
        with opened(kind=kind, key=key, role=role, thing=thing):
            return original(self, *args, **kwargs)

    @functools.wraps(original)
    async def awaited(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        key, role, thing = opening(self, args, kwargs)
        with opened(kind=kind, key=key, role=role, thing=thing):
            return await original(self, *args, **kwargs)

    return awaited if asyncio.iscoroutinefunction(original) else sync


def _kickoff(crew: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, str, str]:
    inputs = args[0] if args else kwargs.get("inputs")
    text = json.dumps(inputs, sort_keys=True, default=lambda value: type(value).__qualname__)
    return f"{crew.key} {digest([text.encode('utf-8', 'surrogatepass')])}", "", ""


def _task(task: Any, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> tuple[str, str, str]:
    return str(task.key), "", str(task.id)


def _agent(agent: Any, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> tuple[str, str, str]:
    return str(agent.key), str(agent.role), ""
