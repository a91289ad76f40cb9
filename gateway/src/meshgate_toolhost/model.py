"""The host's nouns."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

Arguments = dict[str, object]
Schema = dict[str, object]


class ResultKind(StrEnum):
    """What a result is; it comes back to the caller as the same kind."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class LoadedTool:
    """A tool that can be run here.

    Attributes:
        tool_id: `host.name`.
        description: for a model.
        schema: JSON Schema of the arguments.
        result_schema: JSON Schema of the result, if the tool declares one.
        identity: what `tool_identity.describe` says of the live object.
        run: validates the arguments and runs the body; blocks; may hang.
        reconcile: takes key and arguments and says what came of a call; see `reconcile`.
    """

    tool_id: str
    description: str
    schema: Schema
    result_schema: Schema | None
    identity: dict[str, str]
    run: Callable[[Arguments], object]
    reconcile: Callable[[str, Arguments], object] | None = None


@dataclass(frozen=True, slots=True)
class TakenCall:
    """A call the gateway handed out: decided on, recorded, ours to run.

    Attributes:
        take: echoed in the outcome.
        arguments_json: the exact bytes that were decided on.
        deadline_unix_ms: when the gateway stops waiting.
        taken_before: an earlier take may have begun.
        ambiguous: the same, and the tool's `reconcile` is to be asked before anything runs.
        may_begin: an ambiguous call that had not begun may begin now.
    """

    call_id: str
    take: int
    tool: str
    arguments_json: bytes
    definition_sha256: str
    deadline_unix_ms: int
    idempotency_key: str
    taken_before: bool
    effect: str
    idempotent: bool
    ambiguous: bool = False
    may_begin: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What a tool returned, encoded."""

    kind: ResultKind
    data: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no result.

    Attributes:
        error_class: stable id.
        message: one line for a model or a person.
        ambiguous: the effect may have happened.
    """

    error_class: str
    message: str
    ambiguous: bool = False


Outcome = Result | Failure


@dataclass(frozen=True, slots=True)
class Finished:
    """An outcome with the take it belongs to.

    Attributes:
        outcome: None once it was delivered; the gateway has it then.
        reconciled: found out by `reconcile`. Not kept in the ledger: after a crash it is asked again.
    """

    call_id: str
    take: int
    instance: str
    outcome: Outcome | None
    reconciled: bool = False
