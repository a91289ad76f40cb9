"""Forks and re-runs below the wire: what is copied, what is marked, what may happen again."""

import hashlib
import json
from dataclasses import replace

import pytest
from fakes.gateway_parts import deny, peer
from meshgate_agents.child.replies import TOOL_CALLS
from meshgate_gateway import edits, steps
from meshgate_gateway.errors import (
    Conflict,
    InvalidRequest,
    Missing,
    NotPermitted,
    Refused,
    StoreUnavailable,
)
from meshgate_gateway.history import BranchOrder
from meshgate_gateway.model import Outcome, State, Step

SCOPE, TASK = (hashlib.sha256(name).hexdigest() for name in (b"scope", b"task"))


def key(name: str) -> str:
    """A step key."""
    return hashlib.sha256(name.encode()).hexdigest()


def reply(text: str) -> bytes:
    """What an agent journals of a text reply."""
    return json.dumps({"reply": {"type": "text", "value": text}, "trace": {"usage": []}}).encode()


def append(world, name, turn, *, run_id="run-1", attempt=1, text=None) -> None:
    """Records a model's reply, a moment later than the step before."""
    world.clock.ms += 10
    world.journal.append(
        peer("desk"),
        run_id=run_id,
        attempt=attempt,
        step=Step(key(name), SCOPE, turn, "model"),
        request=b'{"messages":[]}',
        reply=reply(text or name),
        milliseconds=7,
    )


def call(world, name, turn, **more):
    """A tool call of the task, a moment later than the step before."""
    world.clock.ms += 10
    return world.call(step_key=key(name), scope=SCOPE, turn=turn, task=TASK, **more)


def worked(world) -> None:
    """Five steps: a reply, a look-up, a reply, a refund, a last reply. Then the run is over."""
    append(world, "m0", 0)
    call(world, "look", 1, tool="orders.lookup", arguments={"order": "A1"})
    append(world, "m1", 1)
    call(world, "pay", 2)
    append(world, "m2", 2)
    finish(world)


def finish(world, run_id="run-1", attempt=1, state="completed") -> None:
    """The run ends."""
    world.runs.finish(peer("desk"), run_id=run_id, attempt=attempt, state=state, detail="exit status 0")


def order(**changed) -> BranchOrder:
    """A fork of run-1 after three steps."""
    whole = BranchOrder("run-1", "fork-1", "fork", 3, b"", "ann (uid 7)")
    return replace(whole, **changed)


def made(world, **changed):
    """Makes it, and begins its first attempt."""
    branch = world.history.make(order(**changed))
    run_id = branch.run.run_id
    world.runs.start_attempt(peer("desk"), run_id=run_id, launcher="l1")
    return branch


def rows(world, run_id):
    """The steps of a run, in order."""
    return world.store.read(lambda tables: steps.of_run(tables, run_id))


def answers(world, run_id, attempt=1):
    """What a run's attempt is answered with: (key, text) in order."""
    read = world.journal.read(peer("desk"), run_id=run_id, attempt=attempt)
    return [(entry.step.key, entry.reply) for entry in read]


def test_a_fork_holds_the_first_steps_and_executes_none(world) -> None:
    """Answers are the old run's, ids are new, nothing ran, and each copy is on record with who and whence."""
    worked(world)
    before, effects = rows(world, "run-1"), list(world.runtime.effects)
    made(world)
    assert answers(world, "fork-1") == answers_of(world, before[:3])
    look = rows(world, "fork-1")[1]
    assert look.state is State.DONE
    assert look.call_id != before[1].call_id == look.copied_from
    assert (look.take, look.attempt) == (0, 0)
    assert world.runtime.effects == effects
    assert rows(world, "run-1") == before
    copies = world.records("copy")
    assert [(c["step"], c["origin_run"], c["run_id"], c["operator"]) for c in copies] == [
        (number, "run-1", "fork-1", "ann (uid 7)") for number in (1, 2, 3)
    ]
    assert (copies[1]["origin_call_id"], copies[1]["call_id"]) == (before[1].call_id, look.call_id)
    (record,) = [r for r in world.records("lifecycle") if r["event"] == "run_fork"]
    assert (record["operator"], record["origin_run"], record["origin_step"]) == ("ann (uid 7)", "run-1", 3)


def answers_of(world, found):
    """The answers of rows, as a journal gives them."""
    gave = [row.reply if hasattr(row, "reply") else row.result for row in found]
    texts = world.store.read(lambda tables: [world.vault.get(tables, sealed) for sealed in gave])
    return [(row.step_key, text) for row, text in zip(found, texts, strict=True)]


def test_a_fork_answers_what_it_holds_and_acts_behind_it(world) -> None:
    """The copied call is answered without a host; the next one is a call of its own, with its own effect."""
    worked(world)
    made(world)
    before = len(world.runtime.effects)
    answer = call(world, "look", 1, tool="orders.lookup", arguments={"order": "A1"}, run_id="fork-1")
    assert (answer.state, json.loads(answer.result)) == (State.DONE, {"order": "A1"})
    assert len(world.runtime.effects) == before
    paid = call(world, "pay", 2, run_id="fork-1")
    assert paid.state is State.DONE
    assert world.runtime.effects[before:] == [paid.call_id]


def test_nobody_can_execute_a_copied_call(world) -> None:
    """A host that asks for it is refused; the ledger takes no copy that is not settled."""
    worked(world)
    made(world, steps=4)
    pay = rows(world, "fork-1")[3]
    with pytest.raises(Conflict) as caught:
        world.hosts.take(peer("orders"), call_id=pay.call_id, host_instance="i")
    assert caught.value.reason == "call_settled"
    with pytest.raises(Conflict) as caught:
        world.hosts.finish(
            peer("orders"), call_id=pay.call_id, take=0, host_instance="i",
            outcome=Outcome(State.DONE, b"x", "text"),
        )  # fmt: skip
    assert caught.value.reason == "call_not_taken"
    for wrong in ({"state": State.RESERVED}, {"state": State.UNKNOWN}, {"take": 1}):
        row = replace(pay, call_id="c" + "0" * 40, **wrong)
        with pytest.raises(RuntimeError):
            world.store.write(lambda tables, row=row: tables.calls.insert(row))


def test_policy_sees_where_a_run_comes_from(world) -> None:
    """The run's row says it; the request cannot."""
    worked(world)
    assert world.policy.asked[-1]["run"]["origin"] == "start"
    made(world)
    call(world, "pay", 2, run_id="fork-1", untrusted={"origin": "start"})
    assert world.policy.asked[-1]["run"] == {"id": "fork-1", "attempt": 1, "origin": "fork", "labels": {}}
    made(world, new_run_id="again", origin="rerun", steps=0)
    call(world, "pay", 2, run_id="again")
    assert world.policy.asked[-1]["run"]["origin"] == "rerun"
    run = world.run("again")
    assert (run.origin, run.origin_run, run.origin_step) == ("rerun", "run-1", 0)


def test_a_rerun_begins_with_nothing(world) -> None:
    """The same input, an empty journal, and every effect of the old run listed."""
    worked(world)
    branch = made(world, new_run_id="again", origin="rerun", steps=0)
    assert rows(world, "again") == []
    assert json.loads(branch.given)["command"] == ["true"]
    assert [(number, row.tool) for number, row in branch.effects] == [(4, "orders.refund")]
    assert world.records("copy") == []


def test_what_may_happen_again_is_told(world) -> None:
    """Calls behind the fork that changed something, or may have; nothing is made."""
    worked(world)
    plan = world.history.plan(order())
    assert [(number, row.tool) for number, row in plan.effects] == [(4, "orders.refund")]
    assert world.history.plan(order(steps=4)).effects == []
    edit = json.dumps({"step": 3, "reply": {"type": "text", "value": "no"}}).encode()
    assert [number for number, _ in world.history.plan(order(steps=5, edit=edit)).effects] == [4]
    assert world.run("fork-1") is None
    made(world, steps=4)
    finish(world, "fork-1")
    rerun = world.history.plan(order(run_id="fork-1", new_run_id="x", origin="rerun", steps=0))
    assert [row.tool for _, row in rerun.effects] == ["orders.refund"]


def test_denied_and_unbegun_calls_are_no_effects(world) -> None:
    """What never touched anything cannot happen again; what nobody knows of can."""
    world.policy.answer = deny("tool_not_granted")
    call(world, "denied", 0)
    world.policy.answer = {"allow": True, "reasons": [], "approval": None, "obligations": {}}
    world.runtime.held = True
    call(world, "unbegun", 0, arguments={"order": "B", "amount": 1})
    call(world, "lost", 0, arguments={"order": "C", "amount": 1})
    lost = rows(world, "run-1")[2]
    world.hosts.take(peer("orders"), call_id=lost.call_id, host_instance="gone")
    world.runs.control(run_id="run-1", action="cancel", operator="ann")
    world.hosts.cut("run-1")
    world.clock.ms += 20_000
    world.sweeper.sweep()
    assert [row.state for row in rows(world, "run-1")] == [State.DENIED, State.FAILED, State.UNKNOWN]
    plan = world.history.plan(order(new_run_id="x", origin="rerun", steps=0))
    assert [number for number, _ in plan.effects] == [3]
    with pytest.raises(Conflict) as caught:
        world.history.make(order())
    assert caught.value.reason == "step_not_settled"
    branch = world.history.make(order(steps=2))
    assert [row.state for row in rows(world, branch.run.run_id)] == [State.DENIED, State.FAILED]


@pytest.mark.parametrize(
    ("state", "reason"),
    [("running", "run_not_ended"), ("paused", "run_not_ended"), ("waiting", "run_not_ended")],
)
def test_a_run_that_is_not_over_is_not_branched(world, state, reason) -> None:
    """Running or held up: refused, nothing stored."""
    append(world, "m0", 0)
    run = world.run()
    world.store.write(lambda tables: tables.runs.move(run, replace(run, state=state)))
    for wanted in (order(steps=1), order(origin="rerun", steps=0)):
        with pytest.raises(Conflict) as caught:
            world.history.make(wanted)
        assert caught.value.reason == reason
    assert world.run("fork-1") is None


def test_a_foreign_run_is_not_branched(world) -> None:
    """An app that this mesh does not have: a store may be shared."""
    worked(world)
    run = replace(world.run(), run_id="theirs", app="spiffe://desk.example/ns/other/desk")
    world.store.write(lambda tables: tables.runs.insert(run))
    with pytest.raises(NotPermitted) as caught:
        world.history.make(order(run_id="theirs", origin="rerun", steps=0))
    assert caught.value.reason == "run_foreign"


@pytest.mark.parametrize(
    ("changed", "kind", "reason"),
    [
        ({"run_id": "nowhere"}, Missing, "run_unknown"),
        ({"steps": 6}, InvalidRequest, "from_step_invalid"),
        ({"steps": 0}, InvalidRequest, "from_step_invalid"),
        ({"origin": "rerun"}, InvalidRequest, "from_step_invalid"),
        ({"origin": "start"}, InvalidRequest, "origin_invalid"),
        ({"new_run_id": "no/run"}, InvalidRequest, "run_id_invalid"),
        ({"new_run_id": "run-1"}, Conflict, "run_taken"),
    ],
)
def test_an_order_that_cannot_be_is_refused(world, changed, kind, reason) -> None:
    """Each with its own reason; the old run stays as it was."""
    worked(world)
    before = rows(world, "run-1"), world.run()
    with pytest.raises(kind) as caught:
        world.history.make(order(**changed))
    assert caught.value.reason == reason
    assert (rows(world, "run-1"), world.run()) == before


def edit(**what) -> bytes:
    """An edit's JSON."""
    return json.dumps(what).encode()


def test_an_edited_reply_stands_in_the_fork_alone(world) -> None:
    """Token usage and events stay the recorded ones; both versions are on record by their commitments."""
    worked(world)
    before = rows(world, "run-1")
    made(world, edit=edit(step=3, reply={"type": "text", "value": "pay less"}))
    _, text = answers(world, "fork-1")[2]
    assert json.loads(text) == {"reply": {"type": "text", "value": "pay less"}, "trace": {"usage": []}}
    assert rows(world, "run-1") == before
    record = world.records("copy")[2]
    assert record["edited"]["before"]["hmac_sha256"] == before[2].reply.commitment
    assert record["edited"]["after"]["hmac_sha256"] == rows(world, "fork-1")[2].reply.commitment
    assert record["edited"]["before"] != record["edited"]["after"]
    assert "edited" not in world.records("copy")[1]


@pytest.mark.parametrize(
    ("result", "state", "kind", "text"),
    [
        ({"type": "text", "value": "nothing"}, State.DONE, "text", b"nothing"),
        ({"type": "json", "value": {"cost": 5}}, State.DONE, "json", b'{"cost": 5}'),
        ({"type": "failed", "value": "no such order"}, State.FAILED, "", b"no such order"),
    ],
)
def test_an_edited_result_answers_the_call(world, result, state, kind, text) -> None:
    """The fork's call has the edited answer, settled, and still nothing runs."""
    worked(world)
    before = len(world.runtime.effects)
    made(world, edit=edit(step=2, result=result))
    row = rows(world, "fork-1")[1]
    assert (row.state, row.result_kind, answers(world, "fork-1")[1][1]) == (state, kind, text)
    call(world, "look", 1, tool="orders.lookup", arguments={"order": "A1"}, run_id="fork-1")
    assert len(world.runtime.effects) == before


TEXT = {"type": "text", "value": "x"}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense",
        b"[]",
        edit(step=3),
        edit(reply=TEXT),
        edit(step=3, reply=TEXT, result=TEXT),
        edit(step=3, reply=TEXT, note="x"),
        edit(step=0, reply=TEXT),
        edit(step=True, reply=TEXT),
        edit(step="3", reply=TEXT),
        edit(step=4, result=TEXT),
        edit(step=2, reply=TEXT),
        edit(step=3, result=TEXT),
        edit(step=3, reply="x"),
        edit(step=3, reply={"type": "text"}),
        edit(step=3, reply={"type": "text", "value": 7}),
        edit(step=3, reply={"type": "pickle", "value": "x"}),
        edit(step=3, reply={**TEXT, "more": 1}),
        edit(step=3, reply={"type": "tool_calls", "items": []}),
        edit(step=3, reply={"type": "tool_calls", "items": [{"class": "os:system", "value": {}}]}),
        edit(step=3, reply={"type": "shaped_calls", "items": [{"id": "a", "name": "b", "arguments": {}}]}),
        edit(step=2, result={"type": "unknown", "value": "x"}),
        edit(step=2, result={"type": "text", "value": ["x"]}),
        b'{"step": 3, "step": 3, "reply": {"type": "text", "value": "x"}}',
        b'{"step": 3, "reply": {"type": "json", "value": NaN}}',
    ],
)
def test_an_edit_of_another_shape_is_refused(world, raw) -> None:
    """Strictly, and nothing is stored; an empty file is no edit that could be meant."""
    worked(world)
    if not raw:
        with pytest.raises(Refused):
            edits.parse(raw)
        return
    with pytest.raises(InvalidRequest) as caught:
        world.history.make(order(edit=raw))
    assert caught.value.reason == "edit_invalid"
    assert world.run("fork-1") is None


def test_a_denial_cannot_be_edited_away(world) -> None:
    """What policy refused stays refused in every fork."""
    world.policy.answer = deny("tool_not_granted")
    call(world, "denied", 0)
    finish(world)
    with pytest.raises(Conflict) as caught:
        world.history.make(order(steps=1, edit=edit(step=1, result=TEXT)))
    assert caught.value.reason == "step_not_editable"


def test_edits_know_the_classes_that_agents_know() -> None:
    """The two lists are one: a class that passes here is restored there."""
    assert {":".join(pair) for pair in TOOL_CALLS} == edits.CALL_CLASSES


def test_a_fork_that_goes_its_own_way_waits_before_it_acts(world) -> None:
    """Copied steps count as an earlier attempt's: an effect where they went on otherwise waits."""
    worked(world)
    made(world)
    with pytest.raises(Conflict) as caught:
        call(world, "other", 1, run_id="fork-1", arguments={"order": "B", "amount": 3})
    assert caught.value.reason == "run_diverged"
    assert "where run-1 had gone on" in world.run("fork-1").detail


def test_what_a_person_let_pass_is_let_pass_in_the_fork(world) -> None:
    """Steps that were said not to count in the old run do not hold its fork up."""
    append(world, "m0", 0)
    append(world, "m1", 1)
    world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l2")
    with pytest.raises(Conflict):
        call(world, "pay", 1, attempt=2)
    world.runs.control(run_id="run-1", action="continue", operator="ann")
    world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l3")
    call(world, "pay", 1, attempt=3)
    finish(world, attempt=3)
    made(world, steps=2)
    assert call(world, "pay", 1, run_id="fork-1").state is State.DONE


def test_a_repeat_of_a_copied_call_is_one(world) -> None:
    """A retry of the task behind the fork gets the copied outcome: no second effect."""
    worked(world)
    made(world, steps=4)
    before = len(world.runtime.effects)
    answer = call(world, "pay again", 3, run_id="fork-1")
    assert (answer.state, len(world.runtime.effects)) == (State.DONE, before)
    assert rows(world, "fork-1")[-1].repeats == rows(world, "fork-1")[3].call_id


def test_steps_of_one_millisecond_have_one_order(world) -> None:
    """That in which they were stored: the same in the fork and in the run."""
    names = ("m0", "a", "b", "m1")
    for name in names:
        if name.startswith("m"):
            append(world, name, 1)
        else:
            call(world, name, 1, arguments={"order": name, "amount": 1})
        world.clock.ms -= 10
    finish(world)
    assert [row.step_key for row in rows(world, "run-1")] == [key(name) for name in names]
    made(world, steps=4)
    assert [row.step_key for row in rows(world, "fork-1")] == [key(name) for name in names]


def test_a_fork_of_a_fork_holds_what_both_did(world) -> None:
    """Copies of copies answer too, each naming the run that it was copied from."""
    worked(world)
    made(world)
    call(world, "pay", 2, run_id="fork-1")
    finish(world, "fork-1")
    made(world, run_id="fork-1", new_run_id="fork-2", steps=4)
    copied = rows(world, "fork-2")
    assert [row.attempt for row in copied] == [0] * 4
    assert copied[3].copied_from == rows(world, "fork-1")[3].call_id
    assert world.run("fork-2").origin_run == "fork-1"


def test_a_branch_is_for_its_apps_worker(world) -> None:
    """Told at once to the app, with what a worker needs: the command, and where it runs."""
    worked(world)
    branch = world.history.make(order(cwd="/desk"))
    assert branch.run.driven
    given = world.store.read(lambda tables: world.vault.get(tables, branch.run.input))
    assert json.loads(given) == {"app": "desk", "command": ["true"], "cwd": "/desk", "env": {}}
    world.runs.start_attempt(peer("desk"), run_id="fork-1", launcher="l")
    finish(world, "fork-1")
    again = world.history.make(order(run_id="fork-1", new_run_id="fork-2", origin="rerun", steps=0))
    assert again.run.input == branch.run.input


def test_a_run_that_does_not_say_what_it_ran_is_not_branched(world) -> None:
    """Nothing could be started; nothing is left behind."""
    world.runs.start(peer("desk"), run_id="odd", input_json=b"[]")
    world.runs.start_attempt(peer("desk"), run_id="odd", launcher="l")
    world.runs.finish(peer("desk"), run_id="odd", attempt=1, state="completed", detail="")
    with pytest.raises(Conflict) as caught:
        world.history.make(order(run_id="odd", origin="rerun", steps=0))
    assert caught.value.reason == "run_without_command"
    assert world.run("fork-1") is None


EDIT = b'{"step": 3, "reply": {"type": "text", "value": "another"}}'


@pytest.mark.parametrize("edit", [b"", EDIT])
def test_the_same_order_again_is_the_same_fork(world, edit) -> None:
    """The store answered with a fault and had stored it: asked again it is there, made once."""
    worked(world)
    world.store.fail_after = True
    with pytest.raises(StoreUnavailable):
        world.history.make(order(edit=edit))
    run, steps_of_it = world.run("fork-1"), rows(world, "fork-1")
    again = edit.replace(b'"step": 3, ', b"").replace(b"}}", b'}, "step": 3}')
    for asked in (edit, again):
        branch = world.history.make(order(edit=asked, operator="bob"))
        assert (branch.run, branch.steps) == (run, 5)
    assert rows(world, "fork-1") == steps_of_it
    assert len(steps_of_it) == 3
    assert len(world.records("copy")) == 3
    assert [r["operator"] for r in world.records("lifecycle") if r["event"] == "run_fork"] == ["ann (uid 7)"]
    world.runs.start_attempt(peer("desk"), run_id="fork-1", launcher="l1")
    assert world.history.make(order(edit=edit)).run == world.run("fork-1")


@pytest.mark.parametrize(
    "other",
    [
        {"steps": 4},
        {"edit": b""},
        {"edit": EDIT.replace(b"another", b"a third")},
        {"origin": "rerun", "steps": 0, "edit": b""},
        {"run_id": "fork-0"},
    ],
)
def test_another_order_under_the_id_of_a_fork_is_refused(world, other) -> None:
    """Other steps, another edit, a re-run, another run: the fork that is there stays."""
    worked(world)
    made(world, new_run_id="fork-0", steps=5)
    finish(world, "fork-0")
    world.history.make(order(edit=EDIT))
    run, steps_of_it = world.run("fork-1"), rows(world, "fork-1")
    with pytest.raises(Conflict) as caught:
        world.history.make(order(**{"edit": EDIT, **other}))
    assert caught.value.reason == "run_taken"
    assert (world.run("fork-1"), rows(world, "fork-1")) == (run, steps_of_it)


def test_a_fork_of_a_terminals_run_is_of_one_folder(world) -> None:
    """Such a run does not say where it ran: another folder is another fork."""
    worked(world)
    world.history.make(order(cwd="/a"))
    assert world.history.make(order(cwd="/a")).run == world.run("fork-1")
    with pytest.raises(Conflict):
        world.history.make(order(cwd="/b"))


def test_the_record_of_a_fork_tells_nothing_of_its_edit(world) -> None:
    """What it was ordered with is there as a keyed digest."""
    worked(world)
    world.history.make(order(edit=EDIT))
    (record,) = [r for r in world.records("lifecycle") if r["event"] == "run_fork"]
    assert len(record["order"]) == 64
    assert "another" not in json.dumps(world.records())
