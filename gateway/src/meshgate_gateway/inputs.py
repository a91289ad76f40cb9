"""The input of a run, read as strictly as a call's arguments. Pure."""

from meshgate_gateway import calls
from meshgate_gateway.errors import InvalidRequest

MAX_INPUT_BYTES = 1_048_576  # a quarter of gRPC's default receive limit


def parse(raw: bytes) -> object:
    """One JSON value. No schema is known for it, so that its size alone bounds its members.

    Raises:
        InvalidRequest: its reason is that of arguments, `input_…`.
    """
    try:
        return calls.parse_strict(raw, max_bytes=MAX_INPUT_BYTES, max_members=MAX_INPUT_BYTES)
    except calls.ArgumentsRefused as refused:
        detail = f"{len(raw)} bytes" if refused.reason == "arguments_too_large" else ""
        raise InvalidRequest("input_" + refused.reason.removeprefix("arguments_"), detail=detail) from refused
