"""Runs that are cut and go on: real CrewAI under a real launcher, the journal kept by a fake gateway."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.core_gateway import CoreGateway
from fakes.fake_gateway import FakeGateway, done, pending
from gateway.conftest import make_world
from meshgate_agents.launcher.peers import descendants
from meshgate_gateway.adapters.sqlite_store import SqliteStore

PROJECT = Path(__file__).parent / "project"
PROGRAM = str(PROJECT / "durable.py")
FAST = {"backoff_seconds": 0.05}


def play(desk, shape, settings=None, **env):
    """Runs one shape of the program to the end of its run."""
    desk.env.update({name: str(value) for name, value in env.items()})
    return desk.run(sys.executable, PROGRAM, shape, **{**FAST, **(settings or {})})


def answer(ended):
    """What the program printed of its result: text, tokens, events."""
    line = next(line for line in ended.out.splitlines() if line.startswith("ANSWER "))
    return json.loads(line.removeprefix("ANSWER "))


def model_calls(desk):
    """How many calls reached the model, over all attempts."""
    path = desk.tmp / "model-calls"
    return len(path.read_text()) if path.exists() else 0


@pytest.mark.parametrize(("shape", "replies", "calls"), [("native", 4, 4), ("textual", 3, 2)])
def test_a_killed_crew_goes_on_where_it_stopped(make_desk, shape, replies, calls):
    """SIGKILL before each model reply in turn: the answer, the tokens and the events of an uncut run."""
    whole = make_desk(FakeGateway())
    expected = answer(play(whole, shape))
    assert "all paid" in expected[0]
    assert model_calls(whole) == replies
    for cut in range(1, replies):
        desk = make_desk(FakeGateway())
        ended = play(desk, shape, DIE_AT_REPLY=cut)
        assert ended.status == 0, ended.err
        assert answer(ended) == expected
        assert model_calls(desk) == replies + 1  # only the one that was cut is asked twice
        assert len(desk.gateway.logical) == calls
        assert len(desk.gateway.seen) == calls  # a finished call is not even asked again
        assert desk.gateway.ended[0][0] == "restarting"
        assert "signal 9" in desk.gateway.ended[0][1]
        assert [state for state, _ in desk.gateway.finished] == ["completed"]


def test_a_call_that_was_under_way_is_joined_with_the_same_key(desk):
    """Killed in a tool call: the next attempt asks for that one again, and for nothing else."""
    killed = []

    def behave(seen, nth):
        if seen.tool.endswith("lookup") and not killed:
            killed.append(seen.step_key)
            children = descendants(launcher.pid)
            os.kill(children[0], signal.SIGKILL)
            return pending()
        return done(f"{seen.tool} ok")

    desk.gateway.behave = behave
    launcher = subprocess.Popen(
        desk.argv(sys.executable, PROGRAM, "native", **FAST),
        cwd=desk.tmp,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = launcher.communicate(timeout=150)
    assert launcher.returncode == 0, err
    assert "all paid" in out
    asked = [seen.step_key for seen in desk.gateway.seen]
    assert asked.count(killed[0]) == 2
    assert len(set(asked)) == 4
    assert len(asked) == 5


def test_a_pydantic_reply_comes_back_as_itself(desk):
    """The class is the live call's own; nothing is imported by a name from the journal."""
    ended = play(desk, "structured")
    assert ended.out.count("TYPE Report 3") == 2
    assert "AGAIN Report" in ended.out
    assert model_calls(desk) == 2


def test_an_exception_is_tried_again_and_told_without_its_text(desk):
    """A bounded number of attempts; the record names the class, the traceback lies apart."""
    ended = play(desk, "raising", {"attempts": 3})
    assert ended.status == 1
    assert [state for state, _ in desk.gateway.ended] == ["restarting"] * 2
    assert "attempt 2 of 3" in desk.gateway.ended[0][1]
    assert "builtins.ValueError" in desk.gateway.ended[0][1]
    state, detail = desk.gateway.finished[0]
    assert state == "failed"
    assert "given up after 3 attempts" in detail
    assert not any("42" in text for _, text in [*desk.gateway.ended, *desk.gateway.finished])
    assert "ValueError: the secret is 42" in desk.gateway.tracebacks[-1]
    assert len(desk.gateway.seen) == 1  # the paid refund was never asked for again


def test_a_model_call_that_raised_is_the_same_step_when_it_is_tried_again(desk):
    """The retry's reply is what the next attempt is answered with."""
    ended = play(desk, "failing_model")
    assert ended.status == 0, ended.err
    assert ended.out.count("REPLY") == 2
    assert model_calls(desk) == 2  # one that raised, one that replied; none in the second attempt


@pytest.mark.parametrize(
    ("shape", "why"),
    [("large", "a model step of 40"), ("odd", "a reply of class odd.<locals>.Odd cannot be journaled")],
)
def test_a_step_that_can_never_be_recorded_ends_the_run_at_once(desk, shape, why):
    """The model is not asked once more for the same end; the run's detail says why it failed."""
    ended = play(desk, shape)
    assert ended.status == 125
    assert model_calls(desk) == 1
    [(state, detail)] = desk.gateway.finished
    assert (state, detail[: len(why)]) == ("failed", why)
    assert why in ended.err


def test_a_silent_process_is_replaced(desk):
    """A child that is stopped gives no sign of life: it is killed, and the run goes on."""

    def behave(seen, nth):
        if not stopped:
            stopped.append(True)
            os.kill(descendants(launcher.pid)[0], signal.SIGSTOP)
        return done("ok")

    stopped: list[bool] = []
    desk.gateway.behave = behave
    launcher = subprocess.Popen(
        desk.argv(sys.executable, PROGRAM, "native", **FAST),
        cwd=desk.tmp,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = launcher.communicate(timeout=150)
    assert launcher.returncode == 0, err
    assert "gave no sign of life" in desk.gateway.ended[0][1]
    assert "all paid" in out


def test_a_replay_of_a_finished_run_is_equal(desk):
    """No model is asked, no tool called, nothing written; the program says what it said."""
    first = play(desk, "native")
    asked, written = len(desk.gateway.seen), len(desk.gateway.journal)
    again = play(desk, "native", {"replay": True, "run_id": desk.gateway.runs[0]})
    assert again.status == 0, again.err
    assert answer(again) == answer(first)
    assert "equal, all 8 steps" in again.err
    assert model_calls(desk) == 4
    assert (len(desk.gateway.seen), len(desk.gateway.journal)) == (asked, written)
    assert (len(desk.gateway.runs), len(desk.gateway.finished)) == (1, 1)


def test_a_replay_shows_the_first_difference(desk):
    """A program that has changed since: it stops at the first step that is not on record."""
    play(desk, "native")
    again = play(desk, "textual", {"replay": True, "run_id": desk.gateway.runs[0]})
    assert again.status == 1
    assert "first difference: a model call at turn 0" in again.err
    assert "(Clerk: " in again.err
    assert "recorded is step 1 instead" in again.err
    assert model_calls(desk) == 4
    assert len(desk.gateway.seen) == 4


def test_a_replay_that_asks_for_less_is_told(desk):
    """Recorded steps that the program no longer makes."""
    play(desk, "native")
    again = play(desk, "nothing", {"replay": True, "run_id": desk.gateway.runs[0]})
    assert again.status == 1
    assert "8 recorded steps were not asked for" in again.err


@pytest.mark.parametrize("shape", ["clock", "changing"])
def test_an_effect_that_may_have_happened_under_other_inputs_is_not_repeated(desk, shape):
    """An attempt that never asks for a recorded effect and wants one of that tool: the gateway is told."""
    ended = play(desk, shape, {"attempts": 2}, DIE_AT_REPLY=1)
    assert ended.status != 0
    assert [tool for tool, _ in desk.gateway.logical] == ["desk.refund"] * 2
    first, second = (seen.step_key for seen in desk.gateway.seen)
    assert desk.gateway.strays == [(second, first)]


@pytest.mark.parametrize("how", ["", "1"])
def test_a_recorded_reply_does_not_wait_for_max_rpm(make_desk, how):
    """What is asked live does, before as after the kill; a later attempt's thread never rests for nothing."""
    desk = make_desk(FakeGateway())
    desk.env["ASYNC"] = how
    ended = play(desk, "limited", DIE_AT_REPLY="2")
    assert ended.status == 0, ended.err
    assert "all paid" in answer(ended)[0]
    assert (desk.tmp / "waits").read_text() == "11"  # before its second and third live reply, once each


def test_a_guardrail_that_has_the_work_done_again_pays_once(make_desk, tmp_path):
    """CrewAI's own retry, twins of one reply before it, and the gateway's real core: one effect."""
    world = make_world(SqliteStore(path=tmp_path / "gateway.db"))
    desk = make_desk(CoreGateway(world=world))
    desk.tools = [{**tool, "tool": tool["tool"].replace("desk.", "orders.")} for tool in desk.tools]
    ended = play(desk, "guarded")
    assert ended.status == 0, ended.err
    assert "all paid" in answer(ended)[0]
    assert model_calls(desk) == 4  # the retry did ask again
    assert len(world.runtime.effects) == 1
    outcomes = world.records("outcome")
    assert [record.get("repeats") for record in outcomes] == [None, *world.runtime.effects * 2]
    world.store.close()
