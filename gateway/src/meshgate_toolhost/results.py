"""What a tool returned, as bytes of a kind: text, or one JSON value."""

import json
from typing import Literal

from meshgate_toolhost.errors import BadResult

MAX_RESULT_BYTES = 1_048_576  # a quarter of gRPC's default receive limit

Kind = Literal["text", "json"]


def encode(value: object, max_bytes: int = MAX_RESULT_BYTES) -> tuple[Kind, bytes]:
    """A str is text; pydantic models and JSON values are JSON.

    Raises:
        BadResult: anything else (`result_not_json`), or over the limit (`result_too_large`).
    """
    kind: Kind = "json"
    if isinstance(value, str):
        kind, data = "text", value.encode("utf-8", "replace")
    else:
        dump = getattr(value, "model_dump", None)
        try:
            plain = dump(mode="json") if callable(dump) and not isinstance(value, type) else value
            data = json.dumps(plain, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise BadResult(
                "result_not_json", f"the tool returned {type(value).__name__}: {error}"
            ) from error
    if len(data) > max_bytes:
        raise BadResult(
            "result_too_large", f"the result has {len(data)} bytes, at most {max_bytes} are allowed"
        )
    return kind, data
