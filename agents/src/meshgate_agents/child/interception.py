"""Every CrewAI tool's body is replaced by a question to the broker. Class level, fail closed.

Only what runs in this process is changed, and that is not the security boundary: the boundary is
that this process holds no credential and no route to what a tool acts on.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from typing import Any

from . import channel, step_keys, tool_identity

METHODS = ("run", "_run", "arun", "_arun")
MARK = "__meshgate_brokered__"
# CrewAI's own tools that act inside this process. What a coworker does inside a delegation is
# brokered call by call; the delegation itself becomes a brokered call when agents are split.
INTERNAL = ("crewai.tools.agent_tools.", "crewai.tools.memory_tools")

_keys = step_keys.StepKeys()


def install(base_tool: Any) -> None:
    """Wraps every subclass of `BaseTool`, those that exist and those to come."""
    root = base_tool.BaseTool
    original = root.__init_subclass__.__func__

    def init_subclass(cls: type, **kwargs: Any) -> None:
        original(cls, **kwargs)
        wrap(cls)

    root.__init_subclass__ = classmethod(init_subclass)  # type: ignore[arg-type]
    pending = list(root.__subclasses__())
    while pending:
        cls = pending.pop()
        pending.extend(cls.__subclasses__())
        wrap(cls)
    channel.ask({"op": "report", "python": sys.version.split()[0], "crewai": _crewai_version()})


def wrap(cls: type) -> None:
    """Replaces the bodies that this class itself defines."""
    for name in METHODS:
        body = cls.__dict__.get(name)
        if body is not None and callable(body) and not hasattr(body, MARK):
            setattr(cls, name, _brokered(cls, name, body))


def is_internal(tool: Any) -> bool:
    """Whether the tool is CrewAI's own and runs here as it is."""
    return type(tool).__module__.startswith(INTERNAL)


def _brokered(cls: type, name: str, body: Any) -> Any:
    """The replacement of one method; the original runs for internal tools only."""

    def replaces(tool: Any) -> bool:
        first = next(c for c in type(tool).__mro__ if name in c.__dict__)
        # A super() call from a subclass that was brokered cannot happen: its body never runs.
        return first is cls and not is_internal(tool)

    wrapper: Any
    if inspect.iscoroutinefunction(body):

        @functools.wraps(body)
        async def run_async(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not replaces(self):
                return await body(self, *args, **kwargs)
            import asyncio

            return await asyncio.to_thread(call, self, body, args, kwargs)

        wrapper = run_async
    else:

        @functools.wraps(body)
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not replaces(self):
                return body(self, *args, **kwargs)
            return call(self, body, args, kwargs)

        wrapper = run
    setattr(wrapper, MARK, True)
    return wrapper


def call(tool: Any, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One brokered call: what the gateway answers, or a ToolFailure; never the tool's body."""
    identity = tool_identity.describe(tool)
    try:
        arguments = bind(tool, body, args, kwargs)
    except (TypeError, ValueError) as error:
        return _failure(f"the arguments do not fit the tool: {error}", "arguments_invalid")
    answer = channel.ask(
        {
            "op": "call",
            "identity": identity,
            "arguments": arguments,
            "step_key": _keys.next("tool", identity["qualname"] + identity["fields_sha256"], arguments),
            "untrusted": _untrusted(),
        }
    )
    if answer["state"] == "done":
        return answer["text"] if answer["kind"] == "text" else json.loads(str(answer["text"]))
    return _failure(str(answer["message"]), str(answer.get("code") or answer["state"]))


def bind(tool: Any, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments by name, as JSON, whatever the route gave: positions, defaults, models."""
    function = getattr(tool, "func", None)
    target = function if callable(function) else functools.partial(body, tool)
    if args:
        bound = inspect.signature(target).bind_partial(*args, **kwargs)
        kwargs = dict(bound.arguments)
        for parameter in inspect.signature(target).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                kwargs.update(kwargs.pop(parameter.name, {}))
    schema = getattr(tool, "args_schema", None)
    if schema is None:
        return json.loads(json.dumps(kwargs, allow_nan=False))
    known = {name: value for name, value in kwargs.items() if name in schema.model_fields}
    if len(known) != len(kwargs) and not _passes_context(kwargs, known):
        raise ValueError(f"unknown argument {sorted(set(kwargs) - set(known))[0]!r}")
    return schema.model_validate(known).model_dump(mode="json")


def _passes_context(kwargs: dict[str, Any], known: dict[str, Any]) -> bool:
    """CrewAI adds its own keyword to some calls; the model did not ask for it."""
    return set(kwargs) - set(known) <= {"security_context"}


def _failure(message: str, code: str) -> Any:
    from crewai.tools.tool_failure import ToolFailure

    del code  # the message names the reason already; CrewAI would print it a second time
    return ToolFailure(message=message, retryable=False)


def _untrusted() -> dict[str, Any]:
    """What CrewAI says of the moment; shown to people, never a ground for a decision."""
    try:
        from crewai.context import get_current_task_id

        return {"task": str(get_current_task_id() or "")}
    except ImportError:
        return {}


def _crewai_version() -> str:
    from importlib.metadata import version

    return version("crewai")


def install_hook(dispatch: Any) -> None:
    """The second net: a hook that stops any tool whose class was not wrapped."""
    aborted = dispatch.HookAborted

    def check(context: Any) -> None:
        try:
            structured = context.tool
            tool = getattr(structured, "_original_tool", None)
            body = getattr(type(tool), "_run", None) if tool is not None else None
            safe = tool is not None and (is_internal(tool) or hasattr(body, MARK))
        except Exception as error:
            raise aborted("meshgate could not check this tool") from error
        if not safe:
            raise aborted("this tool is not brokered by meshgate; do not retry")

    dispatch.on(dispatch.InterceptionPoint.PRE_TOOL_CALL)(check)
