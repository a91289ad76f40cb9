"""What the demo found: computed from the records, the payment book and the story. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshgate_deploy.refund_desk import seed as seeds
from meshgate_deploy.refund_desk.seed import Payment

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One decided call.

    Attributes:
        outcome: the state the call ended in; empty for a denied one.
    """

    decision_id: str
    app: str
    tool: str
    allowed: bool
    reasons: tuple[str, ...]
    outcome: str
    milliseconds: int


@dataclass(frozen=True, slots=True)
class Effects:
    """The payment book beside what it should hold."""

    expected: int
    seen: int
    doubled: int
    missing: int
    unexpected: tuple[Payment, ...] = ()

    @property
    def right(self) -> bool:
        """Whether each payment happened exactly once and nothing else did."""
        return not (self.doubled or self.missing or self.unexpected)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the demo shows."""

    seconds: float
    exit_status: int
    apps: tuple[Mapping[str, str], ...]
    rows: tuple[Row, ...]
    effects: Effects
    records: int
    problem: str
    run: Mapping[str, Any]

    @property
    def allowed(self) -> int:
        """Calls that policy let through."""
        return sum(row.allowed for row in self.rows)

    @property
    def ok(self) -> bool:
        """Whether the story went as it must."""
        return self.exit_status == 0 and self.effects.right and not self.problem and bool(self.rows)

    def as_dict(self) -> dict[str, Any]:
        """The object of `meshgate demo --json`; keys are added, none changes."""
        return {
            "status": "ok" if self.ok else "failed",
            "seconds": round(self.seconds, 2),
            "apps": [{"name": app["name"], "spiffe_id": app["spiffe_id"]} for app in self.apps],
            "calls": len(self.rows),
            "allowed": self.allowed,
            "denied": len(self.rows) - self.allowed,
            "effects": {
                "expected": self.effects.expected,
                "seen": self.effects.seen,
                "doubled": self.effects.doubled,
                "missing": self.effects.missing,
            },
            "audit": {"records": self.records, "verified": not self.problem},
            "run": {name: value for name, value in self.run.items() if name != "id"},
        }


def rows(records: Iterable[Record]) -> tuple[Row, ...]:
    """The decided calls in the order of their decisions."""
    decided: dict[str, Record] = {}
    outcomes: dict[str, Record] = {}
    for record in records:
        if record["kind"] == "outcome":
            outcomes[record["call_id"]] = record
        elif record["kind"] == "decision" or (record["kind"] == "refusal" and record.get("decision_id")):
            decided.setdefault(record["call_id"], record)
    return tuple(_row(record, outcomes.get(call_id, {})) for call_id, record in decided.items())


def effects(book: Sequence[Payment], wanted: Sequence[Payment]) -> Effects:
    """Compares the payment book with what should be in it.

    A payment that was wanted and happened more often counts as doubled; one that nobody wanted is
    unexpected.
    """
    seen, want = Counter(book), Counter(wanted)
    return Effects(
        expected=len(wanted),
        seen=len(book),
        doubled=sum(max(0, seen[payment] - want[payment]) for payment in want),
        missing=(want - seen).total(),
        unexpected=tuple(sorted(payment for payment in seen if payment not in want)),
    )


def refunds_done(found: Iterable[Row]) -> int:
    """How many refunds the records say were made: what a real model's book is held against."""
    return sum(row.tool == seeds.REFUND and row.outcome == "done" for row in found)


def _row(record: Record, outcome: Record) -> Row:
    return Row(
        decision_id=str(record.get("decision_id") or ""),
        app=str(record["app"]),
        tool=str(record["tool"]),
        allowed=record["kind"] == "decision" and bool(record["allow"]),
        reasons=tuple(record.get("reasons") or [record.get("reason", "")]),
        outcome=str(outcome.get("state", "")),
        milliseconds=int(outcome.get("milliseconds", 0)),
    )
