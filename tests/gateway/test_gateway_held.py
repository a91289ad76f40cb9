"""A run that is held up, cancelled or over begins nothing, whoever asks, and in whatever order."""

import json

import pytest
from fakes.gateway_parts import peer
from gateway.test_gateway_journal import OTHER, SCOPE, append, key, restart, unknown
from meshgate_gateway.errors import Conflict
from meshgate_gateway.model import Outcome, State


def told(world, action):
    """An operator's word about the run."""
    return world.runs.control(run_id="run-1", action=action, operator="ada")


def diverge(world, attempt=2):
    """The next attempt asks for an effect that the journal contradicts."""
    append(world, "m1", 1)
    restart(world, attempt)
    with pytest.raises(Conflict):
        world.call(step_key=key("new"), scope=SCOPE, turn=0, attempt=attempt)


def test_a_parked_run_takes_up_no_older_call(world) -> None:
    """A call that an earlier attempt had reserved is not joined, nor taken, while the run waits."""
    world.runtime.held = True
    world.call(step_key=key("t0"), scope=SCOPE, turn=0)
    diverge(world)
    world.runtime.held = False
    with pytest.raises(Conflict) as caught:
        world.call(step_key=key("t0"), scope=SCOPE, turn=0, attempt=2)
    assert caught.value.reason == "run_waiting"
    world.runtime.deliver_all()
    assert world.runtime.effects == []


def test_a_sibling_reserved_before_the_park_is_not_taken(world) -> None:
    """Its delivery comes while the run waits: refused; it runs once the run goes on."""
    world.runtime.held = True
    world.call(step_key=key("sibling"), scope=OTHER)
    unknown(world)
    world.runtime.deliver_all()
    assert world.runtime.effects == []
    assert "run_waiting" in world.runtime.refusals


def test_cancel_needs_no_second_step(world) -> None:
    """The gateway dies between the word and the cut: nothing is taken all the same; cancel again is heard."""
    world.runtime.held = True
    world.call(step_key=key("t0"))
    told(world, "cancel")
    world.runtime.deliver_all()
    assert world.runtime.effects == []
    assert told(world, "cancel").state == "cancelling"


def test_a_cancelled_runs_keyed_call_is_not_taken_again(world) -> None:
    """A redelivery after the cancel begins nothing."""
    world.runtime.held = True
    call_id = world.call(step_key=key("k"), tool="orders.keyed").call_id
    world.hosts.take(peer("orders"), call_id=call_id, host_instance="a")
    told(world, "cancel")
    with pytest.raises(Conflict) as caught:
        world.hosts.take(peer("orders"), call_id=call_id, host_instance="b")
    assert caught.value.reason == "run_cancelling"
    assert world.row(call_id).take == 1


def test_a_call_of_an_ended_run_is_not_taken(world) -> None:
    """Reserved and never delivered: the run ended meanwhile."""
    world.runtime.held = True
    world.call(step_key=key("t0"))
    world.runs.finish(peer("desk"), run_id="run-1", attempt=1, state="failed", detail="")
    world.runtime.deliver_all()
    assert world.runtime.effects == []


@pytest.mark.parametrize("how", ["unknown", "diverged"])
def test_a_held_up_run_does_not_complete(world, how) -> None:
    """The program ended before it was told: what is open stays somebody's to settle."""
    if how == "unknown":
        unknown(world)
    else:
        diverge(world)
    attempt = world.run().attempt
    with pytest.raises(Conflict):
        world.runs.finish(peer("desk"), run_id="run-1", attempt=attempt, state="completed", detail="")
    assert world.run().state == "waiting"


def test_a_superseded_attempt_ends_nothing(world) -> None:
    """Neither the run nor the attempt that took over."""
    restart(world, 2)
    with pytest.raises(Conflict):
        world.runs.finish(peer("desk"), run_id="run-1", attempt=1, state="completed", detail="")
    with pytest.raises(Conflict):
        world.runs.end_attempt(peer("desk"), run_id="run-1", attempt=1, state="restarting", detail="")
    assert (world.run().state, world.run().attempt) == ("running", 2)


def test_no_app_releases_its_own_run(world) -> None:
    """EndAttempt of a waiting run leaves it waiting."""
    unknown(world)
    ended = world.runs.end_attempt(peer("desk"), run_id="run-1", attempt=1, state="restarting", detail="")
    assert ended.state == "waiting"


def test_continue_waits_for_what_is_still_unknown(world) -> None:
    """A diverged run with an unknown call: the word `continue` leaves it waiting for that call."""
    world.runtime.held = True
    lost = world.call(step_key=key("lost"), scope=OTHER).call_id
    world.hosts.take(peer("orders"), call_id=lost, host_instance="gone")
    diverge(world)
    world.clock.ms += 10_000_000
    world.sweeper.sweep()
    assert world.row(lost).state is State.UNKNOWN
    after = told(world, "continue")
    assert (after.state, after.detail) == ("waiting", f"unknown {lost}")
    outcome = Outcome(State.DONE, b"paid", "text")
    world.hosts.resolve(call_id=lost, outcome=outcome, operator="ada")
    assert world.run().state == "restarting"


def test_an_unknown_call_is_not_settled_by_another(world) -> None:
    """Two unknown calls: the run goes on after the second word, not after the first."""
    world.runtime.held = True
    rows = [world.call(step_key=key(name)).call_id for name in ("one", "two")]
    for call_id in rows:
        world.hosts.take(peer("orders"), call_id=call_id, host_instance="gone")
    world.clock.ms += 10_000_000
    world.sweeper.sweep()
    for call_id, state in zip(rows, ("waiting", "restarting"), strict=True):
        world.hosts.resolve(call_id=call_id, outcome=Outcome(State.FAILED, b"no"), operator="ada")
        assert world.run().state == state


def test_a_pause_survives(world) -> None:
    """A crash, a new attempt and an unknown call while it is being paused: it is paused in the end."""
    world.runtime.held = True
    call_id = world.call(step_key=key("lost")).call_id
    world.hosts.take(peer("orders"), call_id=call_id, host_instance="gone")
    told(world, "pause")
    with pytest.raises(Conflict):
        world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l2")
    crashed = world.runs.end_attempt(peer("desk"), run_id="run-1", attempt=1, state="restarting", detail="")
    assert crashed.state == "paused"
    with pytest.raises(Conflict):
        world.hosts.take(peer("orders"), call_id=call_id, host_instance="new")
    world.hosts.resolve(call_id=call_id, outcome=Outcome(State.DONE, b"x", "text"), operator="ada")
    assert world.run().state == "paused"


def test_an_ended_run_hears_no_word(world) -> None:
    """What is over is over."""
    world.runs.finish(peer("desk"), run_id="run-1", attempt=1, state="completed", detail="")
    for action in ("cancel", "pause", "resume", "continue", "fail"):
        with pytest.raises(Conflict):
            told(world, action)


def test_a_launchers_words_enter_no_record(world) -> None:
    """Details of an attempt's end may hold what a program said."""
    world.runs.end_attempt(peer("desk"), run_id="run-1", attempt=1, state="restarting", detail="card 4111")
    world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l2")
    world.runs.finish(peer("desk"), run_id="run-1", attempt=2, state="failed", detail="card 4111")
    assert "card 4111" not in json.dumps(world.records())


def test_a_large_journal_is_read_in_small_pages(world) -> None:
    """Replies that are small on disk and large in memory are not all held at once."""
    for number in range(8):
        append(world, f"m{number}", number, reply=b'"' + b"x" * 3_000_000 + b'"')
    opened = []
    get = world.vault.get
    object.__setattr__(world.journal, "vault", world.vault)
    world.vault.get = lambda tables, sealed: opened.append(sealed) or get(tables, sealed)
    stream = world.journal.read(peer("desk"), run_id="run-1", attempt=1)
    next(stream)
    assert len(opened) == 1
    assert len(list(stream)) == 7
