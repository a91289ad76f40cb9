"""Class-level wrap of CrewAI's model classes: journals and counts replies, refuses raw functions.

A model class may itself run functions it was given (`available_functions`). A bound method of a
tool ends at the broker; any other function of the program is refused, because its body would run
in this process unseen.
"""

import asyncio
import contextvars
import functools
import inspect
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import rates
from .interception import below, is_bound_to_tool, replace
from .model_journal import ModelCall, ModelJournal, live, milliseconds_since, watch
from .scopes import Scope, current

METHODS = ("call", "acall")
POSITION_OF_FUNCTIONS = 3  # call(messages, tools, callbacks, available_functions, …)

_ours: "weakref.WeakSet[Callable[..., Any]]" = weakref.WeakSet()
_inside: "contextvars.ContextVar[tuple[int, int] | None]" = contextvars.ContextVar(
    "meshgate_model", default=None
)


def intercept(base_llm: type, journal: ModelJournal) -> None:
    """Wraps `call` and `acall` of BaseLLM's subclasses, now and later.

    Raises:
        RuntimeError: BaseLLM is not what we know.
    """
    hook = base_llm.__dict__.get("__init_subclass__")
    if not isinstance(hook, classmethod):
        raise RuntimeError(  # noqa: TRY004 - CrewAI's make is wrong, not an argument
            "this CrewAI is not supported: BaseLLM has no __init_subclass__"
        )
    original_hook = hook.__func__

    def on_subclass(cls: Any, /, **kwargs: Any) -> None:
        original_hook(cls, **kwargs)
        _wrap_class(cls, journal)

    replace(base_llm, "__init_subclass__", classmethod(on_subclass))
    watch(base_llm)
    for subclass in below(base_llm):
        _wrap_class(subclass, journal)


def _wrap_class(model_class: type, journal: ModelJournal) -> None:
    for name in METHODS:
        method = model_class.__dict__.get(name)
        if inspect.isfunction(method) and method not in _ours:
            replace(model_class, name, _wrapped(method, journal))


def _wrapped(original: Callable[..., Any], journal: ModelJournal) -> Callable[..., Any]:
    @functools.wraps(original)
    def sync(model: Any, /, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = _brokered_functions(args, kwargs)
        with _counted(model) as scope:
            if scope is None:
                return original(model, *args, **kwargs)
            call, wait = ModelCall(model, scope, args, kwargs), rates.owed()
            recorded = journal.recorded(call)
            if recorded is not None:
                return recorded[0]
            with live(journal, call) as trace:
                wait()
                begun = time.monotonic()
                reply = original(model, *args, **kwargs)
            journal.record(call, reply, trace, milliseconds_since(begun))
            return reply

    @functools.wraps(original)
    async def awaited(model: Any, /, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = _brokered_functions(args, kwargs)
        with _counted(model) as scope:
            if scope is None:
                return await original(model, *args, **kwargs)
            call, wait = ModelCall(model, scope, args, kwargs), rates.owed()
            recorded = await asyncio.to_thread(journal.recorded, call)
            if recorded is not None:
                return recorded[0]
            with live(journal, call) as trace:
                await asyncio.to_thread(wait)
                begun = time.monotonic()
                reply = await original(model, *args, **kwargs)
            await asyncio.to_thread(journal.record, call, reply, trace, milliseconds_since(begun))
            return reply

    ours: Callable[..., Any] = awaited if asyncio.iscoroutinefunction(original) else sync
    _ours.add(ours)
    return ours


@contextmanager
def _counted(model: object) -> Iterator["Scope | None"]:
    """Counts one reply; LiteLLM's `call` calls itself again, which is the same reply: then None."""
    scope = current()
    mark = (id(model), id(scope))
    if _inside.get() == mark:
        yield None
        return
    token = _inside.set(mark)
    try:
        yield scope
    finally:
        _inside.reset(token)
    scope.replied()


def _brokered_functions(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if len(args) > POSITION_OF_FUNCTIONS:
        changed = list(args)
        changed[POSITION_OF_FUNCTIONS] = _guarded(args[POSITION_OF_FUNCTIONS])
        return tuple(changed), kwargs
    if kwargs.get("available_functions"):
        return args, {**kwargs, "available_functions": _guarded(kwargs["available_functions"])}
    return args, kwargs


def _guarded(functions: Any) -> Any:
    if not functions:
        return functions
    return {name: function if _allowed(function) else _refusal(name) for name, function in functions.items()}


def _allowed(function: Any) -> bool:
    """Tools end at the broker; CrewAI's own helpers (such as its planner's) are no tools."""
    return is_bound_to_tool(function) or (
        inspect.isfunction(function)
        and function.__module__.partition(".")[0] == "crewai"
        and function.__globals__.get("__name__") == function.__module__
    )


def _refusal(name: str) -> Callable[..., str]:
    def refused(**_arguments: Any) -> str:
        return f"refused: {name!r} is a plain function; pass the tool's own `run`, which meshgate can broker"

    return refused
