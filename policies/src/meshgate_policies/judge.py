"""The strict reading of the engine's answer: anything but a well-formed allow is a denial. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

KNOWN_OBLIGATIONS = frozenset({"narrow"})  # an unknown one denies
MAX_REASONS = 32  # a model reads them in one line
_KEYS = frozenset({"allow", "approval", "obligations", "reasons"})
_REASON_ID = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What policy said.

    Attributes:
        allow: true only for a whole, well-formed allow without approval or unknown obligation.
        reasons: stable ids, empty exactly when allowed.
        approval: what a person would have to agree to, where that alone is missing.
        obligations: what the gateway must keep; empty unless allowed.
    """

    allow: bool
    reasons: tuple[str, ...]
    approval: Mapping[str, object] | None = None
    obligations: Mapping[str, object] = field(default_factory=dict)


INVALID = Verdict(allow=False, reasons=("policy_invalid",))


def judge(raw: object) -> Verdict:
    """Reads one answer of `data.meshgate.decision`; undefined or mistyped is `policy_invalid`.

    Args:
        raw: the decoded JSON value, or the engine's UNDEFINED.
    """
    if not isinstance(raw, dict) or frozenset(raw) != _KEYS or not _well_typed(raw):
        return INVALID
    allow, approval, obligations = raw["allow"], raw["approval"], raw["obligations"]
    reasons = tuple(raw["reasons"])
    if allow != (not reasons):
        return INVALID
    if not allow:
        return Verdict(allow=False, reasons=reasons, approval=approval)
    if approval is not None:
        return Verdict(allow=False, reasons=("approval_required",), approval=approval)
    if not KNOWN_OBLIGATIONS.issuperset(obligations):
        return Verdict(allow=False, reasons=("obligation_unknown",))
    return Verdict(allow=True, reasons=(), obligations=obligations)


def _well_typed(raw: Mapping[str, object]) -> bool:
    reasons = raw["reasons"]
    return (
        isinstance(raw["allow"], bool)
        and isinstance(raw["obligations"], dict)
        and (raw["approval"] is None or isinstance(raw["approval"], dict))
        and isinstance(reasons, list)
        and len(reasons) <= MAX_REASONS
        and all(isinstance(reason, str) and _REASON_ID.fullmatch(reason) for reason in reasons)
    )
