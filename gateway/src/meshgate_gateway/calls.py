"""Bytes to a `ToolCall`, strictly. Pure: no clock, no input or output.

What a lenient parser would let two readers understand differently is refused: duplicate keys,
keys that differ only in case, NaN and infinities, integers no double can hold, deep nesting,
anything past a size. What passes is written once as RFC 8785 and only those bytes travel on.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema
import rfc8785
from jsonschema.protocols import Validator

from meshgate_gateway.model import CallRequest, Tool

MAX_ARGUMENTS_BYTES = 262_144  # 1/16 of gRPC's default 4 MiB receive limit
MAX_DEPTH = 32  # nested lists and objects; real tools stay below 10
MAX_MEMBERS = 10_000  # keys and items in all; bounds the work of validation
MAX_INTEGER = 2**53 - 1  # the largest whole number every JSON reader holds exactly (RFC 7493 §2.2)
MAX_KEY_CHARACTERS = 256
MAX_TURN = 2**31 - 1
# Two steps that a run has at most once: a runner in the agent's program writes them like model steps.
RUN_STEPS = {
    hashlib.sha256(len(name).to_bytes(8, "big") + name).hexdigest(): kind
    for name, kind in ((b"meshgate.run.input", "input"), (b"meshgate.run.result", "result"))
}
MAX_UNTRUSTED = 16
MAX_UNTRUSTED_CHARACTERS = 200  # a role; it goes into records as it is

_BACKSLASH, _QUOTE, _OPENING, _CLOSING = 0x5C, 0x22, b"[{", b"]}"
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_STEP_KEY = re.compile(r"[0-9a-f]{16,128}\Z")
_SCOPE = re.compile(r"[0-9a-f]{64}\Z")
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")
_TOOL_ID = re.compile(
    r"(?:[a-z0-9][a-z0-9-]{0,62}\.[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|agent:[a-z0-9][a-z0-9-]{0,62})\Z"
)
_LABEL = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_CALL_ID = re.compile(r"c[0-9a-f]{40}\Z")
_DELEGATED_RUN = "run-"  # and the id of the call that started it


class ArgumentsRefused(Exception):
    """The arguments cannot be decided on.

    Attributes:
        reason: stable id.
        where: JSON path and rule; never a value.
    """

    def __init__(self, reason: str, where: str = "") -> None:
        super().__init__(f"{reason} {where}".strip())
        self.reason = reason
        self.where = where


@dataclass(frozen=True, slots=True)
class Arguments:
    """Arguments that passed every check."""

    canonical: bytes
    value: Mapping[str, object]
    sha256: str


def call_id(*, caller: str, run_id: str, step_key: str) -> str:
    """The key of a call in ledger, runtime, tool and log; the same for the same step, for ever."""
    digest = hashlib.sha256()
    for part in (caller, run_id, step_key):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return "c" + digest.hexdigest()[:40]


def is_call_id(text: str) -> bool:
    """True for the shape of a call id; does not say that the call exists."""
    return _CALL_ID.match(text) is not None


def is_run_id(text: str) -> bool:
    """True for the shape of a run id."""
    return _RUN_ID.match(text) is not None


def is_new_run_id(text: str) -> bool:
    """True for an id that somebody may choose for a run: not one that belongs to a delegation."""
    return is_run_id(text) and not (
        text.startswith(_DELEGATED_RUN) and is_call_id(text.removeprefix(_DELEGATED_RUN))
    )


def delegated_run(call_id: str) -> str:
    """The id of the run that a delegation starts; no other run can have it."""
    return _DELEGATED_RUN + call_id


def is_tool_id(text: str) -> bool:
    """True for the shape `host.tool` or `agent:app`; does not say that the tool exists."""
    return _TOOL_ID.match(text) is not None


def named(tool: str) -> str:
    """An unknown tool's name goes into the log only when it is shaped like one."""
    return tool if is_tool_id(tool) else ""


def is_step_key(text: str, *, in_run: bool) -> bool:
    """Inside a run a hex digest, outside of one a UUIDv7 that the client made."""
    return (_STEP_KEY if in_run else _UUID7).match(text) is not None


def is_scope(text: str) -> bool:
    """A SHA-256 digest in hex."""
    return _SCOPE.match(text) is not None


def is_place(request: CallRequest, *, in_run: bool) -> bool:
    """True when a call says where it stands. Inside a run it has a scope: divergence is looked for there."""
    places = [place for place in (request.scope, request.task, request.left_out) if place]
    return (
        (bool(request.scope) or not in_run)
        and all(map(is_scope, places))
        and max(request.turn, request.attempt) <= MAX_TURN
    )


def is_untrusted(labels: Mapping[str, str]) -> bool:
    """True when what a caller says of itself is small and well-formed. It is never believed."""
    return len(labels) <= MAX_UNTRUSTED and all(
        _LABEL.match(key) and len(value) <= MAX_UNTRUSTED_CHARACTERS for key, value in labels.items()
    )


def parse_arguments(raw: bytes, tool: Tool, validator: Validator) -> Arguments:
    """Parses, checks against the tool's schema, and canonicalises.

    Raises:
        ArgumentsRefused: with a stable reason.
    """
    value = parse_strict(raw)
    if not isinstance(value, dict):
        raise ArgumentsRefused("arguments_not_an_object")
    extra = _unknown_key(value, tool.schema)
    if extra:
        raise ArgumentsRefused("arguments_invalid", "$: a key that the tool does not have")
    error = jsonschema.exceptions.best_match(validator.iter_errors(value))
    if error is not None:
        raise ArgumentsRefused("arguments_invalid", _where(error, value, tool.schema))
    canonical = rfc8785.dumps(value)
    if len(canonical) > MAX_ARGUMENTS_BYTES:
        raise ArgumentsRefused("arguments_too_large")
    return Arguments(canonical, value, digest(canonical))


def digest(arguments: bytes) -> str:
    """Of canonical arguments: SHA-256 in hex."""
    return hashlib.sha256(arguments).hexdigest()


def _unknown_key(value: Mapping[str, object], schema: Mapping[str, object]) -> bool:
    """A tool's arguments are closed unless its schema opens them: pydantic's default is silent."""
    if "additionalProperties" in schema or "patternProperties" in schema:
        return False
    properties = schema.get("properties")
    known = properties if isinstance(properties, Mapping) else {}
    composed = any(word in schema for word in ("allOf", "anyOf", "oneOf", "$ref"))
    return not composed and any(key not in known for key in value)


def _where(error: jsonschema.ValidationError, value: object, schema: Mapping[str, object]) -> str:
    rule = error.validator if isinstance(error.validator, str) else ""
    expected = error.validator_value if rule in ("type", "enum", "minimum", "maximum") else ""
    if rule == "required" and isinstance(error.validator_value, list) and isinstance(error.instance, dict):
        expected = ", ".join(str(key) for key in error.validator_value if key not in error.instance)
    return f"{_path(error.absolute_path, value, _declared(schema))}: {rule} {expected}".strip()[:200]


def _path(steps: Iterable[str | int], value: Any, declared: frozenset[str]) -> str:
    """Where in the arguments. A key that the schema does not name is clear text: its position stands."""
    path = "$"
    for step in steps:
        named = isinstance(step, int) or step in declared
        position = step if isinstance(step, int) else list(value).index(step)
        path += f".{step}" if named and isinstance(step, str) else f"[{'' if named else 'key '}{position}]"
        value = value[step]
    return path


def _declared(schema: object) -> frozenset[str]:
    """Every name under a `properties` of the schema; who reads records may read the schema."""
    names: set[str] = set()
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            properties = part.get("properties")
            names.update(properties if isinstance(properties, Mapping) else ())
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
    return frozenset(names)


def parse_strict(
    raw: bytes, *, max_bytes: int = MAX_ARGUMENTS_BYTES, max_members: int = MAX_MEMBERS
) -> object:
    """One JSON value in UTF-8, read so that no other reader could read it differently.

    Raises:
        ArgumentsRefused: with a stable reason.
    """
    if len(raw) > max_bytes:
        raise ArgumentsRefused("arguments_too_large")
    if _nesting(raw) > MAX_DEPTH:
        raise ArgumentsRefused("arguments_too_deep")
    try:
        text = raw.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_no_constant,
            parse_float=_float,
            parse_int=_integer,
        )
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArgumentsRefused("arguments_not_json") from error
    _check_texts(value, max_members)
    return value


def _nesting(raw: bytes) -> int:
    """An upper bound of the depth, found without recursion; brackets in texts are skipped."""
    depth = deepest = 0
    in_text = escaped = False
    for byte in raw:
        if in_text:
            if escaped:
                escaped = False
            elif byte == _BACKSLASH:
                escaped = True
            elif byte == _QUOTE:
                in_text = False
        elif byte == _QUOTE:
            in_text = True
        elif byte in _OPENING:
            depth += 1
            deepest = max(deepest, depth)
        elif byte in _CLOSING:
            depth -= 1
    return deepest


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ArgumentsRefused("arguments_duplicate_key")
    if len({key.casefold() for key in result}) != len(pairs):
        raise ArgumentsRefused("arguments_case_variant_keys")
    return result


def _no_constant(_: str) -> object:
    raise ArgumentsRefused("arguments_not_finite")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ArgumentsRefused("arguments_not_finite")
    if value.is_integer() and abs(value) > MAX_INTEGER:
        raise ArgumentsRefused("arguments_integer_too_large")
    return value


def _integer(text: str) -> int:
    if len(text) > len(str(MAX_INTEGER)) + 1 or abs(int(text)) > MAX_INTEGER:
        raise ArgumentsRefused("arguments_integer_too_large")
    return int(text)


def _check_texts(root: object, max_members: int) -> None:
    """No lone surrogates, no endless keys, a bounded number of members."""
    waiting, members = [root], 0
    while waiting:
        value = waiting.pop()
        members += 1
        if members > max_members:
            raise ArgumentsRefused("arguments_too_large")
        if isinstance(value, dict):
            if any(len(key) > MAX_KEY_CHARACTERS for key in value):
                raise ArgumentsRefused("arguments_too_large")
            waiting.extend(value)
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ArgumentsRefused("arguments_not_json") from error
