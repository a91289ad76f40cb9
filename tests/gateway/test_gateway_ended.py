"""An attempt that has ended makes no step; what was settled meanwhile is looked at again."""

from dataclasses import replace

import pytest
from fakes.gateway_parts import peer
from gateway.test_gateway_journal import OTHER, SCOPE, append, entries, key, restart, unknown
from meshgate_gateway.errors import Conflict, InvalidRequest
from meshgate_gateway.model import Outcome, State


def end_attempt(world, attempt: int = 1, state: str = "restarting") -> str:
    """The launcher says that its attempt is over."""
    ended = world.runs.end_attempt(peer("desk"), run_id="run-1", attempt=attempt, state=state, detail="")
    return ended.state


def told(world, action: str) -> None:
    """An operator's word about the run."""
    world.runs.control(run_id="run-1", action=action, operator="ada")


def reason_of(act) -> str:
    """Why it was refused."""
    with pytest.raises(Conflict) as caught:
        act()
    return caught.value.reason


@pytest.mark.parametrize("how", ["restarting", "paused", "waiting", "resumed"])
def test_an_ended_attempt_makes_no_step(world, how) -> None:
    """Call, reply and journal are refused from EndAttempt on, whatever the run waits for."""
    if how == "paused":
        told(world, "pause")
    if how == "waiting":
        unknown(world)
    if how == "resumed":  # the pause was lifted as the attempt ended: the run still reads `running`
        assert end_attempt(world, state="paused") == "running"
    else:
        assert end_attempt(world, state="paused" if how == "paused" else "restarting") == how
    effects = len(world.runtime.effects)
    assert reason_of(lambda: world.call(step_key=key("late"))) == "attempt_ended"
    assert reason_of(lambda: append(world, "late")) == "attempt_ended"
    assert reason_of(lambda: entries(world)) == "attempt_ended"
    assert len(world.runtime.effects) == effects


def test_what_an_ended_attempt_had_reserved_is_not_taken(world) -> None:
    """Its delivery comes late: refused; the next attempt takes it up and it has its one effect."""
    world.runtime.held = True
    world.call(step_key=key("t0"))
    end_attempt(world)
    world.runtime.deliver_all()
    assert world.runtime.refusals == ["attempt_ended"]
    restart(world, 2)
    world.runtime.held = False
    world.executor.forget(world.call(step_key=key("t0"), attempt=2).call_id)
    assert world.call(step_key=key("t0"), attempt=2).state is State.DONE
    assert len(world.runtime.effects) == 1


def test_what_had_begun_is_seen_through(world) -> None:
    """A repeatable tool that was taken before its attempt ended is taken again under the same key."""
    world.runtime.held = True
    call_id = world.call(step_key=key("k"), tool="orders.keyed").call_id
    world.hosts.take(peer("orders"), call_id=call_id, host_instance="a")
    end_attempt(world)
    assert world.hosts.take(peer("orders"), call_id=call_id, host_instance="b").row.take == 2


@pytest.mark.parametrize("how", ["restarting", "settled"])
def test_an_ended_attempt_completes_nothing(world, how) -> None:
    """It said that it is over: not also that its program came to the end, whatever was settled meanwhile."""
    if how == "settled":
        call_id = unknown(world)
        end_attempt(world)
        world.hosts.resolve(call_id=call_id, outcome=Outcome(State.DONE, b"x", "text"), operator="ada")
    else:
        end_attempt(world)
    finish = lambda: world.runs.finish(  # noqa: E731
        peer("desk"), run_id="run-1", attempt=1, state="completed", detail=""
    )
    assert reason_of(finish) == "attempt_ended"
    assert world.run().state == "restarting"
    restart(world, 2)
    assert (
        world.runs.finish(peer("desk"), run_id="run-1", attempt=2, state="completed", detail="").state
        == "completed"
    )


def test_the_launcher_of_an_ended_attempt_lives_on(world) -> None:
    """It says that it lives, ends its attempt again, and may end the run while that waits."""
    unknown(world)
    end_attempt(world)
    beat = world.runs.heartbeat(peer("desk"), run_id="run-1", attempt=1, steps=0)
    assert (beat.state, end_attempt(world)) == ("waiting", "waiting")
    world.runs.finish(peer("desk"), run_id="run-1", attempt=1, state="cancelled", detail="")
    assert world.run().state == "cancelled"


def test_a_launcher_that_begins_again_gets_a_new_attempt(world) -> None:
    """The same instance id: while its attempt lives it is the same one, after its end it is the next."""

    def begin() -> int:
        return world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l1").attempt

    assert begin() == 1
    end_attempt(world)
    assert begin() == 2
    assert world.call(attempt=2).state is State.DONE


def test_a_run_that_is_released_goes_on_in_its_next_attempt(world) -> None:
    """Waiting, its attempt ended, then settled: restarting, and the old attempt stays shut out."""
    call_id = unknown(world)
    end_attempt(world)
    world.hosts.resolve(call_id=call_id, outcome=Outcome(State.DONE, b"paid", "text"), operator="ada")
    assert world.run().state == "restarting"
    assert reason_of(lambda: world.call(step_key=key("late"))) == "attempt_ended"


def test_continue_trusts_what_came_before(world) -> None:
    """After a person's word older attempts' steps are no sign of divergence; later ones' are."""
    append(world, "m1", 1)
    restart(world, 2)
    diverging = {"step_key": key("new"), "scope": SCOPE, "turn": 0}
    assert reason_of(lambda: world.call(**diverging, attempt=2)) == "run_diverged"
    told(world, "continue")
    restart(world, 3)
    assert world.call(**diverging, attempt=3).state is State.DONE
    append(world, "m2", 2, attempt=3)
    restart(world, 4)
    again = {"step_key": key("newer"), "scope": SCOPE, "turn": 0}
    assert reason_of(lambda: world.call(**again, attempt=4)) == "run_diverged"


def test_a_call_that_moved_on_does_not_expire(world) -> None:
    """The sweeper's row is old: the host took the call meanwhile, or it was put off."""
    world.runtime.held = True
    call_id = world.call(step_key=key("t0")).call_id
    old = world.row(call_id)
    world.hosts.take(peer("orders"), call_id=call_id, host_instance="a")
    never = Outcome(State.FAILED, b"", "", "never_started")
    assert not world.hosts.expire(old, never, cause="never_started")
    taken = world.row(call_id)
    world.hosts.cut("run-1")  # the same state and take, another deadline
    assert world.row(call_id).deadline_at_ms < taken.deadline_at_ms
    assert not world.hosts.expire(taken, Outcome(State.UNKNOWN, b"", "", "timeout"), cause="deadline")
    assert world.row(call_id).state is State.SENT


def test_a_run_is_not_parked_for_a_call_that_was_settled_since(world) -> None:
    """FinishCall comes between the look at the call and the park: the run goes on."""
    world.runtime.held = True
    call_id = world.call(step_key=key("lost"), scope=OTHER).call_id
    world.hosts.take(peer("orders"), call_id=call_id, host_instance="a")
    world.clock.ms += 10_000_000
    world.sweeper.sweep()
    restart_after(world)
    read = world.store.read

    def settled_after_the_look(work):
        found = read(work)
        if isinstance(found, tuple) and getattr(found[1], "state", None) is State.UNKNOWN:
            world.broker._rooms.store.read = read
            world.hosts.finish(
                peer("orders"), call_id=call_id, take=1, host_instance="a",
                outcome=Outcome(State.DONE, b"paid", "text"),
            )  # fmt: skip
        return found

    world.broker._rooms.store.read = settled_after_the_look
    answer = world.call(step_key=key("lost"), scope=OTHER, attempt=world.run().attempt)
    assert (answer.state, world.run().state) == (State.DONE, "running")


def restart_after(world) -> None:
    """The run that waits for the call is running again, as when the park was lost with a gateway."""
    run = world.run()

    def work(tables) -> bool:
        return tables.runs.move(run, replace(run, state="running", detail=""))

    assert world.store.write(work)


def test_a_word_that_nobody_knows_is_invalid(world) -> None:
    """It is the asker's mistake, not ours."""
    with pytest.raises(InvalidRequest):
        told(world, "explode")
