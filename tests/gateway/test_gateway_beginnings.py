"""A task that waited long is put to the policy in force before it begins. On both stores."""

import json
from dataclasses import replace

import pytest
from fakes.gateway_parts import ALLOW, deny, peer
from fakes.opa_servers import run_opa
from gateway.conftest import make_world
from gateway.delegating import DONE, begin, delegate, end, kinds, narrowing, run_of
from gateway.test_gateway_history import key
from meshgate_gateway import ledger
from meshgate_gateway import narrowing as rule
from meshgate_gateway.errors import Conflict, PolicyUnavailable, StoreUnavailable, Unavailable
from meshgate_gateway.model import State
from meshgate_gateway.policy import ActivePolicy

BILLING = "spiffe://desk.example/ns/desk/billing"
HOURS_MS = 36_000_000


def waited(world, ms: int = HOURS_MS, **more):
    """A task that was allowed so long ago, and has not begun; its caller lives and waits."""
    answer = delegate(world, untrusted={"role": "Clerk"}, **more)
    world.clock.ms += ms
    return answer


def test_a_task_that_waited_long_is_decided_on_again(world) -> None:
    """The same question as then; both verdicts are on record, the second says who begins."""
    answer = waited(world)
    begin(world, run_of(answer), "w7")
    first, second = world.policy.asked
    assert {name for name in first if first[name] != second[name]} == {"time"}
    assert second["untrusted"] == {"role": "Clerk"}
    one, two = world.records("decision")
    assert {name for name in two if name not in one} == {"take", "taken_by", "host_instance"}
    assert (two["take"], two["taken_by"], two["host_instance"]) == (1, BILLING, "w7")
    same = ("caller", "certificate", "decision_id", "arguments", "allow", "untrusted", "policy")
    assert [one[name] for name in same] == [two[name] for name in same]
    assert (world.row(answer.call_id).state, world.row(answer.call_id).take) == (State.SENT, 1)
    end(world, run_of(answer))
    assert delegate(world).result == DONE


def test_ten_minutes_are_the_longest(world) -> None:
    """As for a call that no tool host takes; a later attempt is not a beginning, whenever it comes."""
    answer = waited(world, ledger.PATIENCE_MS)
    begin(world, run_of(answer))
    assert len(world.policy.asked) == 1
    world.clock.ms += HOURS_MS
    world.policy.answer = deny("closed_today")
    begin(world, run_of(answer), "w2")
    other = waited(world, ledger.PATIENCE_MS + 1, to="refunds", attempt=1)
    assert other.state is State.DENIED
    world.policy.answer = ALLOW
    other = waited(world, ledger.PATIENCE_MS + 1, to="a0")
    asked = len(world.policy.asked)
    begin(world, run_of(other))
    assert len(world.policy.asked) == asked + 1


@pytest.mark.parametrize(
    ("answer", "reasons"), [(deny("closed_today"), ("closed_today",)), (None, ("policy_invalid",))]
)
def test_a_task_that_is_denied_now_never_begins(world, answer, reasons) -> None:
    """Its run is over, the caller is woken and told why, and both verdicts are on record."""
    asked = waited(world)
    world.policy.answer = answer
    with world.broker._rooms.waiters.expecting(asked.call_id) as event:
        with pytest.raises(Conflict, match="run_ended"):
            begin(world, run_of(asked))
        assert event.is_set()
    run, row = world.run(run_of(asked)), world.row(asked.call_id)
    assert (run.state, run.attempt, run.detail) == ("cancelled", 0, "the task may not be given any more")
    assert (row.state, row.reasons, row.take) == (State.DENIED, reasons, 0)
    assert kinds(world, asked.call_id) == ["decision", "decision"]
    two = world.records("decision")[-1]
    assert (two["allow"], tuple(two["reasons"]), two["taken_by"]) == (False, reasons, BILLING)
    again = delegate(world)
    assert (again.state, again.reasons) == (State.DENIED, reasons)
    assert len(world.policy.asked) == 2
    with pytest.raises(Conflict, match="run_ended"):
        begin(world, run_of(asked), "w2")


def test_a_task_that_was_paused_before_it_began_is_denied_too(world) -> None:
    """Resumed it counts as restarting; nobody is at it, so that it is over at once."""
    asked = delegate(world)
    for action in ("pause", "resume"):
        world.runs.control(run_id=run_of(asked), action=action, operator="ann")
    world.clock.ms += HOURS_MS
    world.policy.answer = deny("closed_today")
    with pytest.raises(Conflict, match="run_ended"):
        begin(world, run_of(asked))
    assert (world.run(run_of(asked)).state, world.run(run_of(asked)).attempt) == ("cancelled", 0)
    assert world.row(asked.call_id).state is State.DENIED


def test_without_a_verdict_nothing_begins(world) -> None:
    """An engine that is away, or a store that fails: asked for again it begins, decided on then."""
    asked = waited(world)
    before = world.run(run_of(asked))
    world.policy.away = True
    with pytest.raises(PolicyUnavailable):
        begin(world, run_of(asked))
    assert world.records("refusal")[-1]["reason"] == "policy_unavailable"
    world.policy.away = False
    world.store.fail_before = True
    with pytest.raises(StoreUnavailable):
        begin(world, run_of(asked))
    world.store.fail_before = False
    assert (world.run(run_of(asked)), world.row(asked.call_id).state) == (before, State.RESERVED)
    assert kinds(world, asked.call_id) == ["decision"]
    begin(world, run_of(asked))
    assert kinds(world, asked.call_id) == ["decision", "decision"]


def test_what_happens_while_policy_is_asked_is_seen(world) -> None:
    """The call has moved on: the verdict was of another one, and the worker asks again."""
    asked = waited(world)

    def joined(put):
        world.policy.answer = ALLOW
        world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l2")
        delegate(world, attempt=2)
        return ALLOW

    world.policy.answer = joined
    with pytest.raises(Unavailable, match="call_moved"):
        begin(world, run_of(asked))
    assert world.run(run_of(asked)).attempt == 0
    begin(world, run_of(asked))
    assert world.row(asked.call_id).state is State.SENT


def test_who_does_not_wait_is_not_asked_about(world) -> None:
    """A caller that is over begins nothing, whatever policy would say."""
    asked = waited(world)
    world.runs.end_attempt(peer("desk"), run_id="run-1", attempt=1, state="restarting", detail="")
    with pytest.raises(Conflict, match="run_waiting"):
        begin(world, run_of(asked))
    assert len(world.policy.asked) == 1


def test_a_definition_that_changed_meanwhile_withdraws_it(world) -> None:
    """Another task than was decided on; no policy is asked about it."""
    asked = waited(world)
    verdicts = world.runs.beginnings.verdicts
    tool = replace(verdicts.catalogue.tools["agent:billing"], definition_sha256="e" * 64)
    tools = {**verdicts.catalogue.tools, tool.id: tool}
    catalogue = replace(verdicts.catalogue, tools=tools)
    beginnings = replace(world.runs.beginnings, verdicts=replace(verdicts, catalogue=catalogue))
    object.__setattr__(world.runs, "beginnings", beginnings)
    with pytest.raises(Conflict, match="run_ended"):
        begin(world, run_of(asked))
    assert world.row(asked.call_id).reasons == ("definition_changed",)
    record = world.records("refusal")[-1]
    assert (record["method"], record["reason"]) == ("StartAttempt", "definition_changed")
    assert len(world.policy.asked) == 1


def test_what_the_second_verdict_narrows_binds_as_well(world) -> None:
    """On top of what the first one did: the attempt that begins is under both, and hands both down."""
    world.policy.answer = narrowing({"orders.refund": {"amount": {"max": 50}}, "agent:refunds": {}})
    asked = waited(world)
    world.policy.answer = narrowing({"orders.refund": {"amount": {"min": 10}}, "agent:refunds": {}})
    begin(world, run_of(asked))
    run = world.run(run_of(asked))
    assert (run.state, run.attempt, len(rule.read(run.narrow))) == ("running", 1, 2)
    world.policy.answer = ALLOW

    def reasons(run_id: str, app: str, amount: int) -> tuple[str, ...]:
        arguments = {"order": "A1", "amount": amount}
        step = key(f"{run_id} {amount}")
        return world.call(app, run_id=run_id, step_key=step, arguments=arguments).reasons

    found = [reasons(run.run_id, "billing", amount) for amount in (9, 10, 51)]
    assert found == [("narrowed",), (), ("narrowed",)]
    below = delegate(world, "refunds", app="billing", run_id=run.run_id)
    begin(world, run_of(below))
    assert reasons(run_of(below), "refunds", 9) == reasons(run_of(below), "refunds", 51) == ("narrowed",)


def test_a_narrow_above_binds_the_second_verdict(world) -> None:
    """What a caller may not give any more by what stands above it, does not begin."""
    begin(world, run_of(delegate(world)))
    middle = run_of(delegate(world))
    asked = waited(world, to="refunds", app="billing", run_id=middle)
    run = world.run(middle)
    world.store.write(
        lambda tables: tables.runs.move(run, replace(run, narrow=rule.written([{"tools": {}}])))
    )
    with pytest.raises(Conflict, match="run_ended"):
        begin(world, run_of(asked))
    assert world.row(asked.call_id).reasons == ("narrowed",)


def test_two_gateways_begin_it_once(make_store) -> None:
    """Decided on at one, begun at the other, whose policy is the newer one."""
    one, other = make_world(make_store()), make_world(make_store())
    one.begin()
    asked = waited(one)
    other.clock.ms = one.clock.ms
    other.policy.answer = deny("closed_today")
    with pytest.raises(Conflict, match="run_ended"):
        begin(other, run_of(asked))
    assert delegate(one).reasons == ("closed_today",)
    one.store.close()
    other.store.close()


def test_a_grant_that_is_gone_is_gone_for_what_waits(world, opa_binary, tmp_path) -> None:
    """By a real engine, between two bundles."""
    package = 'package mesh.agents.desk\n\nallow contains "agent:{}"\n'
    for number, name in enumerate(("billing", "refunds")):
        folder = tmp_path / str(number)
        folder.mkdir()
        with run_opa(opa_binary, folder, desk=package.format(name)) as running:
            active = ActivePolicy(running.engine(), f"r{number}", f"sha256:{number}")
            world.broker._rooms.policy.activate(active, record=lambda: None)
            if number == 0:
                asked = waited(world)
            else:
                with pytest.raises(Conflict, match="run_ended"):
                    begin(world, run_of(asked))
    assert world.row(asked.call_id).reasons == ("tool_not_granted",)
    revisions = [json.loads(json.dumps(one["policy"]))["revision"] for one in world.records("decision")]
    assert revisions == ["r0", "r1"]
