"""What the log, the answers and the exported audit records say together. Imports nothing of meshgate.

`python verdict.py --log FILE --records FILE` prints the verdict as JSON; ends with 1 when anything was
lost, unrecorded or doubled.
"""

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

RECEIPT = re.compile(r"receipt (R-\d+)")
EFFECTS = ("effect", "repeat", "read")
AGENT = "agent:"  # how the tool of a delegation begins
OVER = ("completed", "failed", "cancelled")

Event = Mapping[str, Any]


@dataclass
class Verdict:
    """The counts, and a line for each thing that is wrong.

    Attributes:
        unknown: calls whose outcome was at some time reported as unknown.
        counted: the numbers of the kills that fell where they were meant to.
        recovery: seconds from a kill to the next progress, by the kill's number; clean ones alone.
    """

    lost: int = 0
    unrecorded: int = 0
    doubled: int = 0
    unknown: int = 0
    runs: int = 0
    effects: int = 0
    findings: list[str] = field(default_factory=list)
    counted: list[int] = field(default_factory=list)
    missed: dict[int, str] = field(default_factory=dict)
    recovery: dict[int, float] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Nothing lost, unrecorded or doubled."""
        return not (self.lost or self.unrecorded or self.doubled)


class Book:
    """The log and the records, sorted for the questions that are asked of them."""

    def __init__(self, events: Sequence[Event], records: Sequence[Event]) -> None:
        self.events = events
        self.by_order: dict[str, list[Event]] = defaultdict(list)
        for event in events:
            self.by_order[str(event.get("order") or event.get("name") or "")].append(event)
        self.allowed: dict[str, float] = {}
        self.decisions: dict[str, Event] = {}
        self.outcomes: dict[str, float] = {}
        self.settled: Counter[str] = Counter()
        self.unknown: set[str] = set()
        self.delegated = Delegated()
        for record in records:
            at = datetime.fromisoformat(record["time"]).timestamp()
            if record["kind"] == "decision" and record["allow"]:
                self.allowed.setdefault(record["call_id"], at)
                self.decisions.setdefault(record["call_id"], record)
            elif record["kind"] == "outcome" and record["state"] == "unknown":
                self.unknown.add(record["call_id"])
            elif record["kind"] == "outcome":
                self.outcomes.setdefault(record["call_id"], at)
                self.settled[record["call_id"]] += 1
            elif record["kind"] == "lifecycle":
                self.delegated.add(record, at)

    def of(self, order: str, *kinds: str) -> list[Event]:
        """What happened to an order, of some kinds."""
        return [event for event in self.by_order[order] if event["e"] in kinds]

    def calls(self, order: str) -> set[str]:
        """The ids under which an order was worked on."""
        return {event["call"] for event in self.of(order, "quoted", *EFFECTS) if event["call"]}

    def every(self, kind: str) -> list[Event]:
        """All events of a kind."""
        return [event for event in self.events if event["e"] == kind]

    def delegations(self, run: str) -> list[str]:
        """The ids of the calls by which a run gave tasks to other apps."""
        mine = (each for each in self.decisions.values() if each.get("run_id") == run)
        return [each["call_id"] for each in mine if str(each.get("tool", "")).startswith(AGENT)]

    def delegation(self, order: str) -> str:
        """The call by which an order was handed to whoever worked on it; empty where nobody handed it on."""
        runs = [
            self.decisions[call].get("run_id", "") for call in self.calls(order) if call in self.decisions
        ]
        return next((self.delegated.parents[run] for run in runs if run in self.delegated.parents), "")


@dataclass
class Delegated:
    """The runs that delegations started.

    Attributes:
        parents: the call that each of them answers.
        begun: when its first attempt began.
        ended: how many times it was recorded as ended.
    """

    parents: dict[str, str] = field(default_factory=dict)
    begun: dict[str, float] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)

    def add(self, record: Event, at: float) -> None:
        """One record of a run's life."""
        run, event = record.get("run_id", ""), record["event"]
        if event == "run_started" and record.get("parent_call"):
            self.parents[run] = record["parent_call"]
        elif event == "attempt_started":
            self.begun.setdefault(run, at)
        elif event in ("run_finished", "run_cancel") and record["state"] in OVER:
            self.ended[run] += 1

    def of(self, call: str) -> list[str]:
        """The runs that answer a call: one."""
        return [run for run, parent in self.parents.items() if parent == call]


def judge(events: Sequence[Event], records: Sequence[Event]) -> Verdict:
    """The verdict. Does not ask whether the records themselves are genuine: `audit verify` does."""
    book, verdict = Book(events, records), Verdict()
    verdict.unknown = len(book.unknown)
    verdict.effects = len(book.every("effect"))
    _answers(book, verdict)
    _recorded(book, verdict)
    _doubled(book, verdict)
    _owned(book, verdict)
    _delegated(book, verdict)
    _kills(book, verdict)
    return verdict


def _kills(book: Book, verdict: Verdict) -> None:
    """Which kills count, and how long the run took to get on; not told where two faults overlap."""
    kills = book.every("kill")
    over = {kill["kill"]: _progress(book, kill) or float("inf") for kill in kills}
    for kill in kills:
        number, why = kill["kill"], _missed(book, kill)
        if why:
            verdict.missed[number] = why
            continue
        verdict.counted.append(number)
        shared = [other for other in kills if other["shared"] and other["kill"] != number]
        overlaid = any(other["at"] < over[number] and over[other["kill"]] > kill["at"] for other in shared)
        if over[number] != float("inf") and not overlaid:
            verdict.recovery[number] = round(over[number] - kill["at"], 3)


def _answers(book: Book, verdict: Verdict) -> None:
    """Every run ended with an answer to each order, and each answer is what the service knows."""
    finals = {event["run"]: event for event in book.every("final")}
    for begun in book.every("begun"):
        verdict.runs += 1
        run, orders = begun["run"], begun["orders"]
        final = finals.get(run)
        if final is None or final["status"] != 0 or len(final["answer"] or ()) != len(orders):
            verdict.lost += 1
            verdict.findings.append(f"lost: {run} did not end with an answer: {final}")
            continue
        for (order, tool, _), answer in zip(orders, final["answer"], strict=True):
            if why := _wrong(book, order, tool, answer):
                verdict.lost += 1
                verdict.findings.append(f"lost: {order} ({tool}): {why}; answered {answer!r}")


def _wrong(book: Book, order: str, tool: str, answer: str) -> str:
    if tool == "look":
        return "" if f"{order} costs 20" in answer and book.of(order, "read") else "it was never read"
    receipts = {event["receipt"] for event in book.of(order, "effect")}
    told = set(RECEIPT.findall(answer))
    if told - receipts:
        return f"a receipt that the service never gave (its own: {sorted(receipts)})"
    if not told and receipts:
        return f"the service paid it ({sorted(receipts)})"
    said_failed = any(event["as"] == "failed" for event in book.of(order, "resolved"))
    return "" if told or said_failed else "no effect, and nobody said so"


def _recorded(book: Book, verdict: Verdict) -> None:
    """Before each effect there is a record that allowed it."""
    for event in (event for kind in EFFECTS for event in book.every(kind)):
        allowed = book.allowed.get(event["call"] or "")
        if allowed is None or allowed > event["t"]:
            verdict.unrecorded += 1
            when = "no record" if allowed is None else f"its record came {allowed - event['t']:.3f} s later"
            verdict.findings.append(f"unrecorded: {event['e']} for {event['order']}: {when}")


def _doubled(book: Book, verdict: Verdict) -> None:
    """An order was paid twice: keyed never; any other only where the call was reported as unknown."""
    paid = Counter((event["order"], event["tool"]) for event in book.every("effect"))
    for (order, tool), times in paid.items():
        reported = tool != "keyed" and bool(book.calls(order) & book.unknown)
        if times > 1 and not reported:
            verdict.doubled += 1
            keys = [event["key"] for event in book.of(order, "effect")]
            verdict.findings.append(f"doubled: {order} ({tool}) was paid {times} times, under {keys}")


def _owned(book: Book, verdict: Verdict) -> None:
    """Nothing was done by another app than the one that the order belongs to; else no record allowed it."""
    owners = {order: app for begun in book.every("begun") for order, _, app in begun["orders"]}
    for event in (event for kind in EFFECTS for event in book.every(kind)):
        decision = book.decisions.get(event["call"] or "")
        caller = decision["caller"].rpartition("/")[2] if decision else ""
        if decision and caller != owners.get(event["order"]):
            verdict.unrecorded += 1
            whose = f"allowed to {caller}, and it is an order of {owners.get(event['order'])}"
            verdict.findings.append(f"unrecorded: {event['e']} for {event['order']}: {whose}")


def _delegated(book: Book, verdict: Verdict) -> None:
    """Each order of a split crew was handed on once; the run that answers it ended, and settled its call."""
    for begun in book.every("begun"):
        handed = [order for order, _, app in begun["orders"] if app != begun["app"]]
        calls = book.delegations(begun["run"])
        if len(calls) > len(handed):
            verdict.doubled += 1
            verdict.findings.append(
                f"doubled: {begun['run']} gave {len(calls)} tasks for {len(handed)} orders"
            )
        if len(calls) < len(handed):
            verdict.lost += 1
            verdict.findings.append(f"lost: {begun['run']} gave {len(calls)} tasks for {len(handed)} orders")
        for call in calls:
            runs = book.delegated.of(call)
            times = (len(runs), sum(book.delegated.ended[run] for run in runs), book.settled[call])
            if times != (1, 1, 1):
                verdict.lost += min(times) < 1
                verdict.doubled += max(times) > 1
                told = "its runs, their ends, its outcomes: {}, {}, {}".format(*times)
                verdict.findings.append(f"{'lost' if min(times) < 1 else 'doubled'}: task {call}: {told}")


def _missed(book: Book, kill: Event) -> str:
    """Why a kill does not count; empty when it fell into its phase."""
    at, order = kill["at"], kill["order"]

    def before(*kinds: str) -> list[Event]:
        return [event for event in book.of(order, *kinds) if event["t"] <= at]

    calls = book.calls(order)
    decided = min((book.allowed[call] for call in calls if call in book.allowed), default=None)
    ended = [book.outcomes[call] for call in calls if call in book.outcomes]
    match kill["phase"]:
        case "before_decision":
            seen = before("replied") and not before("quoted") and (decided is None or decided > at)
        case "after_decision":
            seen = decided is not None and decided <= at and not before("quoted")
        case "during_tool":
            seen = before("quoted") and not before("answered") and all(end > at for end in ended)
        case "after_tool":
            seen = before("closed") and all(end > at for end in ended)
        case "during_reply":
            seen = len(before("asked")) > len(before("replied"))
        case "during_replay" if kill.get("side") == "agent":
            seen = _in_agents_replay(book, kill)
        case "during_replay":
            seen = _in_replay(book, kill)
        case _:
            seen = _at_delegation(book, kill)
    return "" if seen else f"{kill['victim']} at {order}: the call was not in {kill['phase']}"


def _at_delegation(book: Book, kill: Event) -> bool:
    """Where the order's delegation was, by the records, and what the agent's model had been asked by then."""
    at, order, call = kill["at"], kill["order"], book.delegation(kill["order"])
    never = float("inf")
    decided, settled = book.allowed.get(call, never), book.outcomes.get(call, never)
    begun = min((book.delegated.begun.get(run, never) for run in book.delegated.of(call)), default=never)
    asked, replied = (
        sum(e["t"] <= at and e.get("turn") == "answer" for e in book.of(order, kind))
        for kind in ("asked", "replied")
    )
    match kill["phase"]:
        case "before_delegation":
            return _tasks(book, kill, "passed") == kill["number"] - 1 and at < decided < never
        case "after_delegation":
            return decided <= at < begun < never
        case "while_pending":
            return decided <= at < settled < never and asked > replied
        case "after_answer":
            return settled <= at and _tasks(book, kill, "between") == kill["number"] - 1
    return False


def _tasks(book: Book, kill: Event, kind: str) -> int:
    """How many tasks the crew's process was through at a kill, as an event says it."""
    mine = [e for e in book.every(kind) if e["run"] == kill["run"] and e["t"] <= kill["at"]]
    return max((event["task"] for event in mine), default=0)


def _in_agents_replay(book: Book, kill: Event) -> bool:
    """A new process of the agent stood before a task of which an earlier one had told its model enough."""
    mine = [e for e in book.events if e.get("app") == kill["agent"] and "life" in e and e["t"] <= kill["at"]]
    earlier = [e["life"] for e in mine if e["e"] == "asked" and e["order"] == kill["order"]]
    newest = mine[-1] if mine else None
    return bool(earlier) and newest is not None and newest["e"] == "hello" and newest["life"] != earlier[-1]


def _in_replay(book: Book, kill: Event) -> bool:
    """The newest process of the run stood between two tasks of the journal, and had asked for nothing."""
    mine = [e for e in book.events if e.get("run") == kill["run"] and "life" in e and e["t"] <= kill["at"]]
    mine = [e for e in mine if e.get("app", kill.get("app")) == kill.get("app")]  # no agent's of a split crew
    lives = list(dict.fromkeys(event["life"] for event in mine))
    newest = [event["e"] for event in mine if lives and event["life"] == lives[-1]]
    return len(lives) > 1 and "asked" not in newest and newest.count("between") > newest.count("passed")


def _progress(book: Book, kill: Event) -> float | None:
    """When the run was next seen to get on: a live model call, a task that is new, or its end.

    Of a crew whose agents are apps, an agent that works on at its task says nothing.
    """
    tasks: set[int] = set()
    aside = {e["order"] for e in book.every("asked") if e["t"] <= kill["at"] and kill.get("side") == "crew"}
    for event in book.events:
        if event.get("run") != kill["run"]:
            continue
        new = event["e"] == "final" or (event["e"] == "asked" and event["order"] not in aside)
        if event["e"] == "between":
            new = event["task"] not in tasks
            tasks.add(event["task"])
        if new and event["t"] > kill["at"]:
            return float(event["t"])
    return None


def read_lines(path: Path) -> list[Event]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def main() -> int:
    """Judges from files alone."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--records", type=Path, required=True)
    options = parser.parse_args()
    verdict = judge(read_lines(options.log), read_lines(options.records))
    sys.stdout.write(json.dumps(asdict(verdict)) + "\n")
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
