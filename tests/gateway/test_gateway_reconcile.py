"""Calls whose hosts can find out what came of them: who is asked, what is believed, what is recorded."""

from itertools import pairwise

import pytest
from fakes.gateway_parts import peer
from gateway.test_gateway_journal import key
from meshgate_gateway import ledger
from meshgate_gateway.errors import Conflict, NotPermitted
from meshgate_gateway.model import Outcome, State

DONE = Outcome(State.DONE, b"paid", "text", reconciled=True)
LOST = Outcome(State.UNKNOWN, b"nobody knows", "", "not_reconciled", reconciled=True)
NEVER = Outcome(State.FAILED, b"it had not begun", "", "not_begun", reconciled=True)


def taken_and_lost(world, tool: str = "orders.booked") -> str:
    """A call whose host was killed in the middle of it."""
    world.runtime.held = True
    call_id = world.call(step_key=key("t0"), tool=tool).call_id
    take(world, call_id, "gone")
    return call_id


def take(world, call_id: str, instance: str, host: str = "orders"):
    """TakeCall."""
    return world.hosts.take(peer(host), call_id=call_id, host_instance=instance)


def finish(world, call_id: str, number: int, outcome: Outcome, host: str = "orders") -> State:
    """FinishCall."""
    return world.hosts.finish(
        peer(host), call_id=call_id, take=number, host_instance="new", outcome=outcome
    )  # fmt: skip


def expired(world, call_id: str) -> None:
    """Nobody came before the deadline, nor to the question that was put then."""
    for _ in range(2):
        world.clock.ms += 10_000_000
        world.sweeper.sweep()
    assert (world.row(call_id).state, world.run().state) == (State.UNKNOWN, "waiting")


def put_by_the_sweep(world, *, after_ms: int) -> list[str]:
    """What the sweep has asked about, that much later."""
    world.clock.ms += after_ms
    world.runtime.waiting.clear()
    world.executor._started.clear()
    world.sweeper.sweep()
    return [call_id for call_id, _ in world.runtime.waiting]


def test_the_next_host_is_asked_what_came_of_it(world) -> None:
    """Not unknown at once: handed out as a question, and what took effect is told."""
    call_id = taken_and_lost(world)
    found = take(world, call_id, "new")
    assert (found.ambiguous, found.may_begin, found.row.take, found.row.state) == (True, False, 2, State.SENT)
    assert world.run().state == "running"
    assert finish(world, call_id, 2, DONE) is State.DONE
    (outcome,) = world.records("outcome")
    assert outcome["settled_by"] == "reconcile spiffe://desk.example/ns/desk/orders"
    assert outcome["cause"] == "reconciled"
    assert [record.get("ambiguous", False) for record in world.records("take")] == [False, True]


def test_not_begun_is_not_believed_while_the_host_before_may_be_at_it(world) -> None:
    """It may begin in a moment. Past that host's deadline the call is asked about again, and may begin."""
    call_id = taken_and_lost(world)
    take(world, call_id, "new")
    assert finish(world, call_id, 2, NEVER) is State.SENT
    assert world.run().state == "running"
    busy = world.row(call_id).busy_until_ms
    assert put_by_the_sweep(world, after_ms=busy - world.clock.ms) == []
    assert put_by_the_sweep(world, after_ms=ledger.GRACE_MS) == [call_id]
    found = take(world, call_id, "newer")
    assert (found.ambiguous, found.may_begin) == (True, True)
    assert found.row.deadline_at_ms == found.row.busy_until_ms > world.clock.ms
    assert finish(world, call_id, 3, Outcome(State.DONE, b"paid", "text")) is State.DONE


def test_who_may_begin_is_believed_that_it_did_not(world) -> None:
    """Nobody else can be at it: a host that looked for too long to begin it settles it, in one round."""
    call_id = taken_and_lost(world)
    expired(world, call_id)
    asks = world.row(call_id).asks
    found = take(world, call_id, "slow")
    assert found.row.asks == asks
    row = ledger.asked_again(found.row, host_instance="slow", now_ms=world.clock.ms, may_run=True)
    assert row.asks == asks
    assert ledger.believed(row, NEVER)
    again = ledger.asked_again(row, host_instance="other", now_ms=world.clock.ms + 1, may_run=False)
    assert not ledger.believed(again, NEVER)


def test_an_answer_counts_for_the_time_it_was_asked_at(world) -> None:
    """Asked before the deadline, answered after it: what was looked at then may be wrong now."""
    call_id = taken_and_lost(world)
    take(world, call_id, "new")
    expired(world, call_id)
    assert finish(world, call_id, 2, NEVER) is State.UNKNOWN
    take(world, call_id, "newer")
    assert finish(world, call_id, 3, NEVER) is State.FAILED


def test_a_deadline_that_was_cut_short_is_no_end_of_the_work(world) -> None:
    """The run was cancelled: its host was told another deadline and may be at it until then."""
    call_id = taken_and_lost(world)
    world.runs.control(run_id="run-1", action="cancel", operator="ada")
    world.hosts.cut("run-1")
    world.clock.ms += ledger.GRACE_MS + 1
    take(world, call_id, "new")
    assert finish(world, call_id, 2, NEVER) is not State.FAILED


def test_what_nobody_knew_is_asked_again_and_again(world) -> None:
    """Rarer each time, and in the end no more; what a host finds out settles it and lets the run go on."""
    call_id = taken_and_lost(world)
    take(world, call_id, "new")
    finish(world, call_id, 2, LOST)
    due, puts = world.row(call_id).next_ask_ms, []
    while due:
        assert put_by_the_sweep(world, after_ms=due - world.clock.ms - 1) == []
        assert put_by_the_sweep(world, after_ms=1) == [call_id]
        puts.append(world.clock.ms)
        due = world.row(call_id).next_ask_ms
    pauses = [late - early for early, late in pairwise(puts)]
    assert len(puts) == ledger.MAX_ASKS
    assert pauses == [ledger.ASK_AGAIN_MS * 2**n for n in range(ledger.MAX_ASKS - 1)]
    assert put_by_the_sweep(world, after_ms=10**9) == []
    take(world, call_id, "newer")
    finish(world, call_id, 3, DONE)
    assert world.run().state == "restarting"


def test_what_is_settled_or_cannot_be_found_out_is_not_asked(world) -> None:
    """The sweep asks for tools with a `reconcile`, and only while nobody knows."""
    paid = taken_and_lost(world)
    take(world, paid, "new")
    finish(world, paid, 2, DONE)
    lost = world.call(step_key=key("t1"), tool="orders.refund").call_id
    take(world, lost, "gone")
    assert put_by_the_sweep(world, after_ms=10_000_000) == []
    assert (world.row(lost).state, world.row(paid).next_ask_ms) == (State.UNKNOWN, 0)


def test_a_host_that_does_not_answer_the_first_question_leaves_it_unknown(world) -> None:
    """The run does not wait for ever in `running`: asked at the deadline, given a moment, then it parks."""
    call_id = taken_and_lost(world)
    assert put_by_the_sweep(world, after_ms=10_000_000) == [call_id]
    assert (world.row(call_id).state, world.run().state) == (State.SENT, "running")
    put_by_the_sweep(world, after_ms=ledger.ASK_AGAIN_MS)
    assert (world.row(call_id).state, world.run().state) == (State.UNKNOWN, "waiting")


def test_past_its_deadline_it_is_asked_and_not_run(world) -> None:
    """The run waits; a host that comes back may only say how it ended, and the run goes on."""
    call_id = taken_and_lost(world)
    expired(world, call_id)
    found = take(world, call_id, "new")
    assert (found.ambiguous, found.row.state) == (True, State.UNKNOWN)
    assert found.row.deadline_at_ms <= world.clock.ms
    finish(world, call_id, 2, NEVER)
    assert (world.row(call_id).error_class, world.run().state) == ("not_begun", "restarting")


@pytest.mark.parametrize("how", ["cancelled", "ended", "superseded"])
def test_what_may_not_begin_is_asked_and_not_run(world, how) -> None:
    """A call of a run that is over, or of an older attempt: its truth is still wanted, not its effect."""
    call_id = taken_and_lost(world)
    if how == "cancelled":
        world.runs.control(run_id="run-1", action="cancel", operator="ada")
    elif how == "ended":
        world.runs.finish(peer("desk"), run_id="run-1", attempt=1, state="failed", detail="")
    else:
        world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l2")
    found = take(world, call_id, "new")
    assert found.ambiguous
    assert found.row.deadline_at_ms <= world.clock.ms
    assert finish(world, call_id, 2, DONE) is State.DONE


def test_a_host_that_dies_again_is_asked_again(world) -> None:
    """Each process gets a take of its own; what an older one says does not count."""
    call_id = taken_and_lost(world)
    take(world, call_id, "second")
    assert take(world, call_id, "third").row.take == 3
    with pytest.raises(Conflict) as caught:
        finish(world, call_id, 2, DONE)
    assert caught.value.reason == "take_superseded"
    assert finish(world, call_id, 3, DONE) is State.DONE


def test_a_first_take_whose_answer_was_lost_is_no_question(world) -> None:
    """The same process asks again: it knows that it began nothing. Once it was asked, it may be again."""
    call_id = taken_and_lost(world)
    with pytest.raises(Conflict) as caught:
        take(world, call_id, "gone")
    assert caught.value.reason == "call_taken"
    take(world, call_id, "new")
    assert take(world, call_id, "new").row.take == 3


@pytest.mark.parametrize("how", ["reconciled", "late", "resolved"])
def test_what_stood_there_while_nobody_knew_is_gone(world, how) -> None:
    """A purge finds clear text by the row alone: what a settled row names no more may not be left."""
    call_id = taken_and_lost(world)
    expired(world, call_id)
    before = world.row(call_id).result
    if how == "reconciled":
        take(world, call_id, "new")
        finish(world, call_id, 2, DONE)
    elif how == "late":
        finish(world, call_id, 1, Outcome(State.DONE, b"paid", "text"))
    else:
        world.hosts.resolve(call_id=call_id, outcome=Outcome(State.DONE, b"x", "text"), operator="ada")
    after = world.row(call_id).result
    kept = world.store.read(
        lambda tables: [tables.payloads.get(one.payload_id) is not None for one in (before, after)]
    )
    assert kept == [False, True]


def test_unknown_stays_unknown(world) -> None:
    """Said once it parks the run, said again it is no error, and a person settles it."""
    call_id = taken_and_lost(world)
    take(world, call_id, "new")
    assert finish(world, call_id, 2, LOST) is State.UNKNOWN
    assert world.run().state == "waiting"
    take(world, call_id, "newer")
    later = Outcome(State.UNKNOWN, b"the bank is away", "", "not_reconciled", reconciled=True)
    assert finish(world, call_id, 3, later) is State.UNKNOWN
    world.hosts.resolve(call_id=call_id, outcome=Outcome(State.DONE, b"x", "text"), operator="ada")
    assert world.run().state == "restarting"


@pytest.mark.parametrize("host", ["other", "desk", "operator"])
def test_nobody_else_is_asked_or_believed(world, host) -> None:
    """Only the host that owns the tool: by its certificate, in both directions."""
    call_id = taken_and_lost(world)
    expired(world, call_id)
    with pytest.raises(NotPermitted):
        take(world, call_id, "new", host)
    take(world, call_id, "new")
    with pytest.raises(NotPermitted):
        finish(world, call_id, 2, DONE, host)
    assert world.row(call_id).state is State.UNKNOWN


def test_a_tool_without_reconcile_is_as_before(world) -> None:
    """Its second take makes it unknown; a host that says it found out is not believed."""
    call_id = taken_and_lost(world, "orders.refund")
    with pytest.raises(Conflict):
        take(world, call_id, "new")
    assert world.row(call_id).state is State.UNKNOWN
    with pytest.raises(Conflict) as caught:
        finish(world, call_id, 1, DONE)
    assert caught.value.reason == "not_reconciled"
    with pytest.raises(Conflict):
        take(world, call_id, "newest")


@pytest.mark.parametrize("state", [State.RESERVED, State.DONE, State.FAILED, State.DENIED])
def test_no_other_state_is_a_question(world, state) -> None:
    """What has not begun is taken, what is settled stays."""
    call_id = taken_and_lost(world)
    row = world.row(call_id)
    object.__setattr__(row, "state", state)
    with pytest.raises(RuntimeError):
        ledger.asked_again(row, host_instance="new", now_ms=0, may_run=True)
