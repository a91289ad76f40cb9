"""Caller and call to a `Decision`. Pure: builds the policy input and judges the raw answer.

The broker asks the engine in between. Only this module mints a `Permit`, and `execute` takes
nothing else.

Input fields, all checked before they get here: caller (certificate), call (catalogue, strict
parse), run and delegation (store), time (gateway's clock). Unchecked on purpose: untrusted. Empty
until their features exist: approval, budget.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meshgate_policies.judge import judge

from meshgate_gateway import chains, narrowing
from meshgate_gateway.chains import Above, Link
from meshgate_gateway.model import Caller, LedgerRow, Run, RunContext, State, Tool, ToolCall, ToolKind

_SEAL = object()


@dataclass(frozen=True, slots=True)
class Permit:
    """Proof that one exact call was allowed; cannot be made outside this module."""

    call_id: str
    caller: str
    tool: str
    host: str
    decision_id: str
    seal: object

    def __post_init__(self) -> None:
        if self.seal is not _SEAL:
            raise RuntimeError("only decide mints a Permit")


@dataclass(frozen=True, slots=True)
class Allow:
    """The call may run, once it is on disk that it may."""

    permit: Permit
    obligations: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Deny:
    """A policy, or the catalogue, said no."""

    reasons: tuple[str, ...]


Decision = Allow | Deny


def policy_input(  # noqa: PLR0913 - one input, its fields
    *,
    caller: Caller,
    call: ToolCall,
    arguments: Mapping[str, object],
    run: RunContext | None,
    delegation: Sequence[Link],
    time: str,
) -> dict[str, object]:
    """What the rule sees: verified facts, and apart from them what the caller says of itself."""
    return {
        "caller": {
            "spiffe_id": caller.spiffe_id,
            "trust_domain": caller.trust_domain,
            "namespace": caller.namespace,
            "app": caller.app,
        },
        "call": {
            "tool": call.tool.id,
            "host": call.tool.host,
            "effect": call.tool.effect,
            "kind": call.tool.kind.value,
            "args": dict(arguments),
            "args_sha256": call.arguments_sha256,
            "definition_sha256": call.tool.definition_sha256,
        },
        "run": None
        if run is None
        else {"id": run.id, "attempt": run.attempt, "origin": run.origin, "labels": dict(run.labels)},
        "delegation": chains.shown(delegation),
        "approval": None,
        "budget": {},
        "time": time,
        "untrusted": dict(call.untrusted),
    }


def decide(  # noqa: PLR0913 - one decision, what it hangs on
    *,
    caller: Caller,
    call: ToolCall,
    arguments: Mapping[str, object],
    above: Above,
    raw: object,
    decision_id: str,
) -> Decision:
    """Judges the engine's raw answer; undefined or mistyped is a denial. Those above have a say too."""
    verdict = judge(raw)
    if not verdict.allow:
        return Deny(verdict.reasons)
    if call.tool.kind is ToolKind.DELEGATE:
        if refusal := chains.refusal(above.links, caller, call.tool.host):
            return Deny((refusal,))
    elif not runs_for(call.tool, caller):
        return Deny(("tool_of_another_app",))
    if not narrowing.holds(above.narrows, call.tool.id, arguments):
        return Deny(("narrowed",))
    if not _can_be_kept(verdict.obligations, call.tool):
        return Deny(("narrow_invalid",))
    permit = Permit(call.call_id, caller.spiffe_id, call.tool.id, call.tool.host, decision_id, _SEAL)
    return Allow(permit, verdict.obligations)


def _can_be_kept(obligations: Mapping[str, object], tool: Tool) -> bool:
    """False for a `narrow` that nobody can read, or of a call that has nothing below it."""
    if narrowing.NAME not in obligations:
        return True
    try:
        narrowing.parse(obligations[narrowing.NAME])
    except narrowing.NarrowInvalid:
        return False
    return tool.kind is ToolKind.DELEGATE


def permit_of(row: LedgerRow) -> Permit:
    """The permit again, of a call whose allow is on disk and that has not begun.

    Raises:
        RuntimeError: the row is in any other state.
    """
    if row.state is not State.RESERVED:
        raise RuntimeError(f"a {row.state} call has no permit")
    return Permit(row.call_id, row.caller, row.tool, row.host, row.decision_id, _SEAL)


def changed(row: LedgerRow, tool: Tool | None) -> str:
    """A reason when a call's tool is no longer what the call was decided on."""
    if tool is None:
        return "tool_unknown"
    now = (tool.host, tool.effect, tool.idempotent, tool.definition_sha256)
    return (
        "" if now == (row.host, row.effect, row.idempotent, row.definition_sha256) else "definition_changed"
    )


def run_context(run: Run | None) -> RunContext | None:
    """What policy sees of the run: what the store says, the request has no say in it."""
    if run is None:
        return None
    return RunContext(id=run.run_id, attempt=run.attempt, origin=run.origin, labels={})


def runs_for(tool: Tool, caller: Caller) -> bool:
    """False for a tool that `decide` denies to this caller whatever policy says."""
    if tool.kind is ToolKind.DELEGATE:
        return tool.host != caller.app
    return not (tool.in_agent and tool.host != caller.app)


def question_of(row: LedgerRow) -> Permit:
    """For a call that may have begun: its host is to find out what came of it. TakeCall says what it may do.

    Raises:
        RuntimeError: the row is in any other state.
    """
    if row.state not in (State.SENT, State.UNKNOWN):
        raise RuntimeError(f"nobody asks about a {row.state} call")
    return Permit(row.call_id, row.caller, row.tool, row.host, row.decision_id, _SEAL)
