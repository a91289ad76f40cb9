"""What the checker makes of a crew whose agents are apps: on paper, and how its victims are found."""

import os
from types import SimpleNamespace

import pytest
from chaos import victims
from chaos.pairs import SPLIT, SPLIT_PHASES, SQLITE, every_pair, impossible, possible
from chaos.test_chaos_checker import BASE, at
from chaos.verdict import judge

DECIDED, BEGUN, ENDED = 2.0, 3.0, 9.0


class Handed:
    """One order that a crew handed to its teller: the log and the records of a whole story."""

    def __init__(self) -> None:
        self.events, self.records = [], []
        self.event(0, "begun", run="r", app="split", orders=[["r-1", "keyed", "teller"]])
        self.event(0.5, "hello", app="split", life="c")
        self.record(DECIDED, "decision", **self.asked("d1", "split", "r", "agent:teller"))
        self.record(
            DECIDED, "lifecycle", event="run_started", run_id="run-d1", parent_call="d1", state="pending"
        )
        self.record(BEGUN, "lifecycle", event="attempt_started", run_id="run-d1", state="running")
        self.event(3.5, "hello", app="teller", life="a")
        for seconds, turn in ((4, "call"), (7, "answer")):
            about = {"run": "r", "app": "teller", "life": "a", "order": "r-1", "turn": turn}
            self.event(seconds, "asked", **about).event(seconds + 0.5, "replied", **about)
        self.record(5, "decision", **self.asked("c1", "teller", "run-d1", "orders.keyed"))
        for seconds, kind in ((5.2, "quoted"), (5.5, "effect"), (5.6, "answered"), (5.7, "closed")):
            self.event(seconds, kind, order="r-1", tool="keyed", call="c1", key="c1", receipt="R-1")
        self.record(6, "outcome", state="done", call_id="c1")
        self.record(ENDED, "lifecycle", event="run_finished", run_id="run-d1", state="completed")
        self.record(ENDED, "outcome", state="done", call_id="d1")
        self.event(10, "between", run="r", app="split", life="c", task=1)
        self.event(10.5, "passed", run="r", app="split", life="c", task=1)
        self.event(11, "final", run="r", status=0, answer=["r-1: r-1 receipt R-1"])

    @staticmethod
    def asked(call: str, app: str, run: str, tool: str) -> dict[str, object]:
        """What a decision says of a call."""
        return {"allow": True, "call_id": call, "caller": f"spiffe://x/{app}", "run_id": run, "tool": tool}

    def event(self, seconds: float, kind: str, **fields: object) -> "Handed":
        """One line of the log; the log is in order of time."""
        self.events.append({"n": len(self.events), "t": BASE + seconds, "e": kind, **fields})
        self.events.sort(key=lambda event: event["t"])
        return self

    def record(self, seconds: float, kind: str, **fields: object) -> "Handed":
        """One record."""
        self.records.append({"kind": kind, "time": at(seconds), **fields})
        return self

    def without(self, **fields: object) -> "Handed":
        """Takes records out."""
        left = [r for r in self.records if not all(r.get(name) == value for name, value in fields.items())]
        assert len(left) < len(self.records)
        self.records = left
        return self

    def killed(self, seconds: float, phase: str, side: str = "crew") -> "Handed":
        """A kill."""
        about = {"victim": f"{side}-child", "signal": "KILL", "shared": False, "run": "r", "order": "r-1"}
        about |= {"app": "split", "agent": "teller", "side": side, "number": 1, "tool": "keyed"}
        return self.event(seconds, "kill", kill=1, at=BASE + seconds, phase=phase, **about)

    def counts(self) -> tuple[int, int, int]:
        """Lost, unrecorded, doubled."""
        said = judge(self.events, self.records)
        return said.lost, said.unrecorded, said.doubled


def test_a_whole_story_is_good():
    """Handed on once, done by whom it belongs to, ended, settled."""
    assert Handed().counts() == (0, 0, 0)


@pytest.mark.parametrize(
    "missing",
    [
        {"event": "run_finished"},
        {"kind": "outcome", "call_id": "d1"},
        {"event": "run_started"},
        {"kind": "decision", "call_id": "d1"},
    ],
    ids=["its-run-never-ended", "its-call-was-never-settled", "no-run-answers-it", "never-handed-on"],
)
def test_a_task_that_is_lost_is_seen(missing):
    """Every order of a split crew is handed on, to a run that ends and settles its call."""
    assert Handed().without(**missing).counts() == (1, 0, 0)


def test_a_task_that_is_done_twice_is_seen():
    """A call that is settled twice, a run that ends twice, a second run for a call, a second call."""
    assert Handed().record(9.5, "outcome", state="failed", call_id="d1").counts() == (0, 0, 1)
    ended = {"event": "run_finished", "run_id": "run-d1", "state": "failed"}
    assert Handed().record(9.5, "lifecycle", **ended).counts() == (0, 0, 1)
    started = {"event": "run_started", "run_id": "run-e", "parent_call": "d1", "state": "pending"}
    assert Handed().record(9.5, "lifecycle", **started).counts() == (0, 0, 1)
    again = Handed.asked("d2", "split", "r", "agent:cashier")
    assert Handed().record(9.5, "decision", **again).counts()[2] == 1


@pytest.mark.parametrize("caller", ["split", "cashier"])
def test_what_another_app_did_is_seen(caller):
    """Neither the crew itself nor a colleague may have been allowed what the order's agent was to do."""
    told = Handed().without(kind="decision", call_id="c1")
    told.record(5, "decision", **Handed.asked("c1", caller, "run-d1", "orders.keyed"))
    assert told.counts() == (0, 1, 0)


@pytest.mark.parametrize(
    ("phase", "inside", "outside"),
    [
        ("before_delegation", 1.5, 2.5),
        ("after_delegation", 2.5, 3.5),
        ("during_reply", 4.2, 4.7),
        ("during_tool", 5.55, 5.65),
        ("while_pending", 7.2, 8),
        ("after_answer", 9.5, 10.2),
    ],
)
def test_a_kill_counts_only_in_its_phase(phase, inside, outside):
    """The log and the records say where the task was."""
    for seconds, counted in ((inside, [1]), (outside, [])):
        told = Handed().killed(seconds, phase)
        assert judge(told.events, told.records).counted == counted, seconds


def test_a_kill_in_a_replay_counts():
    """A second process of the agent has built the crew and asked nothing; a first one is in no replay."""
    first = Handed().killed(3.7, "during_replay", "agent")
    assert judge(first.events, first.records).counted == []
    for seconds, counted in ((7.2, [1]), (7.8, [])):
        told = Handed().event(7.1, "hello", app="teller", life="b").killed(seconds, "during_replay", "agent")
        told.event(7.7, "asked", run="r", app="teller", life="b", order="r-1", turn="answer")
        assert judge(told.events, told.records).counted == counted
    for seconds, counted in ((8.3, [1]), (8.7, [])):
        told = Handed().killed(seconds, "during_replay")
        for when, event in ((8.0, "between"), (8.5, "passed")):
            told.event(when, event, run="r", app="split", life="d", task=1)
        told.event(7.9, "between", run="r", app="split", life="c", task=1)
        assert judge(told.events, told.records).counted == counted


def test_an_agent_that_works_on_is_no_recovery_of_its_crew():
    """Of a killed crew the next task counts; of a killed agent its next question."""
    for side, seconds in (("crew", 4.8), ("agent", 1.8)):
        told = Handed().killed(5.2, "during_tool", side)
        assert judge(told.events, told.records).recovery == {1: seconds}


def test_pairs_of_a_split_crew():
    """Every victim in every phase, or a reason why not; on a file as on a server."""
    mine = {pair for pair in every_pair() if pair.split}
    assert {(pair.victim, pair.phase) for pair in mine} == {(v, p) for v in SPLIT for p in SPLIT_PHASES}
    assert {pair for pair in mine if not impossible(pair)} == {p for p in possible(store=SQLITE) if p.split}
    left_out = {(pair.victim, pair.signal) for pair in mine if impossible(pair)}
    killed, stopped = ("agent-child", "split-toolhost"), ("agent-worker", "crew-worker")
    assert left_out == {*((one, "KILL") for one in killed), *((one, "STOP") for one in stopped)}


@pytest.mark.parametrize(
    ("programs", "found"),
    [
        ([{"run_id": "r", "attempt": 1, "pid": 11}, {"run_id": "r", "attempt": 2, "pid": 12}], 12),
        ([{"run_id": "other", "attempt": 1, "pid": 11}], None),
        ([], None),
    ],
    ids=["the-newest-attempt", "another-run", "none"],
)
def test_a_program_is_found_as_its_worker_says(monkeypatch, programs, found):
    """A forked program has no command line of its own; a worker that tells is believed."""
    row = {"name": "desk", "state": "ready", "pid": os.getpid(), "programs": programs}
    mesh = SimpleNamespace(state=SimpleNamespace(control=None), up_pid=os.getpid())
    monkeypatch.setattr(victims, "ask_once", lambda *_: {"processes": [row]})
    assert victims.find(mesh, "child", app="desk", run_id="r") == found
