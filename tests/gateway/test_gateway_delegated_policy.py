"""Delegations under a real policy: grants, the callers above, and what is allowed below."""

import json

import pytest
from fakes.opa_servers import run_opa
from gateway.delegating import begin, delegate, run_of
from gateway.test_gateway_history import key
from meshgate_gateway.model import State
from meshgate_gateway.policy import ActivePolicy

DESK = """package mesh.agents.desk

allow contains "orders.lookup"

allow contains "agent:billing"

obligations["agent:billing"] := {"narrow": {"tools": {"orders.refund": {"amount": {"max": 50}}}}}
"""
BILLING = """package mesh.agents.billing

allow contains "orders.lookup"

# Refunds for nobody but the desk, whatever a caller says of itself.
allow contains "orders.refund" if {
	count(input.delegation) == 1
	input.delegation[0].app == "desk"
	input.delegation[0].run_id != input.run.id
}
"""


@pytest.fixture
def ruled(world, opa_binary, tmp_path):
    """The world under these two packages."""
    folder = tmp_path / "policies-opa.sock"
    folder.mkdir()
    (folder / "billing.rego").write_text(BILLING)
    with run_opa(opa_binary, tmp_path, desk=DESK) as running:
        active = ActivePolicy(running.engine(), "r2", "sha256:2")
        world.broker._rooms.policy.activate(active, record=lambda: None)
        yield world


def refund(world, run_id: str, app: str = "billing", **more):
    """A refund asked for in a run, or outside of the desk's own."""
    name = json.dumps(sorted(more.items()), default=str)
    return world.call(app, run_id=run_id, step_key=key(name), **more)


def test_a_task_is_given_and_done_within_its_bounds(ruled) -> None:
    """The callee's own grant looks at who asked; the caller's obligation bounds it."""
    answer = delegate(ruled)
    assert answer.state is State.RESERVED
    begin(ruled, run_of(answer))
    assert refund(ruled, run_of(answer)).state is State.DONE
    over = refund(ruled, run_of(answer), arguments={"order": "A1", "amount": 51})
    assert over.reasons == ("narrowed",)
    lookup = refund(ruled, run_of(answer), tool="orders.lookup", arguments={"order": "A1"})
    assert lookup.reasons == ("narrowed",)
    assert refund(ruled, "run-1", "desk").reasons == ("tool_not_granted",)


@pytest.mark.parametrize("to", ["refunds", "a0"])
def test_a_task_needs_a_grant(ruled, to) -> None:
    """As any call does: the agent is there, and this caller may not ask it."""
    answer = delegate(ruled, to)
    assert (answer.state, answer.reasons) == (State.DENIED, ("tool_not_granted",))
    assert ruled.run(run_of(answer)) is None


def test_a_callee_may_not_ask_what_only_its_caller_may(ruled) -> None:
    """Neither back, nor on: its rights are its own."""
    answer = delegate(ruled)
    begin(ruled, run_of(answer))
    for to in ("refunds", "billing"):
        asked = delegate(ruled, to, app="billing", run_id=run_of(answer))
        assert asked.reasons == ("tool_not_granted",)
