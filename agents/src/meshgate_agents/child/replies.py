"""A model's reply in the form that the journal keeps, and back.

Nothing is imported by a name that comes from the journal: classes of tool calls come from a fixed
list, the user's own model class from the live call alone. Never pickle.
"""

import importlib
from typing import Any

# What model SDKs return for native tool calls: module and class.
TOOL_CALLS = (
    ("openai.types.chat.chat_completion_message_function_tool_call", "ChatCompletionMessageFunctionToolCall"),
    ("openai.types.chat.chat_completion_message_custom_tool_call", "ChatCompletionMessageCustomToolCall"),
    ("openai.types.responses.response_function_tool_call", "ResponseFunctionToolCall"),
    ("anthropic.types.tool_use_block", "ToolUseBlock"),
    ("anthropic.types.beta.beta_tool_use_block", "BetaToolUseBlock"),
    ("google.genai.types", "Part"),  # with its thought signature, which Gemini wants back
    ("litellm.types.utils", "ChatCompletionMessageToolCall"),
    ("litellm.types.utils", "ChatCompletionDeltaToolCall"),
)


# The one reply of CrewAI's own that is neither text nor a list: a dataclass of plain values.
RESPONSES = ("crewai.llms.providers.openai.completion", "ResponsesAPIResult")


class NoForm(Exception):
    """A reply, or a journal entry, of a kind that has no form here."""


def encode(reply: Any, *, expected: "type[Any] | None") -> dict[str, Any]:
    """The journal's form of a reply.

    Args:
        reply: what the model's `call` returned.
        expected: the pydantic class that the call asked for, if any.

    Raises:
        NoForm: a kind we cannot give back unchanged.
    """
    if isinstance(reply, str):
        return {"type": "text", "value": str(reply)}
    if expected is not None and type(reply) is expected:
        return {"type": "model", "value": reply.model_dump(mode="json")}
    for kind, fits, form in _LISTS if isinstance(reply, list) and reply else ():
        if all(fits(item) for item in reply):
            return {"type": kind, "items": [form(item) for item in reply]}
    if _plain(reply):
        return {"type": "json", "value": reply}
    if _class(reply) == RESPONSES and _plain(vars(reply)):
        return {"type": "responses", "value": dict(vars(reply))}
    raise NoForm(f"a model reply of type {type(reply).__module__}.{type(reply).__qualname__}")


def decode(form: Any, *, expected: "type[Any] | None") -> Any:
    """The reply again.

    Raises:
        NoForm: not what `encode` makes, or made for a class that this call does not ask for.
    """
    kind = form.get("type") if isinstance(form, dict) else None
    if kind in ("text", "json"):
        return form["value"]
    if kind == "model" and expected is not None:
        return expected.model_validate(form["value"])
    if kind == "tool_calls":
        return [_restored(item) for item in form["items"]]
    if kind == "shaped_calls":
        return [ToolCall(item) for item in form["items"]]
    if kind == "shaped_uses":
        return [ToolUse(item) for item in form["items"]]
    if kind == "responses":
        module, name = RESPONSES
        return getattr(importlib.import_module(module), name)(**form["value"])
    raise NoForm(f"a journaled reply of type {kind!r}")


def _class(item: Any) -> tuple[str, str]:
    return type(item).__module__, type(item).__qualname__


def _listed(item: Any) -> bool:
    return _class(item) in TOOL_CALLS and hasattr(item, "model_dump")


def _call(item: Any) -> dict[str, Any]:
    number = TOOL_CALLS.index(_class(item))
    return {"class": ":".join(TOOL_CALLS[number]), "value": item.model_dump(mode="json", exclude_unset=True)}


def _restored(item: Any) -> Any:
    for module, name in TOOL_CALLS:
        if item.get("class") == f"{module}:{name}":
            return getattr(importlib.import_module(module), name).model_validate(item["value"])
    raise NoForm(f"a tool call of class {item.get('class')!r}")


class _Function:
    def __init__(self, name: str, arguments: str) -> None:
        self.name, self.arguments = name, arguments


class ToolCall:
    """Stands for a tool call that a model class of the user's own made up: what CrewAI reads of it."""

    def __init__(self, item: dict[str, str]) -> None:
        self.id, self.type = item["id"], "function"
        self.function = _Function(item["name"], item["arguments"])


def _shaped(item: Any) -> bool:
    function = getattr(item, "function", None)
    parts = (getattr(item, "id", None), getattr(function, "name", None), getattr(function, "arguments", None))
    return all(isinstance(part, str) for part in parts)


def _shape(item: Any) -> dict[str, str]:
    return {"id": item.id, "name": item.function.name, "arguments": item.function.arguments}


class ToolUse:
    """Stands for a block of Anthropic's shape whose class is on no list: what CrewAI reads of it."""

    def __init__(self, item: dict[str, Any]) -> None:
        self.id, self.type = item["id"], "tool_use"
        self.name, self.input = item["name"], item["input"]


def _used(item: Any) -> bool:
    given = getattr(item, "input", None)
    parts = (getattr(item, "id", None), getattr(item, "name", None))
    return (
        getattr(item, "type", None) == "tool_use"
        and all(isinstance(part, str) for part in parts)
        and (type(given) is dict and _plain(given))
    )


def _use(item: Any) -> dict[str, Any]:
    return {"id": item.id, "name": item.name, "input": item.input}


def _plain(value: Any) -> bool:
    """Whether a value is JSON as it stands, so that what comes back is equal and of the same types."""
    if value is None or isinstance(value, bool | int | float | str):
        return type(value) in (type(None), bool, int, float, str)
    if type(value) is list:
        return all(_plain(item) for item in value)
    if type(value) is dict:
        return all(type(key) is str and _plain(item) for key, item in value.items())
    return False


# Kinds of a list of tool calls, the most exact one first.
_LISTS = (
    ("tool_calls", _listed, _call),
    ("shaped_calls", _shaped, _shape),
    ("shaped_uses", _used, _use),
)
