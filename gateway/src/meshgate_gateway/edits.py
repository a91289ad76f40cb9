"""What a person puts in the place of a step's answer in a fork: `--edit step.json`. Pure.

    {"step": 3, "reply": FORM}     a model's reply; token usage and events stay the recorded ones
    {"step": 5, "result": RESULT}  a call's answer

FORM is what the journal keeps: {"type": "text", "value": TEXT}, {"type": "json" | "model", "value": JSON},
{"type": "tool_calls", "items": [{"class": NAME, "value": OBJECT}]} or
{"type": "shaped_calls", "items": [{"id": TEXT, "name": TEXT, "arguments": TEXT}]}.
RESULT is {"type": "text" | "failed", "value": TEXT} or {"type": "json", "value": JSON}.
Nothing else may be in it.
"""

import json
from dataclasses import dataclass
from typing import Any

from meshgate_gateway import calls
from meshgate_gateway.errors import Conflict, InvalidRequest
from meshgate_gateway.model import Outcome, ResultKind, State

# The classes that an agent's process takes a tool call's class from; any other ends its attempts.
CALL_CLASSES = frozenset({
    "openai.types.chat.chat_completion_message_function_tool_call:ChatCompletionMessageFunctionToolCall",
    "openai.types.chat.chat_completion_message_custom_tool_call:ChatCompletionMessageCustomToolCall",
    "openai.types.responses.response_function_tool_call:ResponseFunctionToolCall",
    "anthropic.types.tool_use_block:ToolUseBlock",
    "anthropic.types.beta.beta_tool_use_block:BetaToolUseBlock",
    "google.genai.types:Part",
    "litellm.types.utils:ChatCompletionMessageToolCall",
    "litellm.types.utils:ChatCompletionDeltaToolCall",
})  # fmt: skip
MAX_STEP = 1_000_000


@dataclass(frozen=True, slots=True)
class Edit:
    """One of `reply` and `outcome` is set."""

    step: int
    reply: dict[str, Any] | None
    outcome: Outcome | None


def parse(raw: bytes) -> Edit:
    """Reads an edit strictly.

    Raises:
        InvalidRequest: names the first thing that is wrong.
    """
    try:
        value = calls.parse_strict(raw)
    except calls.ArgumentsRefused as refused:
        raise _wrong(refused.reason.removeprefix("arguments_")) from refused
    what = _object(value, "the edit", {"step"}, {"reply", "result"})
    step = what["step"]
    if type(step) is not int or not 1 <= step <= MAX_STEP:
        raise _wrong("step is a number from 1")
    if len(what) != 2:  # noqa: PLR2004 - the step, and its answer
        raise _wrong("exactly one of reply and result")
    if "reply" in what:
        return Edit(step, _reply(what["reply"]), None)
    return Edit(step, None, _outcome(what["result"]))


def edited_reply(recorded: bytes, edit: Edit) -> bytes:
    """The journal's bytes with another reply in them.

    Raises:
        Conflict: what was recorded has no reply of this form.
    """
    try:
        entry = json.loads(recorded)
    except ValueError:
        entry = None
    if not (isinstance(entry, dict) and entry.keys() == {"reply", "trace"}):
        raise Conflict("step_not_editable", detail=f"step {edit.step} holds no reply of a known form")
    return json.dumps({**entry, "reply": edit.reply}, ensure_ascii=False).encode()


def _wrong(text: str) -> InvalidRequest:
    return InvalidRequest("edit_invalid", detail=text)


def _object(value: object, name: str, needs: set[str], may: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(f"{name} is an object")
    missing, extra = needs - value.keys(), value.keys() - needs - (may or set())
    if missing or extra:
        raise _wrong(f"{name} has {', '.join(sorted(needs | (may or set())))} and nothing else")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise _wrong(f"{name} is a text")
    return value


def _reply(form: object) -> dict[str, Any]:
    kind = form.get("type") if isinstance(form, dict) else None
    if kind in ("text", "json", "model"):
        whole = _object(form, "a reply", {"type", "value"})
        if kind == "text":
            _text(whole["value"], "a text reply's value")
        return whole
    if kind not in ("tool_calls", "shaped_calls"):
        raise _wrong("a reply's type is text, json, model, tool_calls or shaped_calls")
    whole = _object(form, "a reply of calls", {"type", "items"})
    if not isinstance(whole["items"], list) or not whole["items"]:
        raise _wrong("items is a list of calls")
    for item in whole["items"]:
        if kind == "tool_calls":
            _listed_call(item)
        else:
            shaped = _object(item, "a call", {"id", "name", "arguments"})
            for name in shaped:
                _text(shaped[name], f"a call's {name}")
    return whole


def _listed_call(item: object) -> None:
    given = _object(item, "a call", {"class", "value"})
    if given["class"] not in CALL_CLASSES:
        raise _wrong("a call's class is one that the journal knows")
    if not isinstance(given["value"], dict):
        raise _wrong("a call's value is an object")


def _outcome(result: object) -> Outcome:
    given = _object(result, "a result", {"type", "value"})
    kind, value = given["type"], given["value"]
    if kind == "json":
        data = json.dumps(value, ensure_ascii=False).encode()
        return Outcome(State.DONE, data, ResultKind.JSON.value)
    if kind not in ("text", "failed"):
        raise _wrong("a result's type is text, json or failed")
    data = _text(value, "a result's value").encode()
    if kind == "failed":
        return Outcome(State.FAILED, data, "", "edited")
    return Outcome(State.DONE, data, ResultKind.TEXT.value)
