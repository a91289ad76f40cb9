"""What a delegation's `narrow` allows below it: on top of the callee's own grants, all the way down."""

from dataclasses import replace

import pytest
from fakes.gateway_parts import ALLOW, peer
from gateway.delegating import begin, delegate, descend, narrowing, run_of, started
from gateway.test_gateway_history import key
from hypothesis import given
from hypothesis import strategies as st
from meshgate_gateway import narrowing as rule
from meshgate_gateway.errors import Conflict
from meshgate_gateway.model import State

REFUND, LOOKUP, AGENT = "orders.refund", "orders.lookup", "agent:refunds"


def asked(world, run_id: str, *, app: str = "billing", tool: str = REFUND, **arguments: object):
    """A call of the callee's, under a key of its own."""
    name = f"{tool} {sorted(arguments.items())}"
    return world.call(app, run_id=run_id, tool=tool, step_key=key(name), arguments=arguments)


def test_below_a_delegation_only_what_it_names(world) -> None:
    """Within its bounds; the callee's own policy allows all of it."""
    world.policy.answer = narrowing({REFUND: {"amount": {"max": 50}}, AGENT: {}})
    (_, below) = descend(world, "billing")
    assert asked(world, below, order="A1", amount=50).state is State.DONE
    over = asked(world, below, order="A1", amount=50.5)
    assert (over.state, over.reasons) == (State.DENIED, ("narrowed",))
    assert asked(world, below, tool=LOOKUP, order="A1").reasons == ("narrowed",)
    assert world.records("decision")[-1]["reasons"] == ["narrowed"]
    assert world.call(step_key=key("own")).state is State.DONE  # the caller's own calls are not below
    assert started(world, below)["narrow"] == [{"tools": {REFUND: {"amount": {"max": 50}}, AGENT: {}}}]


def test_every_narrow_above_must_hold(world) -> None:
    """A lower one may only take away; one that names more gives nothing back."""
    upper = narrowing({REFUND: {"amount": {"max": 50}}, AGENT: {}})
    lower = narrowing({REFUND: {"amount": {"max": 500, "min": 10}}, LOOKUP: {}}, of=AGENT)
    world.policy.answer = lambda put: lower(put) if put["call"]["tool"] == AGENT else upper(put)
    (_, _, below) = descend(world, "billing", "refunds")
    answers = {
        amount: asked(world, below, app="refunds", order="A1", amount=amount).reasons
        for amount in (9, 10, 50, 51)
    }
    assert answers == {9: ("narrowed",), 10: (), 50: (), 51: ("narrowed",)}
    assert asked(world, below, app="refunds", tool=LOOKUP, order="A1").reasons == ("narrowed",)


def test_a_narrow_is_handed_down_past_who_adds_none(world) -> None:
    """A callee that delegates on hands on what binds it."""
    world.policy.answer = narrowing({AGENT: {"task": {"in": ["pay"]}}})
    (_, middle, below) = descend(world, "billing", "refunds")
    assert world.run(below).narrow == world.run(middle).narrow != ""
    assert asked(world, below, app="refunds", order="A1", amount=1).reasons == ("narrowed",)
    other = world.call("billing", run_id=middle, tool=AGENT, step_key=key("other"), arguments={"task": "rob"})
    assert other.reasons == ("narrowed",)
    assert delegate(world, "a0", app="billing", run_id=middle).reasons == ("narrowed",)


def test_a_second_verdict_is_bound_too(world) -> None:
    """A call whose host was lost begins again only within what stands above its run."""
    world.policy.answer = narrowing({"orders.keyed": {"amount": {"max": 50}}})
    (_, below) = descend(world, "billing")
    world.runtime.held = True
    call = asked(world, below, tool="orders.keyed", order="A1", amount=20)
    world.hosts.take(peer("orders"), call_id=call.call_id, host_instance="gone")
    run = world.run(below)
    tighter = replace(run, narrow=rule.written([{"tools": {"orders.keyed": {"amount": {"max": 10}}}}]))
    world.store.write(lambda tables: tables.runs.move(run, tighter))
    with pytest.raises(Conflict, match="denied_again"):
        world.hosts.take(peer("orders"), call_id=call.call_id, host_instance="new")
    assert world.records("decision")[-1]["reasons"] == ["narrowed"]


def test_what_every_verdict_narrowed_binds(world) -> None:
    """A delegation that is decided on again before it began is under the newer narrow too."""
    older = {REFUND: {"amount": {"max": 50}}, LOOKUP: {}}
    world.policy.answer = narrowing(older)
    answer = delegate(world)
    for launcher, tools in (("l2", older), ("l3", {REFUND: {"amount": {"max": 500, "min": 10}}})):
        attempt = world.runs.start_attempt(peer("desk"), run_id="run-1", launcher=launcher).attempt
        world.policy.answer = narrowing(tools)
        delegate(world, attempt=attempt)
    world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l4")
    world.policy.answer = ALLOW
    delegate(world, attempt=4)
    assert len(rule.read(world.run(run_of(answer)).narrow)) == 2
    begin(world, run_of(answer))
    reasons = [asked(world, run_of(answer), order="A1", amount=amount).reasons for amount in (9, 10, 50, 51)]
    assert reasons == [("narrowed",), (), (), ("narrowed",)]
    assert asked(world, run_of(answer), tool=LOOKUP, order="A1").reasons == ("narrowed",)


def test_a_truth_value_is_no_number_among_narrows_either() -> None:
    """Two that Python holds to be equal, and are not: both are kept."""
    narrows = [{"tools": {"a.b": {"x": {"in": [value]}}}} for value in (1, True)]
    text = rule.added(rule.added("", {"narrow": narrows[0]}), {"narrow": narrows[1]})
    assert [rule.holds(rule.read(text), "a.b", {"x": value}) for value in (1, True)] == [False, False]
    assert rule.added(text, {"narrow": narrows[0]}) == rule.added(text, {}) == text


@pytest.mark.parametrize(
    "narrow",
    [
        None,
        [],
        {},
        {"tools": []},
        {"tools": {}, "more": 1},
        {"tools": {"refund": {}}},
        {"tools": {"orders.*": {}}},
        {"tools": {REFUND: []}},
        {"tools": {REFUND: None}},
        {"tools": {REFUND: {"amount": {}}}},
        {"tools": {REFUND: {"amount": 50}}},
        {"tools": {REFUND: {"amount": {"most": 50}}}},
        {"tools": {REFUND: {"amount": {"max": "50"}}}},
        {"tools": {REFUND: {"amount": {"max": True}}}},
        {"tools": {REFUND: {"amount": {"min": None}}}},
        {"tools": {REFUND: {"amount": {"in": "EUR"}}}},
        {"tools": {REFUND: {"amount": {"in": {"EUR": 1}}}}},
        {"tools": {REFUND: {"amount": {"max": 2**60}}}},
        {"tools": {REFUND: {"amount": {"max": 10**400}}}},
        {"tools": {REFUND: {"amount": {"max": float("inf")}}}},
        {"tools": {REFUND: {"amount.value": {"max": 5}}}},
        {"tools": {REFUND: {"": {"max": 5}}}},
        {"tools": {REFUND: {"order": {"in": ["x" * rule.MAX_NARROW_BYTES]}}}},
    ],
)
def test_a_narrow_that_cannot_be_kept_denies_the_delegation(world, narrow) -> None:
    """Whatever is not understood to its last part."""
    world.policy.answer = {**ALLOW, "obligations": {"narrow": narrow}}
    answer = delegate(world)
    assert (answer.state, answer.reasons) == (State.DENIED, ("narrow_invalid",))
    assert world.run(run_of(answer)) is None


def test_a_narrow_of_a_tool_denies_it(world) -> None:
    """Nothing is below it that could be bound; an obligation beside it is unknown as ever."""
    world.policy.answer = {**ALLOW, "obligations": {"narrow": {"tools": {}}}}
    assert world.call().reasons == ("narrow_invalid",)
    world.policy.answer = {**ALLOW, "obligations": {"narrow": {"tools": {}}, "log": {}}}
    assert delegate(world).reasons == ("obligation_unknown",)
    assert world.runtime.effects == []


@pytest.mark.parametrize(
    ("bound", "value", "held"),
    [
        ({"max": 50}, 50, True),
        ({"max": 50}, 50.0, True),
        ({"max": 50}, 50.000001, False),
        ({"max": 0.5}, 0, True),
        ({"min": 1}, 1, True),
        ({"min": 1}, 0.999, False),
        ({"max": 50, "min": 1}, 0, False),
        ({"max": 50}, True, False),
        ({"min": 0}, False, False),
        ({"max": 50}, "20", False),
        ({"max": 50}, None, False),
        ({"max": 50}, [20], False),
        ({"in": [1]}, 1.0, True),
        ({"in": [1]}, True, False),
        ({"in": [True]}, 1, False),
        ({"in": [0]}, False, False),
        ({"in": ["EUR"]}, "EUR", True),
        ({"in": ["EUR"]}, "eur", False),
        ({"in": []}, "EUR", False),
        ({"in": [None]}, None, True),
        ({"in": [[1, 2]]}, [1, 2.0], True),
        ({"in": [[1, 2]]}, [2, 1], False),
        ({"in": [{"a": 1, "b": 2}]}, {"b": 2, "a": 1}, True),
        ({"in": [{"a": 1}]}, {"a": True}, False),
        ({"in": [10, 20], "max": 15}, 20, False),
        ({"in": [10, 20], "max": 15}, 10, True),
    ],
)
def test_a_bound_means_one_thing(bound, value, held) -> None:
    """Numbers are numbers, true is none, and values are equal as JSON values are."""
    narrow = rule.parse({"tools": {"a.b": {"x": bound}}})
    assert rule.holds([narrow], "a.b", {"x": value, "y": 1}) is held
    assert not rule.holds([narrow], "a.b", {"y": 1})
    assert rule.read(rule.written([narrow])) == (narrow,)


def test_a_large_argument_is_written_once_for_all_options(monkeypatch) -> None:
    """Written for each option, one argument of 150 kB would keep a gateway for minutes."""
    options, value = list(range(1000)), {"x": "y" * 1000}
    narrow = rule.parse({"tools": {"a.b": {"x": {"in": options}}}})
    written, dumps = [], rule.rfc8785.dumps
    monkeypatch.setattr(rule.rfc8785, "dumps", lambda one: written.append(one) or dumps(one))
    assert not rule.holds([narrow], "a.b", {"x": value})
    assert written.count(value) == 1


VALUES = (
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False) | st.text()
)


@given(value=VALUES, low=st.integers(-100, 100), high=st.integers(-100, 100))
def test_another_narrow_never_allows_more(value, low, high) -> None:
    """Whatever a second one says."""
    one = {"tools": {"a.b": {"x": {"max": high}}}}
    two = {"tools": {"a.b": {"x": {"min": low}}}}
    both = rule.holds([one, two], "a.b", {"x": value})
    assert both == (rule.holds([one], "a.b", {"x": value}) and rule.holds([two], "a.b", {"x": value}))
    if both:
        assert not isinstance(value, bool)
        assert low <= value <= high


def test_nothing_above_allows_everything() -> None:
    """A run that nobody delegated is not narrowed."""
    assert rule.holds((), "a.b", {})
    assert rule.read("") == ()
    assert rule.written(()) == ""
