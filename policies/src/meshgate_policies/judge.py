"""The strict reading of the engine's answer: anything but a well-formed allow is a denial. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

KNOWN_OBLIGATIONS: frozenset[str] = frozenset()  # none yet; an unknown one denies
_KEYS = {"allow", "approval", "obligations", "reasons"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What policy said.

    Attributes:
        allow: true only for a whole, well-formed allow without approval or unknown obligation.
        reasons: stable ids, empty exactly when allowed.
    """

    allow: bool
    reasons: tuple[str, ...]
    obligations: Mapping[str, object] = field(default_factory=dict)


INVALID = Verdict(allow=False, reasons=("policy_invalid",))


def judge(raw: object) -> Verdict:
    """Reads one answer of `data.meshgate.decision`; undefined or mistyped is `policy_invalid`."""
    if not isinstance(raw, dict) or set(raw) != _KEYS:
        return INVALID
    allow, reasons, obligations = raw["allow"], raw["reasons"], raw["obligations"]
    if not isinstance(allow, bool) or not isinstance(obligations, dict):
        return INVALID
    if not isinstance(reasons, list) or not all(isinstance(r, str) and r for r in reasons):
        return INVALID
    if allow and reasons:
        return INVALID
    if not allow:
        return Verdict(allow=False, reasons=tuple(reasons) or INVALID.reasons)
    if raw["approval"] is not None:
        return Verdict(allow=False, reasons=("approval_required",))
    if not set(obligations) <= KNOWN_OBLIGATIONS:
        return Verdict(allow=False, reasons=("obligation_unknown",))
    return Verdict(allow=True, reasons=(), obligations=obligations)
