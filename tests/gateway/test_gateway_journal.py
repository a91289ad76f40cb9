"""The journal and the states of runs, below the wire: real store, real core."""

import hashlib
import json

import pytest
from fakes.gateway_parts import deny, peer
from meshgate_gateway.adapters import wire
from meshgate_gateway.errors import Conflict, InvalidRequest, Missing
from meshgate_gateway.ledger import SETTLED
from meshgate_gateway.model import Outcome, State, Step

SCOPE, OTHER = (hashlib.sha256(name).hexdigest() for name in (b"scope", b"other"))


def key(name: str) -> str:
    """A step key."""
    return hashlib.sha256(name.encode()).hexdigest()


def step(name: str, turn: int = 0, scope: str = SCOPE) -> Step:
    """A model step."""
    return Step(key(name), scope, turn, "model")


def append(world, name, turn=0, *, attempt=1, reply=b'"well"', run_id="run-1", app="desk", scope=SCOPE):
    """Records a model's reply."""
    world.journal.append(
        peer(app),
        run_id=run_id,
        attempt=attempt,
        step=step(name, turn, scope),
        request=b'{"messages":[]}',
        reply=reply,
        milliseconds=7,
    )


def restart(world, attempt: int) -> None:
    """The next attempt of the run begins."""
    assert world.runs.start_attempt(peer("desk"), run_id="run-1", launcher=f"l{attempt}").attempt == attempt


def entries(world, attempt=1):
    """The journal as an attempt reads it: key to what the step gave."""
    return {
        entry.step.key: (entry.reply, entry.row.state if entry.row else None)
        for entry in read(world, attempt)
    }


def read(world, attempt):
    """The journal's entries, as they are sent."""
    return list(world.journal.read(peer("desk"), run_id="run-1", attempt=attempt))


def test_a_new_attempt_reads_what_was_finished(world) -> None:
    """Model replies and settled calls, in clear for the run's own app; open calls are not in it."""
    append(world, "m0")
    world.call(step_key=key("t0"))
    world.policy.answer = deny("tool_not_granted")
    world.call(step_key=key("t1"))
    restart(world, 2)
    found = entries(world, 2)
    assert found[key("m0")] == (b'"well"', None)
    assert found[key("t0")][1] is State.DONE
    assert json.loads(found[key("t0")][0]) == {"amount": 20, "order": "A1"}
    assert found[key("t1")] == (b"", State.DENIED)


def test_a_large_reply_is_kept_whole(world) -> None:
    """Compressed in the store, equal when it is read."""
    reply = json.dumps({"text": "x" * 1_000_000}).encode()
    append(world, "m0", reply=reply)
    assert entries(world)[key("m0")][0] == reply
    stored = world.store.read(
        lambda tables: tables.payloads.get(tables.journal.get("run-1", key("m0")).reply.payload_id)
    )
    assert stored.codec == "zlib"
    assert len(stored.data) < 20_000


def test_the_same_reply_again_is_no_error_another_is(world) -> None:
    """A reply whose acknowledgement was lost is sent again; a step has one reply for ever."""
    append(world, "m0")
    append(world, "m0")
    assert len(world.records("step")) == 1
    with pytest.raises(Conflict) as caught:
        append(world, "m0", reply=b'"other"')
    assert caught.value.reason == "step_changed"
    assert [record["reason"] for record in world.records("refusal")] == ["step_changed"]
    assert entries(world)[key("m0")][0] == b'"well"'


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attempt": 0}, "attempt_superseded"),
        ({"attempt": 2}, "attempt_superseded"),
        ({"run_id": "nowhere"}, "run_unknown"),
        ({"app": "rival"}, "run_unknown"),
        ({"reply": b"x" * 3_200_000}, "step_too_large"),
        ({"scope": "short"}, "step_place_invalid"),
        ({"turn": -1}, "step_place_invalid"),
    ],
)
def test_a_step_that_is_not_the_attempts_own_is_refused(world, change, reason) -> None:
    """Stale, foreign, unknown, oversized or misshapen: one record, nothing stored."""
    with pytest.raises((Conflict, InvalidRequest, Missing)) as caught:
        append(world, "m0", **change)
    assert caught.value.reason == reason
    assert [record["reason"] for record in world.records("refusal")] == [reason]
    assert entries(world) == {}


def test_a_stale_attempt_reads_nothing(world) -> None:
    """The journal is the current attempt's."""
    append(world, "m0")
    restart(world, 2)
    with pytest.raises(Conflict):
        entries(world, 1)


def test_a_key_is_of_one_kind(world) -> None:
    """A model's step cannot take a call's key, nor a call a model step's."""
    world.call(step_key=key("t0"))
    with pytest.raises(Conflict) as caught:
        append(world, "t0")
    assert caught.value.reason == "step_kind"
    append(world, "m0")
    with pytest.raises(Conflict) as caught:
        world.call(step_key=key("m0"))
    assert caught.value.reason == "step_kind"
    assert len(world.runtime.effects) == 1


def test_a_run_that_does_not_repeat_itself_waits_before_it_acts(world) -> None:
    """An effect where an earlier attempt had gone on to another model call: held up, both sides shown."""
    append(world, "m0", 0)
    append(world, "m1", 1)
    restart(world, 2)
    with pytest.raises(Conflict) as caught:
        world.call(step_key=key("new"), scope=SCOPE, turn=1, attempt=2)
    assert caught.value.reason == "run_diverged"
    run = world.run("run-1")
    assert run.state == "waiting"
    assert run.detail.startswith("diverged: orders.refund at turn 1, where attempt 1")
    assert world.runtime.effects == []
    with pytest.raises(Conflict) as caught:
        world.call(step_key=key("next"), attempt=2)
    assert caught.value.reason == "run_waiting"
    with pytest.raises(Conflict) as caught:
        world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l3")
    assert caught.value.reason == "run_waiting"
    assert world.runtime.effects == []


def test_what_a_person_said_of_a_diverged_run_holds(world) -> None:
    """Continue: what older attempts did is no longer held against it. Fail: it is over."""
    append(world, "m1", 1)
    restart(world, 2)
    with pytest.raises(Conflict):
        world.call(step_key=key("new"), scope=SCOPE, turn=0, attempt=2)
    assert world.runs.control(run_id="run-1", action="continue", operator="ada").state == "restarting"
    restart(world, 3)
    assert world.call(step_key=key("new"), scope=SCOPE, turn=0, attempt=3).state is State.DONE
    last = [record for record in world.records("lifecycle") if record["event"] == "run_continue"]
    assert [record["operator"] for record in last] == ["ada"]


def test_an_effect_that_is_left_out_holds_the_next_one_of_its_tool(world) -> None:
    """Other inputs are another scope: the same effect may be asked for under another key."""
    assert world.call(step_key=key("paid"), scope=SCOPE).state is State.DONE
    world.call(step_key=key("read"), scope=SCOPE, tool="orders.lookup", arguments={"order": "A1"})
    restart(world, 2)
    assert [entry.effect_of for entry in read(world, 2)] == ["orders.refund", ""]
    for sound in (
        {"step_key": key("other tool"), "left_out": key("read")},
        {"step_key": key("nobody's"), "left_out": key("nothing")},
        {"step_key": key("reads"), "left_out": key("paid"), "tool": "orders.lookup"},
    ):
        arguments = {"order": sound["step_key"], "amount": 1} if "tool" not in sound else {"order": "A1"}
        assert world.call(scope=OTHER, attempt=2, arguments=arguments, **sound).state is State.DONE
    with pytest.raises(Conflict) as caught:
        world.call(step_key=key("paid?"), scope=OTHER, attempt=2, left_out=key("paid"))
    assert caught.value.reason == "run_diverged"
    run = world.run("run-1")
    assert (run.state, "had made, was not asked for" in run.detail) == ("waiting", True)
    assert world.runs.control(run_id="run-1", action="continue", operator="ada").state == "restarting"
    restart(world, 3)
    assert {entry.effect_of for entry in read(world, 3)} == {""}
    assert world.call(step_key=key("paid?"), scope=OTHER, attempt=3, left_out=key("paid")).state is State.DONE


@pytest.mark.parametrize(("error_class", "counts"), [("ToolRaised", True), ("not_begun", False)])
def test_a_failure_may_have_had_its_effect(world, error_class, counts) -> None:
    """A tool that raised after it paid is left out like one that succeeded; one that never began is not."""
    world.runtime.held = True
    call_id = world.call(step_key=key("paid"), scope=SCOPE).call_id
    world.hosts.take(peer("orders"), call_id=call_id, host_instance="h1")
    failed = Outcome(State.FAILED, b"after the payment", "", error_class)
    world.hosts.finish(peer("orders"), call_id=call_id, take=1, host_instance="h1", outcome=failed)
    restart(world, 2)
    assert [entry.effect_of for entry in read(world, 2)] == (["orders.refund"] if counts else [""])
    if counts:
        with pytest.raises(Conflict, match="run_diverged"):
            world.call(step_key=key("paid?"), scope=OTHER, attempt=2, left_out=key("paid"))


def test_an_effect_that_was_under_way_is_left_out_too(world) -> None:
    """Its host may be at it when the attempt dies: it is told without an answer, and counts."""
    world.runtime.held = True
    call_id = world.call(step_key=key("paid"), scope=SCOPE).call_id
    world.hosts.take(peer("orders"), call_id=call_id, host_instance="h1")
    restart(world, 2)
    (told,) = (wire.entry(entry) for entry in read(world, 2))
    assert (told.effect_of, told.HasField("answer"), told.step.key) == ("orders.refund", False, key("paid"))
    with pytest.raises(Conflict) as caught:
        world.call(step_key=key("paid?"), scope=OTHER, attempt=2, left_out=key("paid"))
    assert caught.value.reason == "run_diverged"


@pytest.mark.parametrize(
    "place",
    [
        {"scope": SCOPE, "turn": 2},  # the turn at which the last attempt was cut
        {"scope": OTHER, "turn": 0},  # another scope
        {"scope": SCOPE, "turn": 0, "tool": "orders.lookup", "arguments": {"order": "A1"}},  # reads
    ],
)
def test_siblings_of_a_crash_are_no_divergence(world, place) -> None:
    """The last turn's unasked calls, other scopes, and what only reads: they go on."""
    append(world, "m0", 0)
    append(world, "m1", 1)
    restart(world, 2)
    assert world.call(step_key=key("new"), attempt=2, **place).state is State.DONE
    assert world.run("run-1").state == "running"


def test_a_model_call_that_differs_goes_on_and_is_noted(world) -> None:
    """A changed prompt has no effect by itself; the record shows where."""
    append(world, "m0", 0)
    restart(world, 2)
    append(world, "changed", 0, attempt=2)
    events = [record["event"] for record in world.records("lifecycle")]
    assert events.count("run_differs") == 1
    assert world.run("run-1").state == "running"


def test_an_unknown_call_holds_its_run_until_it_is_settled(world) -> None:
    """Parked by the same transaction; a person's word settles it, is on record, and lets the run go on."""
    call_id = unknown(world)
    assert (world.run("run-1").state, world.run("run-1").detail) == ("waiting", f"unknown {call_id}")
    with pytest.raises(Conflict):
        world.runs.control(run_id="run-1", action="continue", operator="ada")
    outcome = Outcome(State.DONE, b"paid on Monday", "text")
    assert world.hosts.resolve(call_id=call_id, outcome=outcome, operator="ada (uid 7)") is State.DONE
    assert world.run("run-1").state == "restarting"
    assert world.records("outcome")[-1]["settled_by"] == "operator ada (uid 7)"
    restart(world, 2)
    answer = world.call(step_key=key("lost"), attempt=2)
    assert (answer.state, answer.result) == (State.DONE, b"paid on Monday")
    assert len(world.runtime.effects) == 0


def test_only_an_unknown_call_is_resolved_by_a_person(world) -> None:
    """A settled call keeps its outcome; an unknown one takes done or failed, nothing else."""
    done = world.call(step_key=key("t0"))
    with pytest.raises(Conflict):
        world.hosts.resolve(call_id=done.call_id, outcome=Outcome(State.FAILED, b""), operator="ada")
    with pytest.raises(Missing):
        world.hosts.resolve(call_id="c" + "0" * 40, outcome=Outcome(State.FAILED, b""), operator="ada")
    call_id = unknown(world)
    with pytest.raises(InvalidRequest):
        world.hosts.resolve(call_id=call_id, outcome=Outcome(State.UNKNOWN, b""), operator="ada")


def test_a_call_that_a_person_calls_failed_says_so(world) -> None:
    """Also where no reason is given: the program is not told of a failure with nothing behind it."""
    call_id = unknown(world)
    outcome = Outcome(State.FAILED, b" ", "", "resolved")
    assert world.hosts.resolve(call_id=call_id, outcome=outcome, operator="ada") is State.FAILED
    restart(world, 2)
    answer = world.call(step_key=key("lost"), attempt=2)
    assert (answer.state, answer.message) == (State.FAILED, "a person says that it failed")


def test_a_late_outcome_of_the_host_lets_the_run_go_on(world) -> None:
    """FinishCall after all: the run waits no longer."""
    call_id = unknown(world)
    row = world.store.read(lambda tables: tables.calls.get(call_id))
    state = world.hosts.finish(
        peer("orders"),
        call_id=call_id,
        take=row.take,
        host_instance=row.host_instance,
        outcome=Outcome(State.DONE, b"late", "text"),
    )
    assert state is State.DONE
    assert world.run("run-1").state == "restarting"


def unknown(world) -> str:
    """A call that was taken by a host that is gone."""
    world.runtime.held = True
    call_id = world.call(step_key=key("lost")).call_id
    world.hosts.take(peer("orders"), call_id=call_id, host_instance="gone")
    with pytest.raises(Conflict):
        world.hosts.take(peer("orders"), call_id=call_id, host_instance="new")
    world.runtime.held = False
    return call_id


def test_a_call_that_has_not_begun_is_put_to_the_policy_again(world) -> None:
    """After a crash the policy in force now decides; both verdicts are on record, nothing ran."""
    world.runtime.held = True
    world.call(step_key=key("t0"))
    restart(world, 2)
    world.policy.answer = deny("closed_today")
    answer = world.call(step_key=key("t0"), attempt=2)
    assert (answer.state, answer.reasons) == (State.DENIED, ("closed_today",))
    assert [record["allow"] for record in world.records("decision")] == [True, False]
    world.runtime.deliver_all()
    assert world.runtime.effects == []


def test_pause_and_resume(world) -> None:
    """A paused run begins no attempt; a resumed one does."""
    assert world.runs.control(run_id="run-1", action="pause", operator="ada").state == "pausing"
    ended = world.runs.end_attempt(peer("desk"), run_id="run-1", attempt=1, state="paused", detail="")
    assert ended.state == "paused"
    with pytest.raises(Conflict):
        world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l2")
    assert world.runs.control(run_id="run-1", action="resume", operator="ada").state == "restarting"
    restart(world, 2)


def test_cancel_cuts_what_has_not_begun(world) -> None:
    """A reserved call fails as never started; the run takes no further call and ends cancelled."""
    world.runtime.held = True
    call_id = world.call(step_key=key("t0")).call_id
    assert world.runs.control(run_id="run-1", action="cancel", operator="ada").state == "cancelling"
    world.hosts.cut("run-1")
    row = world.store.read(lambda tables: tables.calls.get(call_id))
    assert (row.state, row.error_class) == (State.FAILED, "never_started")
    with pytest.raises(Conflict):
        world.call(step_key=key("t1"))
    run = world.runs.finish(peer("desk"), run_id="run-1", attempt=1, state="cancelled", detail="")
    assert run.state == "cancelled"
    world.runtime.deliver_all()
    assert world.runtime.effects == []
    assert row.state in SETTLED


def test_a_run_id_with_another_input_is_another_run(world) -> None:
    """The same id and input is the same run; another input is refused."""
    for twofold in (b'{"a":1,"a":2}', b'["\\ud800"]'):
        with pytest.raises(InvalidRequest):
            world.runs.start(peer("desk"), run_id="r2", input_json=twofold)
    reasons = [row["reason"] for row in world.records("refusal")]
    assert reasons == ["input_duplicate_key", "input_not_json"]
    first = world.runs.start(peer("desk"), run_id="r2", input_json=b'{"a":1}')
    assert world.runs.start(peer("desk"), run_id="r2", input_json=b'{"a":1}') == first
    with pytest.raises(Conflict) as caught:
        world.runs.start(peer("desk"), run_id="r2", input_json=b'{"a":2}')
    assert caught.value.reason == "run_changed_input"


def test_a_traceback_lies_where_clear_text_lies(world) -> None:
    """Neither the run's row nor any record holds it."""
    world.runs.end_attempt(
        peer("desk"),
        run_id="run-1",
        attempt=1,
        state="restarting",
        detail="status 1",
        traceback=b"the secret",
    )
    run = world.run("run-1")
    assert world.store.read(lambda tables: world.vault.get(tables, run.traceback)) == b"the secret"
    assert not any("the secret" in json.dumps(record) for record in world.records())
