"""May this call happen? Builds the policy's input, judges its answer, mints permits. Pure."""

import secrets
from dataclasses import dataclass

from meshgate_identities.spiffe_id import SpiffeId
from meshgate_policies.judge import judge

from meshgate_gateway.calls import ToolCall

_MINT = object()  # only this module can construct a Permit


@dataclass(frozen=True, slots=True)
class Permit:
    """Proof that one exact call was allowed under one policy revision."""

    call: ToolCall
    decision_id: str
    policy_revision: str
    _minted_by: object = None

    def __post_init__(self) -> None:
        """A permit made elsewhere is a bug, not an attack."""
        if self._minted_by is not _MINT:
            raise RuntimeError("only decide() mints permits")


@dataclass(frozen=True, slots=True)
class Allow:
    """The call may run."""

    permit: Permit

    @property
    def decision_id(self) -> str:
        """The permit's."""
        return self.permit.decision_id


@dataclass(frozen=True, slots=True)
class Deny:
    """The call must not run; reasons are stable ids, at least one."""

    decision_id: str
    reasons: tuple[str, ...]


Decision = Allow | Deny


def policy_input(call: ToolCall, caller: SpiffeId, time: str) -> dict[str, object]:
    """What policy sees. Everything outside `untrusted` was verified by us."""
    return {
        "caller": {
            "spiffe_id": str(caller),
            "trust_domain": caller.trust_domain,
            "namespace": caller.namespace,
            "app": caller.app,
        },
        "call": {
            "tool": call.tool.id,
            "host": call.tool.host,
            "kind": call.tool.kind,
            "effect": call.tool.effect,
            "args": call.args,
            "args_sha256": call.args_sha256,
            "definition_sha256": call.tool.definition_sha256,
        },
        "run": {"id": call.run.id, "attempt": call.run.attempt, "origin": "start", "labels": {}}
        if call.run
        else None,
        "delegation": [],
        "approval": None,
        "budget": {},
        "time": time,
        "untrusted": dict(call.untrusted),
    }


def decide(call: ToolCall, answer: object, policy_revision: str) -> Decision:
    """Turns the engine's raw answer into a decision about exactly this call."""
    verdict = judge(answer)
    decision_id = "D-" + secrets.token_hex(8)
    if not verdict.allow:
        return Deny(decision_id, verdict.reasons)
    return Allow(Permit(call, decision_id, policy_revision, _MINT))


def listed(answer: object) -> bool:
    """Whether a tool is shown to the caller: it is allowed with no arguments given.

    Narrower than what may be called: a grant that reads an argument is not shown yet.
    """
    return judge(answer).allow
