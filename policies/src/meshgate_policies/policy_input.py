"""What a rule sees. Pure: the dataclasses are the one source of the JSON schema and of the wire form.

Every field says whether it was checked before a rule sees it, and by what; `UNCHECKED` is said on
purpose. A field that says neither does not get past `provenance`.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field

_CERTIFICATE = {"checked": "certificate"}
_CATALOGUE = {"checked": "catalogue"}
_STORE = {"checked": "store"}
_CLOCK = {"checked": "the gateway's clock"}
_COMPUTED = {"checked": "computed"}
_ARGUMENTS = {"checked": "strict parse and the tool's schema"}
UNCHECKED = "unchecked: what the caller says of itself"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerInput:
    """Who asks."""

    spiffe_id: str = field(metadata=_CERTIFICATE)
    trust_domain: str = field(metadata=_CERTIFICATE)
    namespace: str = field(metadata=_CERTIFICATE)
    app: str = field(metadata=_CERTIFICATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallInput:
    """What is asked.

    Attributes:
        kind: `tool`, or `delegate` for a task given to another agent: then `tool` is `agent:APP`.
        effect: the operator's word in the manifest, never the tool's own.
        args: validated against the tool's schema.
        args_sha256: of the canonical bytes that are executed.
        definition_sha256: of the tool's name, description and schemas.
    """

    tool: str = field(metadata=_CATALOGUE)
    host: str = field(metadata=_CATALOGUE)
    effect: str = field(metadata=_CATALOGUE)
    kind: str = field(metadata=_CATALOGUE)
    args: Mapping[str, object] = field(metadata=_ARGUMENTS)
    args_sha256: str = field(metadata=_COMPUTED)
    definition_sha256: str = field(metadata=_CATALOGUE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInput:
    """The run the call belongs to."""

    id: str = field(metadata=_STORE)
    attempt: int = field(metadata=_STORE)
    origin: str = field(metadata=_STORE)
    labels: Mapping[str, str] = field(metadata=_STORE)


@dataclass(frozen=True, slots=True, kw_only=True)
class DelegatorInput:
    """A caller above this one: who it is, and in which of its runs it asked."""

    spiffe_id: str = field(metadata=_STORE)
    trust_domain: str = field(metadata=_STORE)
    namespace: str = field(metadata=_STORE)
    app: str = field(metadata=_STORE)
    run_id: str = field(metadata=_STORE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyInput:
    """The whole of `input`.

    Attributes:
        delegation: the callers above this one, first the outermost, as the gateway itself saw them.
        approval: null until approvals exist.
        budget: empty until budgets exist.
        time: RFC 3339, UTC.
        untrusted: may be shown, must never grant.
    """

    caller: CallerInput = field(metadata=_CERTIFICATE)
    call: CallInput = field(metadata=_CATALOGUE)
    run: RunInput | None = field(metadata=_STORE)
    delegation: tuple[DelegatorInput, ...] = field(metadata=_STORE)
    approval: Mapping[str, object] | None = field(metadata=_STORE)
    budget: Mapping[str, object] = field(metadata=_STORE)
    time: str = field(metadata=_CLOCK)
    untrusted: Mapping[str, object] = field(metadata={"checked": UNCHECKED})

    def to_wire(self) -> dict[str, object]:
        """The JSON value that OPA gets."""
        return {name: _wire(value) for name, value in _items(self)}


def input_schema() -> dict[str, object]:
    """The JSON Schema of `PolicyInput`, in the part of draft 7 that OPA's type checker reads."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "input of data.meshgate.decision",
        **_schema(PolicyInput),
    }


def provenance() -> dict[str, str]:
    """Each field's path and what checked it.

    Raises:
        RuntimeError: a field does not say.
    """
    return dict(_provenance(PolicyInput, ""))


def changing() -> list[str]:
    """Paths of what differs between two calls of one tool by one caller.

    Certificate and catalogue settle the rest. A part of something that changes is not named again.
    """
    settled = {_CERTIFICATE["checked"], _CATALOGUE["checked"]}
    paths: list[str] = []
    for path, checked in _provenance(PolicyInput, ""):
        above = any(path.startswith(f"{found}.") for found in paths)
        if checked not in settled and not above:
            paths.append(path)
    return paths


def _items(value: object) -> list[tuple[str, object]]:
    return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(typing.cast("typing.Any", value))]


def _wire(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return {name: _wire(part) for name, part in _items(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return [_wire(part) for part in value]
    return value


def _schema(kind: typing.Any) -> dict[str, object]:
    if isinstance(kind, types.UnionType):
        (inner,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
        # A list of types and not anyOf: behind anyOf OPA no longer sees a misspelt field.
        return {**_schema(inner), "type": ["object", "null"]}
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {
            "type": "object",
            "properties": {name: _schema(hint) for name, hint in hints.items()},
            "required": list(hints),
            "additionalProperties": False,
        }
    origin = typing.get_origin(kind)
    if origin is tuple:
        return {"type": "array", "items": _schema(typing.get_args(kind)[0])}
    if origin is Mapping:
        values = typing.get_args(kind)[1]
        return {"type": "object", "additionalProperties": True if values is object else _schema(values)}
    return {"type": {str: "string", int: "integer", bool: "boolean"}[kind]}


def _provenance(kind: typing.Any, prefix: str) -> list[tuple[str, str]]:
    hints = typing.get_type_hints(kind)
    rows = []
    for one in dataclasses.fields(kind):
        checked = one.metadata.get("checked")
        if not checked:
            raise RuntimeError(f"{kind.__name__}.{one.name} does not say what checks it")
        rows.append((prefix + one.name, checked))
        parts = [hints[one.name], *typing.get_args(hints[one.name])]
        for part in parts:
            if dataclasses.is_dataclass(part):
                rows += _provenance(part, f"{prefix}{one.name}.")
    return rows
