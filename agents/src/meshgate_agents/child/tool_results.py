"""From what a tool returned to text or one JSON value: one rule for a tool host and for an agent's process.

Standard library only, Python >= 3.10; pydantic's and CrewAI's objects are recognised by their shape.
"""

import dataclasses
import json
from typing import Any

MAX_RESULT_BYTES = 1_048_576  # 1/4 of gRPC's default 4 MiB receive limit
MAX_DEPTH = 200  # well under the recursion limit of the readers on the way


class NotJson(Exception):
    """Neither text nor JSON, nor a pydantic model."""


class TooLarge(Exception):
    """Over its limit.

    Attributes:
        size_bytes: how large it is.
        limit_bytes: how large it may be.
    """

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"the tool ran; its result has {size_bytes} bytes, the limit is {limit_bytes}")
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes


class Reported(Exception):
    """CrewAI's value for "the tool failed"."""


def encode(value: Any, *, limit_bytes: int = MAX_RESULT_BYTES) -> "tuple[str, bytes]":
    """Kind ("text" or "json") and bytes of a result.

    A tuple comes back as a list; mappings need text keys; NaN and infinities are no JSON.

    Raises:
        NotJson, TooLarge, Reported: it gives no result.
    """
    if _is_tool_failure(value):
        raise Reported(str(getattr(value, "message", "")) or "the tool reported a failure")
    try:
        if isinstance(value, str):
            kind, data = "text", value.encode()
        else:
            plain = _plain(value, MAX_DEPTH)
            text = json.dumps(plain, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
            kind, data = "json", text.encode()
    except (ValueError, RecursionError) as error:  # lone surrogates, NaN, cycles
        raise NotJson(f"the tool ran; its result is no text and no JSON: {error}") from error
    if len(data) > limit_bytes:
        raise TooLarge(len(data), limit_bytes)
    return kind, data


def _plain(value: Any, depth: int) -> Any:
    """Checks and copies; a model becomes what its schema says."""
    if depth == 0:
        raise NotJson(f"the tool ran; its result is nested more than {MAX_DEPTH} deep")
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if hasattr(type(value), "model_fields") and callable(getattr(value, "model_dump", None)):
        try:
            return value.model_dump(mode="json")
        except ValueError as error:
            raise NotJson(f"the tool ran; its result has no JSON form: {error}") from error
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth - 1) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, depth - 1) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        detail = "a dataclass; return a dict or a pydantic model"
    else:
        detail = type(value).__qualname__
    raise NotJson(f"the tool ran; its result holds a value that is no JSON: {detail}")


def _is_tool_failure(value: Any) -> bool:
    kind = type(value)
    return kind.__name__ == "ToolFailure" and kind.__module__ == "crewai.tools.tool_failure"
