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
    ("litellm.types.utils", "ChatCompletionMessageToolCall"),
    ("litellm.types.utils", "ChatCompletionDeltaToolCall"),
)


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
    if isinstance(reply, list) and reply and all(_listed(item) for item in reply):
        return {"type": "tool_calls", "items": [_call(item) for item in reply]}
    if isinstance(reply, list) and reply and all(_shaped(item) for item in reply):
        return {"type": "shaped_calls", "items": [_shape(item) for item in reply]}
    if _plain(reply):
        return {"type": "json", "value": reply}
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
    raise NoForm(f"a journaled reply of type {kind!r}")


def _listed(item: Any) -> bool:
    return (type(item).__module__, type(item).__qualname__) in TOOL_CALLS and hasattr(item, "model_dump")


def _call(item: Any) -> dict[str, Any]:
    number = TOOL_CALLS.index((type(item).__module__, type(item).__qualname__))
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


def _plain(value: Any) -> bool:
    """Whether a value is JSON as it stands, so that what comes back is equal and of the same types."""
    if value is None or isinstance(value, bool | int | float | str):
        return type(value) in (type(None), bool, int, float, str)
    if type(value) is list:
        return all(_plain(item) for item in value)
    if type(value) is dict:
        return all(type(key) is str and _plain(item) for key, item in value.items())
    return False
