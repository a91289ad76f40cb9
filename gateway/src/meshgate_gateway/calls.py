"""What is asked: strict reading of arguments, canonical bytes, and the call's id. Pure."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import rfc8785
from jsonschema.exceptions import best_match

from meshgate_gateway.catalogue import Catalogue, Tool
from meshgate_gateway.errors import Malformed, NotFound

MAX_ARGUMENTS_BYTES = 262_144  # 1/16 of gRPC's default 4 MiB receive limit
MAX_DEPTH = 64
MAX_KEY_BYTES = 256
MAX_INTEGER = 2**53 - 1  # beyond it JSON numbers differ between readers (RFC 8785 §3.2.2.3)


@dataclass(frozen=True, slots=True)
class RunRef:
    """The run and attempt that a call claims to belong to; the ledger checks it."""

    id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One exact call.

    Attributes:
        call_id: key of ledger, workflow, idempotency and audit.
        arguments: RFC 8785 bytes; what is hashed, decided on, recorded and executed.
        args: the same, parsed, for the policy's input.
        untrusted: what the caller says of itself.
    """

    call_id: str
    caller: str
    run: RunRef | None
    step_key: str
    tool: Tool
    arguments: bytes
    args: Mapping[str, object]
    args_sha256: str
    untrusted: Mapping[str, str] = field(default_factory=dict)


def call_id(caller: str, run_id: str, step_key: str) -> str:
    """The key of a call: stable over retries and redelivery, different for another caller or run."""
    digest = hashlib.sha256()
    for part in (caller, run_id, step_key):
        raw = part.encode()
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return "c" + digest.hexdigest()[:40]


def find_tool(catalogue: Catalogue, name: str) -> Tool:
    """The tool of that canonical id, exactly.

    Raises:
        NotFound: there is none.
    """
    tool = catalogue.tools.get(name)
    if tool is None:
        raise NotFound("tool_unknown", f"no tool host offers {name[:MAX_KEY_BYTES]!r}")
    return tool


def read_arguments(tool: Tool, raw: bytes) -> tuple[bytes, dict[str, object]]:
    """Parses strictly, validates against the tool's schema, and canonicalises.

    Raises:
        Malformed: not one JSON object, duplicate or case-variant keys, NaN, too big, too deep,
            an integer beyond 2^53, or not what the schema asks for.
    """
    if len(raw) > MAX_ARGUMENTS_BYTES:
        raise _malformed(f"{len(raw)} bytes, at most {MAX_ARGUMENTS_BYTES} are allowed")
    _check_depth(raw)
    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"not strict JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise _malformed("not a JSON object")
    misfit = best_match(tool.validator.iter_errors(parsed))
    if misfit is not None:
        raise _malformed(f"at {misfit.json_path}: {misfit.message[:300]}")
    try:
        return rfc8785.dumps(parsed), parsed
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeEncodeError) as error:
        raise _malformed(f"has no canonical form: {error}") from error


def _malformed(detail: str) -> Malformed:
    return Malformed("arguments_invalid", f"the arguments are {detail}" if detail[:3] == "not" else detail)


def _check_depth(raw: bytes) -> None:
    """Bounds nesting before the parser recurses. Brackets inside strings are not counted."""
    depth, in_string, escaped = 0, False, False
    for byte in raw:
        if in_string:
            escaped, in_string = (not escaped and byte == 0x5C), (escaped or byte != 0x22)  # noqa: PLR2004
        elif byte == 0x22:  # noqa: PLR2004 - a quote
            in_string = True
        elif byte in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise _malformed(f"nested deeper than {MAX_DEPTH}")
        elif byte in b"]}":
            depth -= 1


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    folded = {key.casefold() for key, _ in pairs}
    if len(folded) != len(pairs):
        raise ValueError("a key occurs twice, or differs from another by case only")
    for _, value in pairs:
        _check_number(value)
    return dict(pairs)


def _check_number(value: object) -> None:
    if isinstance(value, list):
        for item in value:
            _check_number(item)
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_INTEGER:
        raise ValueError("an integer lies beyond 2^53")


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")
