"""The arguments of a tool call in one form, whatever route the call came by."""

import inspect
import json
from collections.abc import Callable
from typing import Any


class BadArguments(Exception):
    """The arguments do not fit the tool; the text is for the model."""


def canonical(*, tool: Any, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Binds, validates and writes down the arguments of one call.

    ReAct fills in defaults, native calling does not, and code may pass positions: all of them give
    the same bytes here.

    Args:
        tool: the tool object; its `args_schema` validates.
        body: the function that CrewAI would have run, for the names of positional arguments.
        args: positional arguments, without the tool itself.
        kwargs: keyword arguments.

    Returns:
        One JSON object, keys sorted, UTF-8.

    Raises:
        BadArguments: they do not bind, do not validate, or are no JSON.
    """
    named = _named(tool, body, args, kwargs)
    schema = getattr(tool, "args_schema", None)
    fields = getattr(schema, "model_fields", None)
    if schema is not None and fields:
        named = _validated(schema, named)
    else:
        named.pop("security_context", None)  # CrewAI adds it to ReAct calls; it is no argument
    try:
        text = json.dumps(named, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
        return text.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise BadArguments(f"the arguments are no JSON: {error}") from error


def _named(
    tool: Any, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    if not args:
        return dict(kwargs)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [
        p.name for p in inspect.signature(body).parameters.values() if p.kind in kinds and p.name != "self"
    ]
    if len(names) < len(args):
        names = list(getattr(getattr(tool, "args_schema", None), "model_fields", {}))
    if len(names) < len(args):
        raise BadArguments(f"{len(args)} positional arguments are too many")
    named = dict(zip(names, args, strict=False))
    twice = sorted(set(named) & set(kwargs))
    if twice:
        raise BadArguments(f"given twice: {', '.join(twice)}")
    return {**named, **kwargs}


def _validated(schema: Any, named: dict[str, Any]) -> dict[str, Any]:
    from pydantic import ValidationError
    from pydantic_core import PydanticSerializationError

    try:
        dumped = schema.model_validate(named).model_dump(mode="json")
    except (ValidationError, PydanticSerializationError) as error:
        raise BadArguments(f"arguments validation failed: {error}") from error
    return dict(dumped)
