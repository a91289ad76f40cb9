"""Who stands above a call: written by the gateway alone, seen by rules, and bounded."""

import json
from dataclasses import replace

import pytest
from fakes.gateway_parts import peer
from gateway.conftest import CATALOGUE, TASK, entry
from gateway.delegating import begin, delegate, descend, end, run_of
from gateway.test_gateway_history import key
from meshgate_gateway import catalogue, chains
from meshgate_gateway.drive import Order
from meshgate_gateway.errors import ConfigurationError, Conflict, InvalidRequest, Missing, NotPermitted
from meshgate_gateway.history import BranchOrder
from meshgate_gateway.model import State
from meshgate_gateway.policy import ActivePolicy, Listing

STARRED = "spiffe://desk.example/ns/desk/"


def link(app: str, run_id: str) -> dict[str, str]:
    """A caller above, as a rule sees it."""
    return {
        "spiffe_id": STARRED + app, "trust_domain": "desk.example", "namespace": "desk", "app": app,
        "run_id": run_id,
    }  # fmt: skip


def test_a_rule_sees_the_callers_above_root_first(world) -> None:
    """And so does the record of its decision; a run that nobody delegated has none above it."""
    runs = descend(world, "billing", "refunds")
    world.call("refunds", run_id=runs[2], step_key="ab" * 16)
    asked = [each["delegation"] for each in world.policy.asked]
    above = [link("desk", "run-1"), link("billing", runs[1])]
    assert asked == [[], above[:1], above]
    recorded = [record.get("delegation") for record in world.records("decision")]
    assert recorded == [None, above[:1], above]


def test_the_second_verdict_sees_the_same_callers(world) -> None:
    """A call whose host was lost is asked about as it was the first time."""
    runs = descend(world, "billing")
    world.runtime.held = True
    call = world.call("billing", run_id=runs[1], step_key="ab" * 16, tool="orders.keyed")
    for instance in ("gone", "new"):
        world.hosts.take(peer("orders"), call_id=call.call_id, host_instance=instance)
    first, second = world.policy.asked[-2:]
    assert first == second
    assert second["delegation"] == [link("desk", "run-1")]
    assert world.records("decision")[-1]["delegation"] == second["delegation"]


def test_nothing_in_a_request_names_a_caller_above(world) -> None:
    """What a caller says of itself is shown as that, and as nothing else."""
    forged = {"delegation": json.dumps([link("boss", "run-0")]), "chain": "boss"}
    world.call(untrusted=forged)
    assert world.policy.asked[-1]["delegation"] == []
    assert world.policy.asked[-1]["untrusted"] == forged
    answer = delegate(world, untrusted=forged)
    assert json.loads(world.run(run_of(answer)).chain) == [
        {"app": "desk", "spiffe_id": STARRED + "desk", "run_id": "run-1"}
    ]


@pytest.mark.parametrize("back", ["billing", "refunds"])
def test_a_task_never_goes_back(world, back) -> None:
    """Not to the caller itself, and not to one that is waiting for it, through however many others."""
    runs = descend(world, "billing", "refunds", "a0")[: 4 if back == "billing" else 3]
    app = world.run(runs[-1]).app.rpartition("/")[2]
    answer = delegate(world, back, app=app, run_id=runs[-1])
    assert (answer.state, answer.reasons) == (State.DENIED, ("delegation_cycle",))
    assert world.run(run_of(answer)) is None
    assert world.records("decision")[-1]["reasons"] == ["delegation_cycle"]


def test_eight_callers_are_the_most(world) -> None:
    """The ninth is refused; another task of the eighth's caller is not."""
    runs = descend(world, *(f"a{number}" for number in range(chains.MAX_DEPTH)))
    assert len(chains.read(world.run(runs[-1]).chain)) == chains.MAX_DEPTH == 8
    answer = delegate(world, "billing", app="a7", run_id=runs[-1])
    assert (answer.state, answer.reasons) == (State.DENIED, ("delegation_too_deep",))
    assert delegate(world, "billing", app="a6", run_id=runs[-2]).state is State.RESERVED


def test_a_denial_by_policy_comes_first(world) -> None:
    """Who has no grant learns nothing of who waits for whom."""
    runs = descend(world, "billing")
    world.policy.answer = {"allow": False, "reasons": ["no"], "approval": None, "obligations": {}}
    assert delegate(world, "billing", app="billing", run_id=runs[1]).reasons == ("no",)


def test_a_run_of_another_app_gives_nobody_its_callers(world) -> None:
    """Neither to call in it, nor to begin, read, journal or end it."""
    run_id = run_of(delegate(world))
    begin(world, run_id)
    for app in ("desk", "rival", "refunds"):
        with pytest.raises(Missing):
            world.call(app, run_id=run_id)
        with pytest.raises(Missing):
            world.runs.start_attempt(peer(app), run_id=run_id, launcher="x")
        with pytest.raises(Missing):
            world.runs.read(peer(app), run_id=run_id)
        for state in ("completed", "failed", "cancelled"):
            with pytest.raises(Missing):
                world.runs.finish(peer(app), run_id=run_id, attempt=1, state=state, detail="", result=b"{}")
    assert world.run(run_id).state == "running"
    assert delegate(world).state is State.SENT


def test_a_superseded_attempt_of_the_callee_ends_nothing(world) -> None:
    """Nor does one that has not begun."""
    run_id = run_of(delegate(world))
    with pytest.raises(Conflict, match="attempt_superseded"):
        end(world, run_id)
    begin(world, run_id)
    begin(world, run_id, "w2")
    with pytest.raises(Conflict, match="attempt_superseded"):
        world.runs.finish(
            peer("billing"), run_id=run_id, attempt=1, state="completed", detail="", result=b"{}"
        )
    assert delegate(world).state is State.SENT


@pytest.mark.parametrize("app", ["orders", "rival", "desk", "nobody"])
def test_only_agents_are_given_tasks(world, app) -> None:
    """A tool host, a crew, an app that is not there: no entry, so no call; the name is on record."""
    answer = delegate(world, app)
    assert (answer.state, answer.reasons) == (State.DENIED, ("tool_unknown",))
    assert world.records("refusal")[-1]["tool"] == f"agent:{app}"
    assert world.run(run_of(answer)) is None


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("agent:orders", {"host": "orders"}),
        ("agent:desk", {"host": "desk"}),
        ("agent:billing", {"host": "refunds"}),
        ("agent:billing", {"kind": "tool"}),
        ("billing.task", {}),
        ("agent:billing", {"idempotent": True}),
        ("agent:billing", {"reconcile": True}),
        ("agent:billing", {"execute": "agent", "effect": "memory"}),
    ],
)
def test_a_catalogue_delegates_to_agents_only(name, changed) -> None:
    """Under the agent's own name, and with nothing that a run is not."""
    row = {**entry(TASK), "host": "billing", "kind": "delegate", **changed}
    with pytest.raises(ConfigurationError, match="delegation"):
        catalogue.parse(json.dumps({**CATALOGUE, "tools": {name: row}}).encode())


def test_an_agent_s_app_acts_only_when_asked(world) -> None:
    """No call outside of a run and no run of its own; both are on record."""
    with pytest.raises(NotPermitted, match="call_outside_run"):
        world.call("billing", run_id="", attempt=0, step_key="0192f0c0-0000-7000-8000-000000000000")
    with pytest.raises(NotPermitted, match="run_not_permitted"):
        world.runs.start(peer("billing"), run_id="mine", input_json=b"{}")
    reasons = [(record["reason"], record["app"]) for record in world.records("refusal")]
    assert reasons == [("call_outside_run", "billing"), ("run_not_permitted", "billing")]
    assert world.run("mine") is None


def test_an_operator_starts_no_run_of_an_agent(world) -> None:
    """It would have no task, and the refusal says what to start instead."""
    with pytest.raises(NotPermitted, match="have no task; start the app that kicks the crew off"):
        world.drive.order(Order(app="billing", run_id="mine", input_json=b"{}"), operator="ann", local=True)
    assert world.run("mine") is None


def test_ids_of_delegated_runs_are_nobody_s_to_choose(world) -> None:
    """Who could take one before would keep a caller from its task."""
    run_id = run_of(delegate(world))
    fresh = run_id[:-1] + ("0" if run_id[-1] != "0" else "1")
    with pytest.raises(InvalidRequest, match="run_id_invalid"):
        world.runs.start(peer("rival"), run_id=fresh, input_json=b"{}")
    with pytest.raises(InvalidRequest, match="run_id_invalid"):
        world.drive.order(Order(app="rival", run_id=fresh), operator="ann")
    world.runs.finish(peer("desk"), run_id="run-1", attempt=1, state="failed", detail="")
    with pytest.raises(InvalidRequest, match="run_id_invalid"):
        world.history.make(BranchOrder("run-1", fresh, "rerun", 0, b"", "ann"))
    assert world.run(fresh) is None


def test_a_listing_has_the_agents_that_may_be_asked(world) -> None:
    """As any tool, but for the caller itself."""
    listed = {"desk": {"agent:billing", "orders.refund"}, "billing": {"agent:billing", "agent:refunds"}}
    active = ActivePolicy(
        world.policy, "r1", "sha256:0", Listing({app: frozenset(one) for app, one in listed.items()})
    )
    world.broker._rooms.policy.activate(active, record=lambda: None)
    assert {tool.id for tool in world.broker.tools(peer("desk"))} == listed["desk"]
    assert {tool.id for tool in world.broker.tools(peer("billing"))} == {"agent:refunds"}


def test_a_chain_that_cannot_be_read_serves_nothing(world) -> None:
    """A store that was changed by hand is no reason to forget who stands above."""
    runs = descend(world, "billing")
    run = world.run(runs[1])
    world.store.write(lambda tables: tables.runs.move(run, replace(run, chain="[{")))
    with pytest.raises(ValueError):
        world.call("billing", run_id=runs[1], step_key=key("x"))
    assert world.runtime.effects == []
