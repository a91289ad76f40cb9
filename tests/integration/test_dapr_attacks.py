"""Attacks on the Dapr plane of a real mesh: each is refused, or has no effect and one record.

The attacker is an agent: it has its own sidecar and its token, or even its Dapr certificate. The
last part drives the gateway's own sidecar: that is what Dapr itself may do, and more than any agent.
"""

import json
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from fakes import dapr_wire
from fakes.attacked_mesh import INTERNAL, Attacked, actor, ask
from fakes.dapr_wire import Enrolled, Target
from fakes.live_mesh import eventually

pytestmark = [pytest.mark.plane, pytest.mark.timeout(300)]

POLICY = "access denied by workflow access policy"
EVENTS: dict[str, Callable[[], bytes]] = {
    "a result": dapr_wire.task_completed,
    "an event": dapr_wire.event_raised,
    "an end": dapr_wire.terminated,
}


def undecided() -> str:
    """A call id that looks right and that no policy ever saw."""
    return "c" + secrets.token_hex(20)


def refused_by_policy(attacked: Attacked, target: Target, method: str, body: bytes) -> None:
    """The agent's sidecar gets no, for the right reason, and nothing changed."""
    before = attacked.seen()
    kept = attacked.histories(target.actor)
    status, text = attacked.invoke_actor("nightly", target, method, body)
    assert status >= 400
    assert POLICY in text
    assert attacked.seen() == before
    assert attacked.histories(target.actor) == kept


# ---- an agent's own sidecar, with its own token


@pytest.mark.usefixtures("victim")
@pytest.mark.parametrize(("app", "name"), [("gateway", "call"), ("weekly", "run"), ("orders", "call")])
def test_a_workflow_is_started_in_nobody_else_s_app(attacked: Attacked, app: str, name: str) -> None:
    """CreateWorkflowInstance on the gateway's, another agent's and a tool host's app."""
    target = actor(app, "workflow", f"forged-{secrets.token_hex(8)}")
    body = dapr_wire.start(target.actor, name, {"call_id": undecided(), "host": "orders"})
    refused_by_policy(attacked, target, "CreateWorkflowInstance", body)


def test_a_call_under_way_takes_no_event_from_an_agent(attacked: Attacked) -> None:
    """AddWorkflowEvent on the gateway's live workflow; the call ends as if nothing had been."""
    with attacked.under_way("E-1") as (call_id, released):
        target = actor("gateway", "workflow", call_id)
        for event in EVENTS.values():
            refused_by_policy(attacked, target, "AddWorkflowEvent", event())
        assert "GOT 'did slow E-1'" in released()
    assert attacked.mesh.effects().count("slow E-1") == 1


@pytest.mark.usefixtures("victim")
@pytest.mark.parametrize("event", EVENTS)
def test_another_agent_s_workflow_takes_no_event(attacked: Attacked, event: str) -> None:
    """AddWorkflowEvent on a workflow that waits for just this event."""
    refused_by_policy(attacked, actor("weekly", "workflow", "victim"), "AddWorkflowEvent", EVENTS[event]())


@pytest.mark.usefixtures("victim")
def test_another_agent_s_activity_is_not_run(attacked: Attacked) -> None:
    """Execute of `start_run`, which only the gateway may."""
    target = actor("weekly", "activity", f"forged-{secrets.token_hex(8)}::0::1")
    body = dapr_wire.activity("start_run", {"call_id": undecided()})
    refused_by_policy(attacked, target, "Execute", body)


def test_a_tool_host_s_invoke_is_not_an_agent_s(attacked: Attacked, finished: list[str]) -> None:
    """Execute of `invoke`, for a call never decided and for one that was allowed and is over."""
    for call_id in (undecided(), finished.pop()):
        target = actor("orders", "activity", f"{call_id}::0::1")
        refused_by_policy(attacked, target, "Execute", dapr_wire.activity("invoke", {"call_id": call_id}))
        assert attacked.refusals(call_id) == []


# ---- an agent's Dapr certificate


def test_a_planted_job_takes_nothing(attacked: Attacked, certificate: Enrolled) -> None:
    """A job that repeats for ever reaches the host once: refused at TakeCall, recorded once."""
    call_id, later = undecided(), undecided()
    before = attacked.mesh.effects(), attacked.ledger()
    for name, due, retry in ((call_id, "0s", dapr_wire.FOR_EVER), (later, "4s", dapr_wire.DROP)):
        event = dapr_wire.activity("invoke", {"call_id": name}, source="gateway")
        target = actor("orders", "activity", f"{name}::0::1")
        assert attacked.plant(certificate, "nightly", target, event, retry=retry, due=due).status == "OK"
    # The second job is due after the first could have come four times.
    eventually(lambda: attacked.refusals(later), "the later job is delivered")
    assert attacked.refusals(call_id) == [("TakeCall", "call_not_owned")]
    assert attacked.refusals(later) == [("TakeCall", "call_not_owned")]
    assert (attacked.mesh.effects(), attacked.ledger()) == before


def test_a_planted_job_does_not_repeat_a_call(
    attacked: Attacked, certificate: Enrolled, finished: list[str]
) -> None:
    """A call that was allowed and is over: no second effect, one more record."""
    call_id = finished.pop()
    before = attacked.mesh.effects(), attacked.ledger()
    event = dapr_wire.activity("invoke", {"call_id": call_id}, source="gateway")
    target = actor("orders", "activity", f"{call_id}::0::9")
    assert attacked.plant(certificate, "nightly", target, event).status == "OK"
    eventually(lambda: attacked.refusals(call_id), "the job is delivered")
    assert attacked.refusals(call_id) == [("TakeCall", "call_settled")]
    assert (attacked.mesh.effects(), attacked.ledger()) == before


def test_a_planted_result_is_no_outcome(attacked: Attacked, certificate: Enrolled) -> None:
    """A reminder on the gateway's workflow says the tool is done: the agent gets the real answer."""
    with attacked.under_way("R-1") as (call_id, released):
        target = actor("gateway", "workflow", call_id, "activity-result-forged")
        planted = attacked.plant(certificate, "nightly", target, dapr_wire.task_completed())
        assert planted.status == "OK"
        eventually(lambda: over(attacked, call_id), "the forged result is delivered")
        assert attacked.count("outcome", call_id) == 0
        assert "GOT 'did slow R-1'" in released()
    assert attacked.mesh.effects().count("slow R-1") == 1
    assert attacked.count("outcome", call_id) == 1


def test_no_job_is_planted_in_another_app_s_name(attacked: Attacked, certificate: Enrolled) -> None:
    """The scheduler compares the app with the certificate."""
    call_id = undecided()
    target = actor("orders", "activity", f"{call_id}::0::1")
    answer = attacked.plant(
        certificate, "gateway", target, dapr_wire.activity("invoke", {"call_id": call_id})
    )
    assert (answer.status, answer.message) == ("PERMISSION_DENIED", "identity does not match request")
    assert attacked.refusals(call_id) == []


@pytest.mark.parametrize("method", ["CallActor", "CallActorReminder"])
@pytest.mark.parametrize("app", ["gateway", "orders"])
def test_a_sidecar_s_inner_door_knows_the_caller(
    attacked: Attacked, certificate: Enrolled, app: str, method: str
) -> None:
    """Sidecar to sidecar, past the agent's own sidecar: the policy is asked all the same."""
    call_id = undecided()
    if app == "gateway":
        target = actor("gateway", "workflow", call_id)
        asked, body = "CreateWorkflowInstance", dapr_wire.start(call_id, "call", {"call_id": call_id})
    else:
        target = actor("orders", "activity", f"{call_id}::0::1")
        asked, body = "Execute", dapr_wire.activity("invoke", {"call_id": call_id})
    before = attacked.seen()
    sent = dapr_wire.reminder(target, body) if method == "CallActorReminder" else None
    sent = sent or dapr_wire.actor_call(target, asked, body)
    answer = dapr_wire.call(
        attacked.internal(app), INTERNAL + method, sent, roots=attacked.trust_anchors, identity=certificate
    )
    assert answer.status == "PERMISSION_DENIED"
    assert answer.message.startswith(POLICY)
    assert attacked.seen() == before


# ---- deliveries again, by the gateway's own sidecar with its own token


def workflow(attacked: Attacked, path: str, body: Any = None) -> dict[str, Any]:
    """The workflow API of the gateway's sidecar."""
    url = f"{attacked.api('gateway')}/v1.0/workflows/dapr/{path}"
    method, data = ("GET", None) if body is None else ("POST", json.dumps(body).encode())
    status, text = ask(method, url, attacked.mesh.secret("gateway.dapr-api"), data)
    assert status in (200, 202), (status, text)
    return json.loads(text)


@pytest.fixture(scope="module")
def finished(attacked: Attacked) -> list[str]:
    """Calls that were allowed and are over, one for each test that takes one."""
    return attacked.ran("refund", "F-1", "F-2", "F-3")


def over(attacked: Attacked, instance: str) -> str:
    """How an instance ended; empty while it has not."""
    status = workflow(attacked, instance)["runtimeStatus"]
    return "" if status in ("PENDING", "RUNNING") else status


def delivered_again(attacked: Attacked, call_id: str) -> str:
    """Starts `call` under another instance id, which delivers the call id once more."""
    instance = f"again-{secrets.token_hex(8)}"
    workflow(attacked, f"call/start?instanceID={instance}", {"call_id": call_id, "host": "orders"})
    return instance


def test_a_call_delivered_twice_at_once_takes_effect_once(attacked: Attacked) -> None:
    """Two deliveries while the tool works: one take, one effect, one outcome."""
    with attacked.under_way("D-1") as (call_id, released):
        more = [delivered_again(attacked, call_id) for _ in range(2)]
        assert "GOT 'did slow D-1'" in released()
    for instance in more:
        eventually(lambda one=instance: over(attacked, one), "the delivery ends")
    assert attacked.mesh.effects().count("slow D-1") == 1
    counts = [attacked.count(kind, call_id) for kind in ("decision", "take", "outcome")]
    assert counts == [1, 1, 1]
    assert set(attacked.refusals(call_id)) <= {("TakeCall", "call_settled")}


def test_a_call_delivered_after_it_finished_is_refused(attacked: Attacked, finished: list[str]) -> None:
    """No second effect; each delivery leaves one record."""
    call_id = finished.pop()
    before = attacked.mesh.effects(), attacked.ledger()
    for times in (1, 2):
        instance = delivered_again(attacked, call_id)
        assert eventually(lambda one=instance: over(attacked, one), "the delivery ends") == "COMPLETED"
        assert attacked.refusals(call_id) == [("TakeCall", "call_settled")] * times
    assert (attacked.mesh.effects(), attacked.ledger()) == before


def test_a_call_that_was_denied_is_not_delivered(attacked: Attacked) -> None:
    """A decision is there, and it says no."""
    (call_id,) = attacked.ran("slow", "D-3", app="weekly")
    before = attacked.mesh.effects(), attacked.ledger()
    assert [row["allow"] for row in attacked.mesh.records(kind="decision", call_id=call_id)] == [False]
    instance = delivered_again(attacked, call_id)
    assert eventually(lambda: over(attacked, instance), "the delivery ends") == "COMPLETED"
    assert attacked.refusals(call_id) == [("TakeCall", "call_settled")]
    assert (attacked.mesh.effects(), attacked.ledger()) == before


def test_a_call_never_decided_is_refused(attacked: Attacked) -> None:
    """No effect, no ledger row, one record."""
    call_id = undecided()
    before = attacked.mesh.effects(), attacked.ledger()
    instance = delivered_again(attacked, call_id)
    assert eventually(lambda: over(attacked, instance), "the delivery ends") == "COMPLETED"
    assert attacked.refusals(call_id) == [("TakeCall", "call_not_owned")]
    assert (attacked.mesh.effects(), attacked.ledger()) == before


@pytest.mark.parametrize("given", ["c1", "", 7, None])
def test_what_is_no_call_id_is_not_even_asked(attacked: Attacked, given: object) -> None:
    """The host ignores another shape; the gateway hears nothing of it."""
    before = attacked.seen()
    instance = f"again-{secrets.token_hex(8)}"
    workflow(attacked, f"call/start?instanceID={instance}", {"call_id": given, "host": "orders"})
    assert eventually(lambda: over(attacked, instance), "the delivery ends") == "COMPLETED"
    assert attacked.seen() == before
