"""From what a tool returned to bytes: text, or one JSON value. Nothing is turned into its repr."""

import dataclasses
import json

from pydantic import BaseModel

from meshgate_toolhost.errors import ResultNotJson, ResultTooLarge, ToolReported
from meshgate_toolhost.model import Result, ResultKind

MAX_RESULT_BYTES = 1_048_576  # 1/4 of gRPC's default 4 MiB receive limit
MAX_DEPTH = 200  # well under the recursion limit of the readers on the way


def encode(value: object, *, limit_bytes: int = MAX_RESULT_BYTES) -> Result:
    """Encodes a result.

    A tuple comes back as a list; mappings need text keys; NaN and infinities are no JSON.

    Raises:
        ResultNotJson: neither text nor JSON, nor a pydantic model.
        ResultTooLarge: over `limit_bytes`.
        ToolReported: it is CrewAI's value for "the tool failed".
    """
    if _is_tool_failure(value):
        raise ToolReported(str(getattr(value, "message", "")) or "the tool reported a failure")
    try:
        if isinstance(value, str):
            result = Result(ResultKind.TEXT, value.encode())
        else:
            text = json.dumps(
                _plain(value, MAX_DEPTH), allow_nan=False, ensure_ascii=False, separators=(",", ":")
            )
            result = Result(ResultKind.JSON, text.encode())
    except (ValueError, RecursionError) as error:  # lone surrogates, NaN, cycles
        raise ResultNotJson(f"the tool ran; its result is no text and no JSON: {error}") from error
    if len(result.data) > limit_bytes:
        raise ResultTooLarge(size_bytes=len(result.data), limit_bytes=limit_bytes)
    return result


def _plain(value: object, depth: int) -> object:
    """Checks and copies; a model becomes what its schema says."""
    if depth == 0:
        raise ResultNotJson(f"the tool ran; its result is nested more than {MAX_DEPTH} deep")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, BaseModel):
        try:
            return value.model_dump(mode="json")
        except ValueError as error:
            raise ResultNotJson(f"the tool ran; its result has no JSON form: {error}") from error
    if isinstance(value, list | tuple):
        return [_plain(item, depth - 1) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, depth - 1) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        detail = "a dataclass; return a dict or a pydantic model"
    else:
        detail = type(value).__qualname__
    raise ResultNotJson(f"the tool ran; its result holds a value that is no JSON: {detail}")


def _is_tool_failure(value: object) -> bool:
    kind = type(value)
    return kind.__name__ == "ToolFailure" and kind.__module__ == "crewai.tools.tool_failure"
