"""The launcher's side of `execute: agent`, part by part."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from meshgate_agents.child import interception, own_tools
from meshgate_agents.child.brokering import Asked, Permit, Prepared
from meshgate_agents.child.framing import BadFrame
from meshgate_agents.launcher import turns
from meshgate_agents.launcher.errors import AttemptEnded, Differs
from meshgate_agents.launcher.gateway import Answer, Entry, Step
from meshgate_agents.launcher.own_tools import TIMED_OUT, OwnTools
from meshgate_agents.launcher.tools import Limits
from meshgate_agents.launcher.turns import Turns

DONE = {"state": "done", "kind": "text", "data": "staged"}
KEY = "a" * 64


class Gateway:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told = []

    def finish_own(self, **given):
        self.told.append(given)
        return Answer(state="done", call_id=given["call_id"], kind="text", result=given["told"].data)


def parts(*, live: bool = True, now: Callable[[], float] = time.monotonic) -> tuple[OwnTools, Gateway]:
    gateway = Gateway()
    return OwnTools(gateway=gateway, attempt=3, ask=lambda ask: ask(), live=live, now=now), gateway


def permit(own: OwnTools, *, recorded: bool = False, state: str = "run", text: str = "") -> None:
    answer = Answer(state=state, call_id="c1", kind="text", result=text, arguments="{}", take=2)
    given = own.permit(KEY, answer, recorded=recorded, limits=Limits(10, 5.0), name="stage")
    assert given == {"state": "run", "call_id": "c1", "arguments": "{}", "max_result_bytes": 10}


def test_an_outcome_without_a_permit_is_refused() -> None:
    """Also a second one for the same permit."""
    own, gateway = parts()
    with pytest.raises(BadFrame):
        own.ran(KEY, DONE)
    permit(own)
    own.ran(KEY, DONE)
    with pytest.raises(BadFrame):
        own.ran(KEY, DONE)
    assert len(gateway.told) == 1


@pytest.mark.parametrize(("recorded", "live"), [(False, True), (True, True), (True, False)])
def test_a_body_past_its_deadline_has_failed(recorded, live) -> None:
    """Once, in this attempt and under this permit; what is on record stays, and a replay writes nothing."""
    clock = [100.0]
    own, gateway = parts(live=live, now=lambda: clock[0])
    permit(own, recorded=recorded, state="done" if recorded else "run", text="was")
    clock[0] += 5.0
    assert own.overdue() is None
    clock[0] += 0.1
    assert "tool 'stage' ran past its deadline of 5 s" in str(own.overdue())
    assert own.overdue() is None
    told = {"call_id": "c1", "attempt": 3, "take": 2, "told": TIMED_OUT}
    assert gateway.told == ([] if recorded else [told])
    with pytest.raises(BadFrame):  # whatever the body gives after all
        own.ran(KEY, DONE)


def test_a_step_that_is_under_way_is_not_run_twice() -> None:
    """Two threads with one step key."""
    own, _ = parts()
    permit(own)
    assert own.holds(KEY)
    with pytest.raises(AttemptEnded):
        permit(own)


def test_a_live_outcome_goes_to_the_gateway_with_attempt_and_take() -> None:
    """One on record goes there only when it differs, and without a take."""
    own, gateway = parts()
    permit(own)
    assert own.ran(KEY, DONE)[0].result == "staged"
    permit(own, recorded=True, state="done", text="staged")
    answer, replayed = own.ran(KEY, DONE)
    assert (answer.result, replayed) == ("staged", True)
    permit(own, recorded=True, state="done", text="other")
    own.ran(KEY, DONE)
    assert [(told["attempt"], told["take"]) for told in gateway.told] == [(3, 2), (3, 0)]


def test_a_replay_tells_nobody() -> None:
    """It names both sides and ends."""
    own, gateway = parts(live=False)
    permit(own, recorded=True, state="done", text="other")
    with pytest.raises(Differs, match="recorded 'other', now 'staged'"):
        own.ran(KEY, DONE)
    assert gateway.told == []


@pytest.mark.parametrize(
    "odd",
    [
        None,
        {},
        {"state": "unknown", "data": ""},
        {**DONE, "kind": "pickle"},
        {**DONE, "data": 1},
        {"state": "failed", "error_class": "x" * 200, "data": ""},
    ],
)
def test_what_is_no_outcome_is_refused(odd) -> None:
    """Its permit stays, so a sound one may follow."""
    own, gateway = parts()
    permit(own)
    with pytest.raises(BadFrame):
        own.ran(KEY, odd)
    assert own.holds(KEY)
    assert gateway.told == []


SCOPE = "5c" * 32


def step(key: str, turn: int = 0) -> Step:
    return Step(key=key, scope=SCOPE, turn=turn)


def ran(key: str, turn: int = 0, arguments: str = "{}") -> Entry:
    answer = Answer(state="done", arguments=arguments)
    return Entry(key=key, reply=None, answer=answer, scope=SCOPE, turn=turn)


class Line:
    """Calls that come one after the other, each from a thread of its own, and end when they are told to."""

    def __init__(self, made: Turns) -> None:
        self.turns, self.began, self.stopped = made, [], threading.Event()

    def come(self, key: str, turn: int = 0) -> threading.Thread:
        def work() -> None:
            self.turns.take(step(key, turn), self.stopped)
            self.began.append(key)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def end(self, key: str, turn: int = 0) -> None:
        self.turns.over(step(key, turn))

    def is_at(self, *keys: str) -> bool:
        """Whether so many have begun, in this order; waits for it."""
        give_up_at = time.monotonic() + 20
        while len(self.began) < len(keys) and time.monotonic() < give_up_at:
            time.sleep(0.01)
        return self.began == list(keys)


def test_recorded_bodies_run_in_their_order_and_before_new_ones() -> None:
    """Whichever thread comes first; other turns, and calls that did not run here, are not waited for."""
    line = Line(Turns())
    line.turns.recall([ran("a"), ran("hosted", arguments=""), ran("b"), ran("later", turn=1)])
    waiting = [line.come(key) for key in ("new", "b")]
    line.come("later", turn=1)
    assert line.is_at("later")
    line.come("a")
    assert line.is_at("later", "a")
    line.end("a")
    assert line.is_at("later", "a", "b")
    assert waiting[0].is_alive()
    line.end("b")
    assert line.is_at("later", "a", "b", "new")


def test_new_bodies_of_a_place_run_one_at_a_time() -> None:
    """So that the order of their decisions is the order in which they ran; one that is denied makes room."""
    line = Line(Turns())
    line.come("a")
    assert line.is_at("a")
    second = line.come("b")
    line.come("c", turn=1)
    assert line.is_at("a", "c")
    assert second.is_alive()
    line.end("a")
    assert line.is_at("a", "c", "b")


def test_a_slow_body_keeps_its_turn(monkeypatch) -> None:
    """However long ago anything moved: the next body does not begin beside it."""
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.0)
    line = Line(Turns())
    line.come("a")
    assert line.is_at("a")
    second = line.come("b")
    second.join(3 * turns.POLL_SECONDS)
    assert second.is_alive()
    line.end("a")
    assert line.is_at("a", "b")


def test_a_turn_that_does_not_come_is_taken(monkeypatch) -> None:
    """One on record that nobody asks for, and a body that waits for a thread of its own, hold up nobody."""
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(turns, "BODY_SECONDS", 0.6)
    line = Line(Turns())
    line.turns.recall([ran("left-out")])
    line.come("a")
    assert line.is_at("a")
    line.come("of-a")
    assert line.is_at("a", "of-a")
    line.end("of-a")
    line.end("a")
    line.come("b")
    assert line.is_at("a", "of-a", "b")


def test_nobody_waits_in_a_session_that_ends() -> None:
    """Its threads come to an end."""
    line = Line(Turns())
    line.come("a")
    assert line.is_at("a")
    second = line.come("b")
    line.stopped.set()
    second.join(20)
    assert not second.is_alive()


class Settling:
    """FAKE: a broker whose answer comes when it is told to."""

    def __init__(self) -> None:
        self.asked, self.answers, self.told = threading.Event(), threading.Event(), []

    def settle(self, prepared):
        self.asked.set()
        assert self.answers.wait(20)
        return Permit(prepared, {})

    def ran(self, _permit, outcome):
        self.told.append(outcome)


def test_a_permit_that_comes_too_late_is_given_back() -> None:
    """Once, whichever comes first; what somebody waits for is not."""
    for late in (True, False):
        broker = Settling()
        asked = Asked(broker, Prepared({}))
        if late:
            asked.leave()
        broker.answers.set()
        asked.settle()
        assert broker.told == ([own_tools.INTERRUPTED] if late else [])
        if not late:
            asked.leave()
            assert broker.told == [own_tools.INTERRUPTED]


def test_a_call_that_is_cancelled_while_its_permit_comes_is_over(monkeypatch) -> None:
    """Its body does not run, and its step does not stay open."""
    broker, bodies = Settling(), []

    async def body(_tool) -> None:
        bodies.append(1)

    monkeypatch.setattr(interception, "_prepare", lambda *_given, **_more: Prepared({}))
    call = interception._replacement(body, "_arun", broker)

    async def cancelled() -> None:
        task = asyncio.ensure_future(call(object()))
        await asyncio.to_thread(broker.asked.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        broker.answers.set()

    asyncio.run(cancelled())
    assert (broker.told, bodies) == ([own_tools.INTERRUPTED], [])
