"""Runs the body of a tool that runs in the agent itself (`execute: agent`), once the launcher says so.

The body gets the arguments that were decided on, not those that the program passed. What it gives is told
to the launcher and comes back as the answer, so the program sees the same value live and replayed.
"""

import asyncio
import contextlib
import contextvars
import functools
import inspect
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import tool_results
from .framing import Message
from .scopes import Scope, current

Method = Callable[..., Any]
MAX_MESSAGE_CHARACTERS = 500  # one line for a model
INTERRUPTED: Message = {"state": "failed", "error_class": "interrupted", "data": "it was interrupted"}

_inside: "contextvars.ContextVar[tuple[Any, Scope] | None]" = contextvars.ContextVar(
    "meshgate_own_tool", default=None
)


class BodyRaised(Exception):
    """The body, or the check of its arguments, raised."""


def is_own_step_of(tool: Any) -> bool:
    """Whether a method of this tool is called by its own running body: that is no call of its own.

    An agent's loop inside the body has opened a scope, so its calls of the same tool are calls.
    """
    inside = _inside.get()
    return inside is not None and inside[0] is tool and inside[1] is current()


def is_within() -> bool:
    """Whether a body calls another tool, in no loop of its own: that call cannot wait for the body's end."""
    inside = _inside.get()
    return inside is not None and inside[1] is current()


def run(tool: Any, body: Method, permit: Message) -> Message:
    """Runs a body here and now; the outcome as the launcher is told."""
    try:
        return _told(_value(tool, body, permit), permit)
    except BodyRaised as error:
        return _failure("tool_raised", str(error))


async def arun(tool: Any, body: "Callable[..., Awaitable[Any]]", permit: Message) -> Message:
    """The same for a body that is awaited."""
    try:
        return _told(await _awaited(tool, body, permit), permit)
    except BodyRaised as error:
        return _failure("tool_raised", str(error))


async def aside(work: Method, *given: Any) -> Any:
    """Runs something on a thread of its own: asyncio's may all be waiting for what it does."""
    pool = ThreadPoolExecutor(max_workers=1)
    try:
        call = functools.partial(contextvars.copy_context().run, work, *given)
        return await asyncio.get_running_loop().run_in_executor(pool, call)
    finally:
        pool.shutdown(wait=False)


def has_async_body(tool: Any, body: Method, base: Method) -> bool:
    """Whether `_arun` is more than CrewAI's way of saying that there is none."""
    function = getattr(tool, "func", None)
    if callable(function) and type(tool).__module__.startswith("crewai.tools."):
        return asyncio.iscoroutinefunction(function)
    return body is not base


def _value(tool: Any, body: Method, permit: Message) -> Any:
    try:
        arguments = _arguments(tool, permit)
        with _running(tool):  # also while what the body gave is awaited
            return _finished(body(tool, **arguments))
    except BodyRaised:
        raise
    except Exception as error:
        raise BodyRaised(f"{type(error).__name__}: {error}") from error


async def _awaited(tool: Any, body: "Callable[..., Awaitable[Any]]", permit: Message) -> Any:
    try:
        arguments = _arguments(tool, permit)
        with _running(tool):
            return await body(tool, **arguments)
    except Exception as error:
        raise BodyRaised(f"{type(error).__name__}: {error}") from error


def _finished(value: Any) -> Any:
    """A coroutine is run to its end, as CrewAI does; on a thread of its own where a loop is running."""
    if not inspect.iscoroutine(value):
        return value
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _to_end(value)
    given: list[Any] = []
    raised: list[BodyRaised] = []

    def work() -> None:
        try:
            given.append(_to_end(value))
        except BodyRaised as error:
            raised.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return given[0]


def _to_end(coroutine: Any) -> Any:
    try:
        return asyncio.run(coroutine)
    except Exception as error:
        raise BodyRaised(f"{type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _running(tool: Any) -> Iterator[None]:
    token = _inside.set((tool, current()))
    try:
        yield
    finally:
        _inside.reset(token)


def _arguments(tool: Any, permit: Message) -> "dict[str, Any]":
    """The decided arguments as the tool's own schema types them."""
    given = json.loads(permit["arguments"])
    schema = getattr(tool, "args_schema", None)
    if schema is None or not getattr(schema, "model_fields", None):
        return dict(given)
    return dict(schema.model_validate(given).model_dump())


def _told(value: Any, permit: Message) -> Message:
    try:
        kind, data = tool_results.encode(value, limit_bytes=int(permit["max_result_bytes"]))
    except tool_results.NotJson as error:
        return _failure("result_not_json", str(error))
    except tool_results.TooLarge as error:
        return _failure("result_too_large", str(error))
    except tool_results.Reported as error:
        return _failure("tool_reported", str(error))
    return {"state": "done", "kind": kind, "data": data.decode()}


def _failure(error_class: str, text: str) -> Message:
    line = " ".join(text.encode(errors="replace").decode().split())
    if len(line) > MAX_MESSAGE_CHARACTERS:
        line = line[: MAX_MESSAGE_CHARACTERS - 1] + "…"
    return {"state": "failed", "error_class": error_class, "data": line}
