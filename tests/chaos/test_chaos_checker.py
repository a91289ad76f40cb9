"""The checker can fail: it finds what was lost, unrecorded or doubled, on paper and on a broken desk."""

import ast
import json
import shutil
import sys
from pathlib import Path

import pytest
from chaos.lanes import Terminal
from chaos.pairs import (
    PHASES,
    SPLIT,
    SPLIT_PHASES,
    SQLITE,
    STORE,
    Pair,
    every_pair,
    impossible,
    possible,
    quick,
    quick_postgresql,
)
from chaos.part import DESK, HERE, Part, export, judged, staged
from chaos.phases import Place
from chaos.report import NotResumable, Report, percentile
from chaos.verdict import judge


def at(seconds: float) -> str:
    """A record's time."""
    return f"2026-01-01T00:00:{seconds:06.3f}Z"


BASE = 1767225600.0  # the same moment in Unix seconds


class Told:
    """A log and its records, written by hand."""

    def __init__(self, tool: str = "keyed") -> None:
        self.tool, self.events, self.records = tool, [], []
        self.event(0, "begun", run="r", app="shop", orders=[["r-1", tool, "shop"]])
        self.event(1, "asked", run="r", order="r-1", turn="call", life="a")
        self.event(2, "replied", run="r", order="r-1", turn="call", life="a")
        about = {"call_id": "c1", "caller": "spiffe://x/shop", "run_id": "r", "tool": f"orders.{tool}"}
        self.records.append({"kind": "decision", "allow": True, "time": at(3), **about})
        self.about(4, "quoted")
        self.records.append({"kind": "outcome", "state": "done", "call_id": "c1", "time": at(9)})

    def event(self, seconds, kind, **fields):
        """One line of the log."""
        self.events.append({"n": len(self.events), "t": BASE + seconds, "e": kind, **fields})
        return self

    def about(self, seconds, kind, call="c1", **fields):
        """One line about the order's call."""
        return self.event(seconds, kind, order="r-1", tool=self.tool, call=call, **fields)

    def paid(self, seconds=5.0, receipt="R-1", call="c1", key="c1"):
        """An effect."""
        return self.about(seconds, "effect", call=call, key=key, receipt=receipt)

    def ended(self, answer="r-1: r-1 receipt R-1", status=0):
        """The run's end."""
        return self.event(20, "final", run="r", status=status, answer=[answer])

    def killed(self, seconds, phase):
        """A kill."""
        about = {"victim": "gateway", "signal": "KILL", "shared": True, "run": "r", "order": "r-1"}
        return self.event(seconds, "kill", kill=1, at=BASE + seconds, phase=phase, tool=self.tool, **about)

    def verdict(self):
        """What the checker makes of it."""
        return judge(self.events, self.records)

    def counts(self):
        """Lost, unrecorded, doubled."""
        said = self.verdict()
        return said.lost, said.unrecorded, said.doubled


def test_a_whole_story_is_good():
    """One effect, allowed before it happened, answered as it was."""
    assert Told().paid().ended().counts() == (0, 0, 0)


@pytest.mark.parametrize(
    "story",
    [
        lambda: Told().paid(),
        lambda: Told().paid().ended(status=1),
        lambda: Told().ended(),
        lambda: Told().paid().ended("r-1: r-1 receipt R-2"),
        lambda: Told().paid().ended("r-1: the tool failed"),
        lambda: Told().ended("r-1: the tool failed"),
    ],
    ids=["never-ended", "failed", "not-in-the-log", "another-receipt", "paid-unanswered", "failed-unsaid"],
)
def test_what_is_lost_is_seen(story):
    """A run without an end, an answer without its effect, an effect without its answer."""
    assert story().counts() == (1, 0, 0)


def test_a_failure_that_a_person_confirmed_is_an_answer():
    """Nothing was paid, the operator said so, the run says so."""
    told = Told("pay").about(6, "resolved", **{"as": "failed"}).ended("r-1: the tool failed")
    assert told.counts() == (0, 0, 0)


@pytest.mark.parametrize("change", ["none", "later", "denied"])
def test_what_is_unrecorded_is_seen(change):
    """No record, a record that came after the effect, or one that said no."""
    told = Told().paid().ended()
    if change == "none":
        del told.records[0]
    elif change == "later":
        told.records[0]["time"] = at(5.5)
    else:
        told.records[0]["allow"] = False
    assert told.counts() == (0, 1, 0)


def test_what_is_doubled_is_seen():
    """Paid twice is doubled for a keyed tool always, for any other unless the call was reported unknown."""
    unknown = {"kind": "outcome", "state": "unknown", "call_id": "c1", "time": at(6)}
    for tool, reported, doubled in (("keyed", 0, 1), ("keyed", 1, 1), ("pay", 0, 1), ("pay", 1, 0)):
        told = Told(tool).paid().paid(7, receipt="R-2", key=None).ended()
        told.records += [unknown] * reported
        assert told.counts() == (0, 0, doubled), (tool, reported)
        assert told.verdict().unknown == reported


@pytest.mark.parametrize(
    ("phase", "inside", "outside"),
    [
        ("before_decision", 2.5, 3.5),
        ("after_decision", 3.5, 4.5),
        ("during_tool", 5.5, 9.5),
        ("after_tool", 8.5, 9.5),
        ("during_reply", 1.5, 2.5),
    ],
)
def test_a_kill_counts_only_in_its_phase(phase, inside, outside):
    """The log and the records say where the call was; a kill beside it is left out."""
    for seconds, counted in ((inside, [1]), (outside, [])):
        told = Told().paid().about(8, "closed").killed(seconds, phase).ended()
        if phase != "after_tool":
            told.about(8, "answered")
        assert told.verdict().counted == counted
        assert len(told.verdict().missed) == 1 - len(counted)


def test_recovery_ends_with_the_next_sign_of_the_run_alone():
    """A live model call or the end; a payment that was under way is none."""
    told = Told().killed(4.5, "during_tool").paid().ended()
    assert told.verdict().recovery == {1: 15.5}


def test_the_checker_knows_nothing_of_us():
    """Its two programs import the standard library and nothing else."""
    for name in ("checker.py", "verdict.py"):
        for node in ast.walk(ast.parse((HERE / name).read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert all(each.partition(".")[0] in sys.stdlib_module_names for each in names), (name, names)


def test_pairs_are_all_accounted_for():
    """Each pair exists or has a reason; the quick set leaves out only what it says."""
    pairs = list(every_pair())
    assert len(set(pairs)) == len(pairs)
    assert {pair for pair in pairs if not impossible(pair)} == set(possible())
    on_a_file = set(possible(store=SQLITE))
    assert set(possible()) - on_a_file == set(quick_postgresql())
    assert {(pair.victim, pair.phase) for pair in quick_postgresql()} == {(*STORE, phase) for phase in PHASES}
    split = {pair for pair in quick() if pair.split}
    assert ({pair.victim for pair in split}, {pair.phase for pair in split}) == (
        set(SPLIT),
        set(SPLIT_PHASES),
    )
    left = {pair for pair in on_a_file if pair not in quick() and not pair.split}
    assert {pair.victim for pair in left if pair.signal == "KILL"} == {"scheduler", "placement", "sentry"}
    stopped = {pair for pair in quick() if pair.victim.endswith("daprd") and pair.signal == "STOP"} - split
    assert {pair.phase for pair in stopped} == set(PHASES)


def part(number: int, lost: int = 0) -> Part:
    """A part with one kill."""
    kill = {"kill": 1, "victim": "gateway", "signal": "KILL", "phase": "during_tool", "tool": "pay"}
    verdict = {
        "lost": lost, "unrecorded": 0, "doubled": 0, "unknown": 1, "runs": 1, "effects": 2,
        "findings": ["lost: r"] * lost, "counted": [1], "missed": {}, "recovery": {"1": float(number)},
    }  # fmt: skip
    return Part(verdict, [kill], [], 1.0, verified=True, store=SQLITE, interrupted=False)


def test_parts_add_to_one_report(tmp_path):
    """A report that is resumed holds what it held, and a finding stays in it."""
    path, report = tmp_path / "r.json", Report.fresh(3)
    report.add(part(1, lost=1))
    report.save(path)
    again = Report.load(path)
    again.add(part(2))
    told = again.as_dict()
    assert (told["kills"], told["lost"], told["unknown"], told["seed"]) == (2, 1, 2, 3)
    assert told["recovery"]["gateway"] == {"p50": 1.5, "p95": 1.95, "samples": 2, "goal": 1.0}
    assert not again.good
    assert "lost: r" in list(again.lines())


def test_a_report_of_another_desk_is_not_resumed(tmp_path):
    """Figures of two configurations do not add up."""
    path = tmp_path / "r.json"
    Report.fresh(3).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": "other"}))
    with pytest.raises(NotResumable):
        Report.load(path)


def test_percentiles():
    """One value is every percentile; else they lie between."""
    assert percentile([4.0], 95) == 4.0
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0


@pytest.mark.plane
@pytest.mark.timeout(400)
def test_a_broken_desk_is_found_out(tmp_path_factory):
    """A tool that is declared idempotent and ignores its key doubles; lines taken out are missed."""
    root, desk = tmp_path_factory.mktemp("b"), tmp_path_factory.mktemp("d") / "desk"
    shutil.copytree(DESK, desk)
    tools = desk / "desk_tools.py"
    tools.write_text(tools.read_text().replace("key=call if keyed else None", "key=None"))
    place = Place("desk-one", "broken", "broken-1", "keyed", early=False)
    with staged(root, desk) as stage:
        stage.checker.shut("model", place.order)
        stage.checker.note(
            "begun", run=place.run, app=place.app, orders=[[place.order, place.tool, place.app]]
        )
        run = Terminal(stage, place.app, place.run, [place.tool])
        try:
            stage.strike(Pair("toolhost", "KILL", "during_tool"), place)
            run.end()
        finally:
            run.close()
        assert export(stage, root / "records.jsonl")
    log, records = root / "effects.jsonl", root / "records.jsonl"
    said = judged(log, records)
    assert (said["lost"], said["unrecorded"], said["doubled"], said["counted"]) == (0, 0, 1, [1])
    without(records, '"kind": "decision"')
    assert judged(log, records)["unrecorded"] == 2
    without(log, '"e": "effect"')
    assert judged(log, records)["lost"] == 1


def without(path: Path, mark: str) -> None:
    """Takes lines out of a file."""
    lines = path.read_text().splitlines()
    kept = [line for line in lines if mark not in line and mark.replace(": ", ":") not in line]
    assert len(kept) < len(lines), mark
    path.write_text("\n".join(kept) + "\n")
