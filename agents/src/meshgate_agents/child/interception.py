"""Class-level interception of CrewAI's tools: no body runs in this process unless the launcher says so.

The patch lies on classes, not on objects or lists of tools, so that every route ends here: crews,
agents and tasks alone, flows that call `tool.run()`, functions that the LLM layer runs. A brokered
tool's own method is called only under a Permit, for a tool that runs in the agent itself; what that body
calls of itself is part of it. A tool of CrewAI's own runs as it is (`internal_tools`).
"""

import asyncio
import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

from . import own_tools
from .brokering import Asked, Broker, Permit, Prepared, failure
from .internal_tools import reserved_id

METHODS = ("_run", "_arun", "run", "arun")
CLAIMING = ("run", "arun")  # these count against max_usage_count, as CrewAI's own do

_ours: "weakref.WeakKeyDictionary[Callable[..., Any], Callable[..., Any]]" = weakref.WeakKeyDictionary()


def is_ours(function: object) -> bool:
    """Whether a function is one of our replacements, by identity: attributes can be copied."""
    return callable(function) and getattr(function, "__hash__", None) is not None and function in _ours


def defined(tool_class: type, name: str) -> object:
    """What a class has under a name, first in its MRO, without binding; None when absent."""
    for owner in tool_class.__mro__:
        if name in owner.__dict__:
            return owner.__dict__[name]
    return None


def is_intercepted(tool: object) -> bool:
    """Whether every way into a tool object is ours."""
    own = getattr(tool, "__dict__", {})
    return all(name not in own and is_ours(defined(type(tool), name)) for name in METHODS)


def intercept(base_tool: type, broker: Broker) -> None:
    """Puts ours in the place of the methods of BaseTool and of all its subclasses, now and later.

    Raises:
        RuntimeError: BaseTool is not what we know, so nothing may run.
    """
    missing = [name for name in METHODS if not callable(base_tool.__dict__.get(name))]
    hook = base_tool.__dict__.get("__init_subclass__")
    if missing or not isinstance(hook, classmethod):
        raise RuntimeError(f"this CrewAI is not supported: BaseTool lacks {missing or '__init_subclass__'}")
    original_hook = hook.__func__

    def on_subclass(cls: Any, /, **kwargs: Any) -> None:
        original_hook(cls, **kwargs)
        intercept_class(cls, broker)

    replace(base_tool, "__init_subclass__", classmethod(on_subclass))
    for name in ("_arun", "run", "arun"):  # `_run` is abstract and stays so
        replace(base_tool, name, _replacement(base_tool.__dict__[name], name, broker))
    for subclass in below(base_tool):
        intercept_class(subclass, broker)


def intercept_structured(structured_tool: type) -> None:
    """Refuses a CrewStructuredTool around a plain function, which no class patch reaches."""
    for name in ("invoke", "ainvoke"):
        replace(structured_tool, name, _guarded(structured_tool.__dict__[name]))


def below(owner: type) -> list[type]:
    """All subclasses, however deep."""
    direct: list[type] = owner.__subclasses__()
    return [found for sub in direct for found in (sub, *below(sub))]


def replace(owner: Any, name: str, value: object) -> None:
    """Sets an attribute of a class or module that is not ours."""
    setattr(owner, name, value)


def intercept_class(tool_class: type, broker: Broker) -> None:
    """Puts ours in the place of one class's methods; doing it again changes nothing."""
    for name in METHODS:
        method = defined(tool_class, name)  # may come from a mixin that is no BaseTool
        if method is not None and not is_ours(method) and not _abstract(method):
            replace(tool_class, name, _replacement(method, name, broker))


def _abstract(method: object) -> bool:
    return bool(getattr(method, "__isabstractmethod__", False))


def _replacement(original: Any, name: str, broker: Broker) -> Callable[..., Any]:
    """Our function for one method; keeps signature, annotations and being async."""
    plain = inspect.isfunction(original)
    call_original = original if plain else (lambda tool, *a, **k: original.__get__(tool, type(tool))(*a, **k))
    claims = name in CLAIMING

    def sync(tool: Any, /, *args: Any, **kwargs: Any) -> Any:
        if reserved_id(type(tool)) or own_tools.is_own_step_of(tool):
            return call_original(tool, *args, **kwargs)
        prepared = _prepare(tool, broker, (args, kwargs), claims=claims)
        settled = broker.settle(prepared) if isinstance(prepared, Prepared) else prepared
        return _run_here(tool, broker, settled) if isinstance(settled, Permit) else settled

    async def awaited(tool: Any, /, *args: Any, **kwargs: Any) -> Any:
        if reserved_id(type(tool)) or own_tools.is_own_step_of(tool):
            return await call_original(tool, *args, **kwargs)
        prepared = _prepare(tool, broker, (args, kwargs), claims=claims)
        if not isinstance(prepared, Prepared):
            return prepared
        asked = Asked(broker, prepared)
        try:
            settled = await own_tools.aside(asked.settle)
        except asyncio.CancelledError:
            asked.leave()
            raise
        return await _await_here(tool, broker, settled) if isinstance(settled, Permit) else settled

    ours = awaited if asyncio.iscoroutinefunction(original) or name in ("_arun", "arun") else sync
    if plain:
        functools.update_wrapper(ours, original)
    _ours[ours] = call_original
    return ours


def _run_here(tool: Any, broker: Broker, permit: Permit) -> Any:
    """Runs a tool's own `_run`, whichever method was called; `run` adds only what was done already."""
    outcome = own_tools.INTERRUPTED
    try:
        outcome = own_tools.run(tool, _own_body(tool, "_run"), permit.terms)
    finally:  # also when it was interrupted: an equal call waits for this one's outcome
        answer = broker.ran(permit, outcome)
    return answer


async def _await_here(tool: Any, broker: Broker, permit: Permit) -> Any:
    body, none = _own_body(tool, "_arun"), _own_body(None, "_arun")
    if not own_tools.has_async_body(tool, body, none):
        return await own_tools.aside(_run_here, tool, broker, permit)
    try:
        outcome = await own_tools.arun(tool, body, permit.terms)
    except BaseException:
        broker.ran(permit, own_tools.INTERRUPTED)
        raise
    return await own_tools.aside(broker.ran, permit, outcome)


def _own_body(tool: Any, name: str) -> Callable[..., Any]:
    """The method as its class wrote it, below our replacement; of CrewAI's base class for no tool."""
    from crewai.tools.base_tool import BaseTool

    found = defined(BaseTool if tool is None else type(tool), name)
    return _ours[found]  # type: ignore[index]


def _prepare(
    tool: Any, broker: Broker, given: tuple[tuple[Any, ...], dict[str, Any]], *, claims: bool
) -> Any:
    args, kwargs = given
    prepared = broker.prepare(tool=tool, body=_body(tool), args=args, kwargs=kwargs)
    if claims and isinstance(prepared, Prepared):
        spent = tool._claim_usage()  # noqa: SLF001 - CrewAI's own count, as its `run` keeps it
        if spent is not None:
            return spent
    return prepared


def _body(tool: Any) -> Callable[..., Any]:
    """The function whose parameters name positional arguments."""
    function = getattr(tool, "func", None)
    if callable(function):
        body: Callable[..., Any] = function
        return body
    method: Callable[..., Any] = inspect.unwrap(type(tool)._run)  # noqa: SLF001 - CrewAI's name of it
    return method


def _guarded(original: Callable[..., Any]) -> Callable[..., Any]:
    def refused(tool: Any) -> Any:
        if is_bound_to_tool(tool.func):
            return None
        return failure(
            f"refused: {tool.name!r} wraps a plain function; make it a tool with crewai.tools.tool"
        )

    @functools.wraps(original)
    def sync(tool: Any, /, *args: Any, **kwargs: Any) -> Any:
        return refused(tool) or original(tool, *args, **kwargs)

    @functools.wraps(original)
    async def awaited(tool: Any, /, *args: Any, **kwargs: Any) -> Any:
        return refused(tool) or await original(tool, *args, **kwargs)

    return awaited if asyncio.iscoroutinefunction(original) else sync


def is_bound_to_tool(function: object) -> bool:
    """Whether a callable is a bound method of ours, so that calling it ends at the broker."""
    return is_ours(getattr(function, "__func__", None))
