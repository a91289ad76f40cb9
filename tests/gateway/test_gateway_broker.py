"""A brokered call below the wire: what runs, what is recorded, and what is refused."""

from dataclasses import replace

import pytest
from fakes.gateway_parts import ALLOW, deny, peer
from meshgate_gateway import decide
from meshgate_gateway.decide import Permit
from meshgate_gateway.errors import (
    Conflict,
    InvalidRequest,
    Missing,
    NotPermitted,
    RuntimeUnavailable,
    StoreUnavailable,
    Unauthenticated,
    Unavailable,
)
from meshgate_gateway.execute import Executor
from meshgate_gateway.model import CallRequest, Outcome, Presented, State


def test_an_allowed_call_is_recorded_run_and_recorded(world) -> None:
    """Decision, take and outcome are on record in this order, and the answer is the tool's."""
    answer = world.call()
    assert (answer.state, answer.result) == (State.DONE, b'{"amount": 20, "order": "A1"}')
    kinds = [record["kind"] for record in world.records() if record.get("call_id") == answer.call_id]
    assert kinds == ["decision", "take", "outcome"]
    assert world.runtime.effects == [answer.call_id]


def test_the_decision_is_on_disk_before_the_runtime_hears_of_it(world) -> None:
    """When dispatch is called the allow is committed."""
    seen = []

    def dispatch(call_id: str, host: str, *, fresh: bool = False) -> None:
        seen.append((world.row(call_id).state, world.records("decision")[-1]["call_id"] == call_id))

    world.runtime.dispatch = dispatch
    world.call()
    assert seen == [(State.RESERVED, True)]


def test_a_denial_runs_nothing_and_is_answered_again(world) -> None:
    """Denied: one record, one line for the model, the same answer to the same question."""
    world.policy.answer = deny("tool_not_granted")
    first, second = world.call(), world.call()
    assert first == second
    assert (first.state, first.reasons) == (State.DENIED, ("tool_not_granted",))
    assert first.message == f"denied [{first.decision_id}]: tool_not_granted; do not retry"
    assert world.runtime.effects == []
    assert len(world.records("decision")) == 1


@pytest.mark.parametrize(
    "answer", [None, {"allow": "yes"}, {**ALLOW, "allow": 1}, {**ALLOW, "extra": 1}, [], object()]
)
def test_an_undefined_or_mistyped_answer_is_a_denial(world, answer) -> None:
    """Anything but a well-formed allow denies, as policy_invalid."""
    world.policy.answer = answer
    assert world.call().reasons == ("policy_invalid",)
    assert [(r["allow"], r["reasons"]) for r in world.records("decision")] == [(False, ["policy_invalid"])]
    assert world.runtime.effects == []


def test_no_answer_is_unavailable_and_leaves_no_row(world) -> None:
    """An engine that is away is no verdict: nothing ran, no ledger row, one record, later the answer."""
    world.policy.away = True
    with pytest.raises(Unavailable) as caught:
        world.call()
    assert caught.value.reason == "policy_unavailable"
    assert [r["reason"] for r in world.records("refusal")] == ["policy_unavailable"]
    assert world.runtime.effects == []
    world.policy.away = False
    assert world.call().state is State.DONE


def test_a_store_that_cannot_write_runs_nothing(world) -> None:
    """Not stored: unavailable, no effect; afterwards the same key gives the one outcome."""
    world.store.fail_before = True
    with pytest.raises(StoreUnavailable):
        world.call()
    assert world.runtime.effects == []
    world.store.fail_before = False
    assert world.call().state is State.DONE
    assert len(world.runtime.effects) == 1


def test_a_commit_reported_as_failed_is_joined_later(world) -> None:
    """Stored but reported failed: nothing runs now, the repeat finds the row and runs it once."""
    world.store.fail_after = True
    with pytest.raises(StoreUnavailable):
        world.call()
    assert world.runtime.effects == []
    assert world.call().state is State.DONE
    assert len(world.runtime.effects) == 1
    assert len(world.records("decision")) == 1


def test_a_runtime_that_is_away_leaves_the_call_reserved(world) -> None:
    """Decided but not dispatched: the repeat dispatches and is not decided again."""
    world.runtime.away = True
    with pytest.raises(RuntimeUnavailable):
        world.call()
    world.runtime.away = False
    assert world.call().state is State.DONE
    assert len(world.policy.asked) == 1


def test_a_host_that_is_down_means_pending_then_the_outcome(world) -> None:
    """PENDING while the host is away; after its return the same key has the one outcome."""
    world.runtime.held = True
    assert world.call().state is State.RESERVED
    assert world.call().state is State.RESERVED
    world.runtime.deliver_all()
    assert world.call().state is State.DONE
    assert len(world.runtime.effects) == 1


def test_a_repeat_is_answered_from_the_ledger(world) -> None:
    """The same key and arguments run once, however often they are asked."""
    assert world.call() == world.call()
    assert len(world.runtime.effects) == 1


def test_the_same_key_with_other_arguments_is_refused(world) -> None:
    """One key is one call; the attempt to change it is one record."""
    world.call()
    with pytest.raises(Conflict) as caught:
        world.call(arguments={"order": "A1", "amount": 21})
    assert caught.value.reason == "call_changed"
    with pytest.raises(Conflict):
        world.call(tool="orders.keyed")
    assert len(world.records("refusal")) == 2
    assert len(world.runtime.effects) == 1


def test_a_key_that_another_caller_holds_is_refused(world) -> None:
    """Should two callers ever meet in one id, the second gets nothing of the first one's call."""
    call_id = world.call().call_id
    held = replace(world.row(call_id), caller="spiffe://desk.example/ns/desk/rival")
    assert world.store.write(lambda tables: tables.calls.move(world.row(call_id), held))
    with pytest.raises(NotPermitted) as caught:
        world.call()
    assert caught.value.reason == "call_not_owned"
    assert [(r["reason"], r["call_id"]) for r in world.records("refusal")] == [("call_not_owned", call_id)]
    assert world.runtime.effects == [call_id]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (b"nonsense", "arguments_not_json"),
        (b"[]", "arguments_not_an_object"),
        (b'{"order":"A","amount":1,"amount":9999}', "arguments_duplicate_key"),
        (b'{"order":"A","amount":1,"Amount":9999}', "arguments_case_variant_keys"),
        (b'{"order":"A","amount":NaN}', "arguments_not_finite"),
        (b'{"order":"A","amount":1e999}', "arguments_not_finite"),
        (b'{"order":"A","amount":9007199254740992}', "arguments_integer_too_large"),
        (b'{"order":"A","amount":1,"card":"x"}', "arguments_invalid"),
        (b'{"order":"A","amount":"1"}', "arguments_invalid"),
        (b'{"order":"A"}', "arguments_invalid"),
        (b'{"order":"' + b"x" * 1_000_000 + b'","amount":1}', "arguments_too_large"),
        (b'{"order":' + b"[" * 200 + b"]" * 200 + b',"amount":1}', "arguments_too_deep"),
        (b'{"order":"\xff","amount":1}', "arguments_not_json"),
        (b'{"order":"\\ud800","amount":1}', "arguments_not_json"),
    ],
)
def test_malformed_arguments_are_denied_with_one_record(world, arguments, reason) -> None:
    """No policy is asked about arguments that two readers could read differently."""
    answer = world.call(arguments=arguments)
    assert (answer.state, answer.reasons) == (State.DENIED, (reason,))
    assert world.call(arguments=arguments) == answer
    assert [record["reason"] for record in world.records("refusal")] == [reason]
    assert world.policy.asked == []
    assert world.runtime.effects == []


def test_an_unknown_tool_is_denied_with_one_record(world) -> None:
    """A tool the catalogue does not have is never put to a policy."""
    assert world.call(tool="orders.nothing").reasons == ("tool_unknown",)
    assert world.call(tool="no/tool\n", step_key="1" * 32).reasons == ("tool_unknown",)
    assert [record["tool"] for record in world.records("refusal")] == ["orders.nothing", ""]
    assert world.policy.asked == []


def test_what_the_caller_says_of_itself_stays_apart(world) -> None:
    """The policy sees the certificate as caller; claims go to `untrusted` and nowhere else."""
    world.call(untrusted={"role": "spiffe://desk.example/ns/desk/admin"})
    asked = world.policy.asked[0]
    assert asked["caller"]["spiffe_id"] == "spiffe://desk.example/ns/desk/desk"
    assert asked["untrusted"] == {"role": "spiffe://desk.example/ns/desk/admin"}
    assert asked["call"]["args"] == {"order": "A1", "amount": 20}
    assert asked["run"]["id"] == "run-1"


@pytest.mark.parametrize(
    ("app", "changed", "error", "reason"),
    [
        ("rival", {}, Missing, "run_unknown"),
        ("desk", {"run_id": "run-2"}, Missing, "run_unknown"),
        ("desk", {"attempt": 0}, Conflict, "attempt_superseded"),
        ("desk", {"attempt": 2}, Conflict, "attempt_superseded"),
        ("desk", {"run_id": ""}, NotPermitted, "call_outside_run"),
        ("orders", {}, NotPermitted, "call_not_permitted"),
        ("operator", {}, NotPermitted, "call_not_permitted"),
        ("stranger", {}, NotPermitted, "caller_unknown"),
        ("desk", {"step_key": "../etc"}, InvalidRequest, "step_key_invalid"),
        ("desk", {"run_id": "a/b"}, InvalidRequest, "run_id_invalid"),
        ("desk", {"untrusted": {"A-B": "x"}}, InvalidRequest, "untrusted_invalid"),
        ("nightly", {"run_id": "", "step_key": "0" * 32}, InvalidRequest, "step_key_invalid"),
    ],
)
def test_who_may_not_call_is_refused_with_one_record(world, app, changed, error, reason) -> None:
    """Foreign runs, wrong attempts, wrong kinds of apps and odd ids: one record each, nothing runs."""
    with pytest.raises(error) as caught:
        world.call(app, **changed)
    assert caught.value.reason == reason
    assert [record["reason"] for record in world.records("refusal")] == [reason]
    assert world.runtime.effects == []


def test_a_program_may_call_outside_of_a_run(world) -> None:
    """With a UUIDv7 as its key."""
    key = "01890a5d-ac96-774b-bcce-b302099a8057"
    assert world.call("nightly", run_id="", attempt=0, step_key=key).state is State.DONE
    assert world.policy.asked[0]["run"] is None


def test_a_certificate_that_proves_nothing_is_one_record(world) -> None:
    """Authentication failures are recorded before anything of the request is looked at."""
    request = CallRequest("run-1", 1, "0" * 32, "orders.refund", b"{}", 0, {})
    for chain in (b"garbage", b""):
        with pytest.raises(Unauthenticated):
            world.broker.handle(Presented(chain, "TLSv1.3", "x"), request)
    assert [record["reason"] for record in world.records("authentication")] == ["chain", "no_certificate"]
    with pytest.raises(NotPermitted):
        world.broker.handle(peer("desk", mesh="othermesh"), request)
    with pytest.raises(NotPermitted):
        world.broker.handle(peer("desk", trust_domain="evil.example"), request)
    assert len(world.records("refusal")) == 2


def test_a_call_taken_once_is_refused_to_everybody_else(world) -> None:
    """Foreign host, agent, unknown id, finished call: refused, recorded, no second effect."""
    answer = world.call()
    for app, call_id, reason in (
        ("other", answer.call_id, "call_not_owned"),
        ("desk", answer.call_id, "call_not_owned"),
        ("orders", "c" + "0" * 40, "call_not_owned"),
        ("orders", answer.call_id, "call_settled"),
        ("orders", "nonsense", "call_id_invalid"),
    ):
        with pytest.raises((NotPermitted, Conflict, InvalidRequest)) as caught:
            world.hosts.take(peer(app), call_id=call_id, host_instance="x")
        assert caught.value.reason == reason
    assert len(world.records("refusal")) == 5


def test_a_forged_outcome_is_refused(world) -> None:
    """Only the host that took the call, with the take it was given, settles it."""
    world.runtime.held = True
    call_id = world.call().call_id
    forged = Outcome(State.DONE, b"forged", "text")

    def finish(app: str, take: int) -> str:
        with pytest.raises((NotPermitted, Conflict)) as caught:
            world.hosts.finish(peer(app), call_id=call_id, take=take, host_instance="x", outcome=forged)
        return caught.value.reason

    assert finish("orders", 0) == "call_not_taken"
    taken = world.hosts.take(peer("orders"), call_id=call_id, host_instance="x")
    assert finish("other", 1) == "call_not_owned"
    assert finish("desk", 1) == "call_not_owned"
    assert finish("orders", taken.row.take + 1) == "take_superseded"
    assert len(world.records("refusal")) == 4
    assert world.row(call_id).state is State.SENT


def test_the_same_outcome_again_is_no_error_another_is(world) -> None:
    """A host that repeats FinishCall after a restart is answered; a changed result is refused."""
    call_id = world.call().call_id
    first = Outcome(State.DONE, b'{"amount": 20, "order": "A1"}', "text")
    settle = {"call_id": call_id, "take": 1, "host_instance": "restarted"}
    assert world.hosts.finish(peer("orders"), outcome=first, **settle) is State.DONE
    with pytest.raises(Conflict):
        world.hosts.finish(peer("orders"), outcome=Outcome(State.DONE, b"other", "text"), **settle)


def test_a_second_take_of_a_repeatable_tool_is_sent_again(world) -> None:
    """Read and idempotent: the same key, the next take, and the host is told."""
    world.runtime.held = True
    for tool, arguments in (("orders.lookup", {"order": "A"}), ("orders.keyed", {"order": "A", "amount": 1})):
        call_id = world.call(tool=tool, arguments=arguments, step_key=tool.encode().hex()).call_id
        first = world.hosts.take(peer("orders"), call_id=call_id, host_instance="a")
        again = world.hosts.take(peer("orders"), call_id=call_id, host_instance="b")
        assert (first.row.take, first.taken_before) == (1, False)
        assert (again.row.take, again.taken_before, again.arguments) == (2, True, first.arguments)
        with pytest.raises(Conflict):
            world.hosts.finish(
                peer("orders"),
                call_id=call_id,
                take=1,
                host_instance="a",
                outcome=Outcome(State.DONE, b"1", "text"),
            )


def test_a_second_take_of_any_other_tool_makes_it_unknown(world) -> None:
    """By another process: unknown and refused, until a late outcome settles it."""
    world.runtime.held = True
    call_id = world.call().call_id
    world.hosts.take(peer("orders"), call_id=call_id, host_instance="a")
    with pytest.raises(Conflict) as caught:
        world.hosts.take(peer("orders"), call_id=call_id, host_instance="a")
    assert (caught.value.reason, world.row(call_id).state) == ("call_taken", State.SENT)
    with pytest.raises(Conflict) as caught:
        world.hosts.take(peer("orders"), call_id=call_id, host_instance="b")
    assert caught.value.reason == "call_unknown"
    answer = world.call()
    assert (answer.state, answer.error_class) == (State.UNKNOWN, "lost_host")
    late = Outcome(State.DONE, b"late", "text")
    world.hosts.finish(peer("orders"), call_id=call_id, take=1, host_instance="a", outcome=late)
    assert world.call().result == b"late"


def test_a_superseded_attempt_begins_nothing(world) -> None:
    """A call of attempt 1 is not handed out once attempt 2 works; attempt 2 joins and gets it."""
    world.runtime.held = True
    call_id = world.call().call_id
    world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l2")
    world.runtime.deliver_all()
    assert world.runtime.refusals == ["attempt_superseded"]
    with pytest.raises(Conflict):
        world.call(attempt=1)
    world.runtime.held = False
    world.executor.forget(call_id)
    assert world.call(attempt=2).state is State.DONE
    assert world.runtime.effects == [call_id]


def test_a_run_that_ended_is_closed(world) -> None:
    """No call, no heartbeat, no attempt after the end."""
    world.runs.finish(peer("desk"), run_id="run-1", attempt=1, state="completed", detail="")
    with pytest.raises(Conflict):
        world.call()
    with pytest.raises(Conflict):
        world.runs.heartbeat(peer("desk"), run_id="run-1", attempt=1, steps=1)
    with pytest.raises(Conflict):
        world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l9")


def test_runs_belong_to_their_app(world) -> None:
    """Another app can neither work on a run nor end it; a tool host cannot start one."""
    with pytest.raises(Missing):
        world.runs.start(peer("rival"), run_id="run-1", input_json=b"")
    with pytest.raises(Missing):
        world.runs.start_attempt(peer("rival"), run_id="run-1", launcher="x")
    with pytest.raises(Missing):
        world.runs.finish(peer("rival"), run_id="run-1", attempt=1, state="failed", detail="")
    with pytest.raises(NotPermitted):
        world.runs.start(peer("orders"), run_id="run-9", input_json=b"")
    assert len(world.records("refusal")) == 4


def test_the_sweeper_settles_what_was_left(world) -> None:
    """Past the deadline a read failed, anything else is unknown; never started is failed."""
    world.runtime.held = True
    read = world.call(tool="orders.lookup", arguments={"order": "A"}, step_key="1" * 32).call_id
    other = world.call(step_key="2" * 32).call_id
    for call_id in (read, other):
        world.hosts.take(peer("orders"), call_id=call_id, host_instance="a")
    idle = world.call(step_key="3" * 32).call_id
    assert world.sweeper.sweep() == 0
    world.clock.ms += 40_000
    world.sweeper.sweep()
    assert (world.row(read).state, world.row(read).error_class) == (State.FAILED, "timeout")
    assert (world.row(other).state, world.row(other).error_class) == (State.UNKNOWN, "timeout")
    world.clock.ms += 700_000
    world.sweeper.sweep()
    assert (world.row(idle).state, world.row(idle).error_class) == (State.FAILED, "never_started")
    assert {r["cause"] for r in world.records("outcome")} == {"deadline", "never_started"}


def test_the_sweeper_starts_what_a_dead_gateway_reserved(world) -> None:
    """A call that was recorded and never dispatched is dispatched by the sweep."""
    world.runtime.away = True
    with pytest.raises(RuntimeUnavailable):
        world.call()
    world.runtime.away = False
    world.clock.ms += 11_000
    assert world.sweeper.sweep() == 1
    assert world.call().state is State.DONE


def test_a_tool_that_raises_is_a_failure_with_its_class(world) -> None:
    """The model sees the message; the class is on record, the message is not."""

    def broken(**_: object) -> object:
        raise ValueError("no such order")

    world.runtime.tools["orders.refund"] = broken
    answer = world.call()
    assert (answer.state, answer.error_class, answer.message) == (
        State.FAILED,
        "ValueError",
        "no such order",
    )
    assert "no such order" not in str(world.records())


def test_no_record_holds_clear_text(world) -> None:
    """Arguments and results appear as payload id and commitment only."""
    world.call(arguments={"order": "very-secret-order", "amount": 7})
    assert "very-secret-order" not in str(world.records())
    assert world.records("decision")[0]["arguments"]["hmac_sha256"]


def test_only_decide_mints_a_permit(world) -> None:
    """A Permit cannot be made, and execute takes nothing else."""
    with pytest.raises(RuntimeError):
        Permit("c1", "me", "t", "h", "D-1", object())
    with pytest.raises(RuntimeError):
        Executor(runtime=world.runtime).start("c1", fresh=True)
    row = world.row(world.call().call_id)
    with pytest.raises(RuntimeError):
        decide.permit_of(row)
