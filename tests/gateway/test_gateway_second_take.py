"""A call whose host was lost: policy is asked once more before it may run again."""

import json
from dataclasses import replace

import pytest
from fakes.gateway_parts import ALLOW, deny
from fakes.opa_servers import run_opa
from gateway.test_gateway_journal import key
from gateway.test_gateway_reconcile import NEVER, finish, take, taken_and_lost
from meshgate_gateway import catalogue, ledger
from meshgate_gateway.errors import Conflict, StoreUnavailable, Unavailable
from meshgate_gateway.model import Outcome, State
from meshgate_gateway.policy import ActivePolicy

READ = {"tool": "orders.lookup", "arguments": {"order": "A1"}}
DONE = Outcome(State.DONE, b"paid", "text")


def lost(world, **changed) -> str:
    """A repeatable call whose host was killed in the middle of it."""
    world.runtime.held = True
    asked = {"step_key": key("t0"), "tool": "orders.keyed", "untrusted": {"role": "Clerk"}, **changed}
    call_id = world.call(**asked).call_id
    take(world, call_id, "gone")
    return call_id


def of_call(world, call_id: str) -> list[str]:
    """Kinds of a call's records, in their order."""
    return [record["kind"] for record in world.records() if record.get("call_id") == call_id]


@pytest.mark.parametrize("changed", [{}, READ], ids=["keyed", "read"])
def test_an_allowed_call_runs_again_with_both_verdicts_on_record(world, changed) -> None:
    """The same question as the first time; the second verdict says for which take and host it is."""
    call_id = lost(world, **changed)
    again = take(world, call_id, "new")
    assert (again.row.take, again.taken_before, again.row.state) == (2, True, State.SENT)
    first, second = world.policy.asked
    assert first == second
    assert second["untrusted"] == {"role": "Clerk"}
    assert of_call(world, call_id) == ["decision", "take", "decision", "take"]
    one, two = world.records("decision")
    assert {name for name in two if name not in one} == {"take", "taken_by", "host_instance"}
    assert (two["take"], two["host_instance"]) == (2, "new")
    assert two["taken_by"] == "spiffe://desk.example/ns/desk/orders"
    same = ("caller", "certificate", "decision_id", "arguments", "allow", "untrusted", "policy")
    assert [one[name] for name in same] == [two[name] for name in same]
    assert finish(world, call_id, 2, DONE) is State.DONE


@pytest.mark.parametrize(
    ("answer", "reasons"), [(deny("closed_today"), ["closed_today"]), (None, ["policy_invalid"])]
)
def test_a_keyed_call_that_is_denied_now_is_unknown(world, answer, reasons) -> None:
    """Its first take may have acted: the run waits, the record says why, a late outcome settles it."""
    call_id = lost(world)
    world.policy.answer = answer
    with pytest.raises(Conflict, match="denied_again"):
        take(world, call_id, "new")
    row, run = world.row(call_id), world.run()
    assert (row.state, row.error_class, row.take) == (State.UNKNOWN, "denied_again", 1)
    assert (run.state, run.detail) == ("waiting", f"unknown {call_id}")
    assert of_call(world, call_id) == ["decision", "take", "decision", "outcome"]
    decided, outcome = world.records("decision")[-1], world.records("outcome")[-1]
    assert (decided["allow"], decided["reasons"], decided["take"]) == (False, reasons, 2)
    assert (decided["decision_id"], decided["policy"]["revision"]) == (outcome["decision_id"], "r1")
    assert (outcome["state"], outcome["cause"]) == ("unknown", "denied_again")
    with pytest.raises(Conflict, match="call_settled"):
        take(world, call_id, "new")
    assert world.runtime.effects == []
    assert finish(world, call_id, 1, DONE) is State.DONE
    assert world.run().state == "restarting"


def test_a_read_that_is_denied_now_has_failed(world) -> None:
    """Nothing can have been changed: its caller is told, and the run goes on."""
    call_id = lost(world, **READ)
    world.policy.answer = deny("closed_today")
    with pytest.raises(Conflict, match="denied_again"):
        take(world, call_id, "new")
    answer = world.call(step_key=key("t0"), **READ)
    assert (answer.state, answer.error_class) == (State.FAILED, "denied_again")
    assert answer.message.endswith("it may not run again: closed_today")
    assert (world.run().state, world.runtime.effects) == ("running", [])
    assert world.records("decision")[-1]["reasons"] == ["closed_today"]


def test_an_engine_that_is_away_changes_nothing(world) -> None:
    """No verdict: the host asks again, and takes the call once there is one."""
    call_id = lost(world)
    before = world.row(call_id)
    world.policy.away = True
    with pytest.raises(Unavailable, match="policy_unavailable"):
        take(world, call_id, "new")
    assert (world.row(call_id), world.run().state) == (before, "running")
    assert of_call(world, call_id) == ["decision", "take"]
    world.policy.away = False
    assert take(world, call_id, "new").row.take == 2


def test_a_verdict_that_is_not_stored_lets_nothing_run(world) -> None:
    """Second decision and second take are one transaction."""
    call_id = lost(world)

    def answer(_):
        world.store.fail_before = True
        return ALLOW

    world.policy.answer = answer
    with pytest.raises(StoreUnavailable):
        take(world, call_id, "new")
    assert (world.row(call_id).take, of_call(world, call_id)) == (1, ["decision", "take"])


def test_a_call_that_moves_while_policy_is_asked_is_judged_anew(world) -> None:
    """Nobody holds the store meanwhile. What is settled stays; what another took is asked about again."""
    call_id, others = lost(world), ["other"]

    def taken_meanwhile(_):
        if others:
            take(world, call_id, others.pop())
        return ALLOW

    world.policy.answer = taken_meanwhile
    with pytest.raises(Unavailable, match="call_moved"):
        take(world, call_id, "new")
    assert (world.row(call_id).take, world.row(call_id).host_instance) == (2, "other")
    world.policy.answer = lambda _: finish(world, call_id, 2, DONE) and deny("late")
    with pytest.raises(Conflict, match="call_settled"):
        take(world, call_id, "new")
    assert world.row(call_id).state is State.DONE


def test_a_tool_that_is_another_one_now_is_not_asked_about(world) -> None:
    """What the call was decided on is not there any more: no verdict can be on it."""
    call_id = lost(world)
    tools = world.hosts.verdicts.catalogue.tools
    changed = {**tools, "orders.keyed": replace(tools["orders.keyed"], definition_sha256="e" * 64)}
    for others in (changed, {}):
        verdicts = replace(world.hosts.verdicts, catalogue=catalogue.Catalogue(others, {}))
        assert verdicts.changed(world.row(call_id)) == ("definition_changed" if others else "tool_unknown")
        world.hosts = replace(world.hosts, verdicts=verdicts)
    with pytest.raises(Conflict, match="denied_again"):
        take(world, call_id, "new")
    assert (world.row(call_id).state, len(world.policy.asked)) == (State.UNKNOWN, 1)
    refusal = world.records("refusal")[-1]
    assert (refusal["method"], refusal["reason"], refusal["call_id"]) == ("TakeCall", "tool_unknown", call_id)


@pytest.mark.parametrize("allowed", [True, False])
def test_a_call_that_is_asked_about_begins_only_when_policy_allows(world, allowed) -> None:
    """Its host may find that it had not begun: then it begins under a second verdict, or has failed."""
    call_id = taken_and_lost(world)
    world.clock.ms = world.row(call_id).busy_until_ms + ledger.GRACE_MS
    world.policy.answer = ALLOW if allowed else deny("closed_today")
    found = take(world, call_id, "new")
    assert (found.ambiguous, found.may_begin) == (True, allowed)
    assert [record["allow"] for record in world.records("decision")] == [True, allowed]
    if not allowed:
        assert finish(world, call_id, 2, NEVER) is State.FAILED
        assert world.row(call_id).error_class == "not_begun"


def test_a_question_alone_needs_no_verdict(world) -> None:
    """While the host before may be at it nothing may begin, so policy has nothing to say."""
    call_id = taken_and_lost(world)
    world.policy.away = True
    assert not take(world, call_id, "new").may_begin
    assert of_call(world, call_id) == ["decision", "take", "take"]


def test_a_real_engine_judges_the_second_take(world, opa_binary, tmp_path) -> None:
    """A limit that was lowered between the two takes."""
    desk = (
        "package mesh.agents.desk\n\n"
        'allow contains "orders.keyed" if input.call.args.amount <= data.mesh.limits.refund\n'
    )
    with (
        run_opa(opa_binary, tmp_path, socket_name="1.sock", desk=desk, refund=50) as wide,
        run_opa(opa_binary, tmp_path, socket_name="2.sock", desk=desk, refund=5) as narrow,
    ):
        slot = world.hosts.verdicts.policy
        slot.activate(ActivePolicy(wide.engine(), "wide", "sha256:1"), record=lambda: None)
        call_id = lost(world)
        assert take(world, call_id, "second").row.take == 2
        slot.activate(ActivePolicy(narrow.engine(), "narrow", "sha256:2"), record=lambda: None)
        with pytest.raises(Conflict, match="denied_again"):
            take(world, call_id, "third")
    told = [(record["policy"]["revision"], record["allow"]) for record in world.records("decision")]
    assert told == [("wide", True), ("wide", True), ("narrow", False)]
    assert json.dumps(world.records()).count("A1") == 0
