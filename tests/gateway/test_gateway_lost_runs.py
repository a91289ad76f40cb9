"""Runs whose launcher gives no sign of life: shown as suspect, and ended when they were cancelled."""

from dataclasses import replace

import pytest
from fakes.gateway_parts import peer
from meshgate_gateway import runs
from meshgate_gateway.errors import Conflict


def test_a_cancelled_run_without_a_launcher_ends(world) -> None:
    """Fifteen seconds without a heartbeat, not before; recorded once; nothing acts in it any more."""
    assert world.runs.control(run_id="run-1", action="cancel", operator="ada").state == "cancelling"
    world.clock.ms += 15_000
    assert world.sweeper.sweep() == 0
    assert world.run().state == "cancelling"
    world.clock.ms += 1
    assert world.sweeper.sweep() == 1
    assert world.sweeper.sweep() == 0
    assert (world.run().state, world.run().detail) == ("cancelled", "cancelled by an operator")
    ends = [record for record in world.records("lifecycle") if record["event"] == "run_finished"]
    assert [(record["run_id"], record["state"]) for record in ends] == [("run-1", "cancelled")]
    with pytest.raises(Conflict) as caught:
        world.call()
    assert caught.value.reason == "run_ended"


def test_a_run_to_be_paused_without_a_launcher_is_paused(world) -> None:
    """Its worker died while it paused: it can be resumed, and its attempt acts no more; recorded once."""
    assert world.runs.control(run_id="run-1", action="pause", operator="ada").state == "pausing"
    world.clock.ms += 15_000
    assert world.sweeper.sweep() == 0
    world.clock.ms += 1
    assert world.sweeper.sweep() == 1
    assert world.sweeper.sweep() == 0
    assert world.run().state == "paused"
    ends = [record for record in world.records("lifecycle") if record["event"] == "attempt_ended"]
    assert [(record["run_id"], record["state"]) for record in ends] == [("run-1", "paused")]
    with pytest.raises(Conflict) as caught:
        world.call()
    assert caught.value.reason in ("attempt_ended", "run_paused")
    assert world.runs.control(run_id="run-1", action="resume", operator="ada").state == "restarting"


def test_a_launcher_that_lives_pauses_its_run_itself(world) -> None:
    """However long its step takes: its heartbeat keeps the sweeper away."""
    world.runs.control(run_id="run-1", action="pause", operator="ada")
    world.clock.ms += 60_000
    world.runs.heartbeat(peer("desk"), run_id="run-1", attempt=1, steps=0)
    assert world.sweeper.sweep() == 0
    assert world.run().state == "pausing"


def test_a_launcher_that_lives_ends_its_cancelled_run_itself(world) -> None:
    """Its heartbeat keeps the sweeper away."""
    world.runs.control(run_id="run-1", action="cancel", operator="ada")
    world.clock.ms += 60_000
    world.runs.heartbeat(peer("desk"), run_id="run-1", attempt=1, steps=0)
    assert world.sweeper.sweep() == 0
    assert world.run().state == "cancelling"


def test_a_run_at_a_terminal_that_nobody_goes_on_with_is_suspect(world) -> None:
    """Between two attempts too: after the longest rest, and not when a worker is to go on with it."""
    world.runs.end_attempt(peer("desk"), run_id="run-1", attempt=1, state="restarting", detail="status 1")
    world.clock.ms += 45_000
    assert runs.shown(world.run(), now_ms=world.clock()).state == "restarting"
    world.clock.ms += 1
    assert runs.shown(world.run(), now_ms=world.clock()).state == "suspect"
    assert world.run().state == "restarting"
    driven = replace(world.run(), driven=True)
    assert runs.shown(driven, now_ms=world.clock()).state == "restarting"


def test_a_run_is_never_ended_for_its_silence_alone(world) -> None:
    """Suspect is what people see of a silent run; stored it runs, and a heartbeat clears it."""
    world.clock.ms += 6_000
    assert runs.shown(world.run(), now_ms=world.clock()).state == "running"
    world.clock.ms += 1
    assert runs.shown(world.run(), now_ms=world.clock()).state == "suspect"
    world.clock.ms += 60_000
    assert world.sweeper.sweep() == 0
    assert world.run().state == "running"
    world.runs.heartbeat(peer("desk"), run_id="run-1", attempt=1, steps=0)
    assert runs.shown(world.run(), now_ms=world.clock()).state == "running"
