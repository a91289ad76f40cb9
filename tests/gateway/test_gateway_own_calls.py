"""`execute: agent`: decided and recorded as every call, run by its caller, its outcome held to."""

import json
from dataclasses import replace

import pytest
from fakes.gateway_parts import deny, peer
from gateway.conftest import CATALOGUE
from meshgate_gateway import catalogue, ledger, sweeper
from meshgate_gateway.errors import ConfigurationError, Conflict, Missing, NotPermitted, PolicyUnavailable
from meshgate_gateway.history import BranchOrder
from meshgate_gateway.model import Outcome, State
from meshgate_gateway.own_calls import OwnCall

STAGED = Outcome(State.DONE, b"staged", "text")
OTHER = Outcome(State.DONE, b"something else", "text")


def ask(world, **changed):
    """One call of the crew's own tool."""
    return world.call(tool="desk.stage", **changed)


def tell(world, answer, outcome=STAGED, *, app="desk", attempt=1, take=None):
    """What came of it."""
    chosen = answer.take if take is None else take
    return world.own_calls.finish(peer(app), OwnCall(answer.call_id, attempt, chosen), outcome)


def next_attempt(world, launcher="l2"):
    """The program is lost and another one begins."""
    return world.runs.start_attempt(peer("desk"), run_id="run-1", launcher=launcher).attempt


def test_a_call_is_decided_and_recorded_before_its_caller_may_run_it(world) -> None:
    """The answer holds the canonical bytes; no runtime, no host; the records say who ran it."""
    answer = ask(world, arguments=b'{"order": "A1", "amount": 20.0}')
    assert (answer.state, answer.arguments, answer.take) == (State.SENT, b'{"amount":20,"order":"A1"}', 1)
    assert world.policy.asked[-1]["call"]["effect"] == "memory"
    assert world.policy.asked[-1]["call"]["host"] == "desk"
    decision = world.records("decision")[-1]
    assert (decision["allow"], decision["executed_in"]) == (True, "agent")
    assert not world.records("outcome")
    assert world.runtime.effects == []
    told = tell(world, answer)
    assert (told.state, told.result, told.arguments) == (State.DONE, b"staged", b"")
    outcome = world.records("outcome")[-1]
    assert (outcome["executed_in"], outcome["settled_by"]) == ("agent", peer("desk").chain_pem.decode())
    assert ask(world).result == b"staged"
    assert not world.records("take")


def test_no_permit_without_a_durable_allow(world) -> None:
    """Denied, no engine, no store: nothing that says "run it"."""
    world.policy.answer = deny("no")
    refused = ask(world)
    assert (refused.state, refused.take, refused.arguments) == (State.DENIED, 0, b"")
    with pytest.raises(Conflict):
        tell(world, refused, take=0)
    world.policy.away = True
    with pytest.raises(PolicyUnavailable):
        ask(world, step_key="1" * 32)
    world.policy.away, world.policy.answer = (
        False,
        {"allow": True, "reasons": [], "approval": None, "obligations": {}},
    )
    world.store.fail_before = True
    with pytest.raises(Exception, match="not stored"):
        ask(world, step_key="2" * 32)


def test_another_apps_own_tool_is_denied_whatever_policy_says(world) -> None:
    """It runs in the process of the app it is of, and nowhere else."""
    world.begin(app="rival", run_id="run-2")
    answer = ask(world, app="rival", run_id="run-2")
    assert (answer.state, answer.reasons) == (State.DENIED, ("tool_of_another_app",))


def test_a_hosted_call_cannot_be_finished_by_its_caller(world) -> None:
    """Refused and recorded; what its host does is not disturbed."""
    world.runtime.held = True
    answer = world.call()
    assert answer.take == 0
    with pytest.raises(NotPermitted, match="call_not_in_agent"):
        tell(world, answer, take=0)
    with pytest.raises(NotPermitted, match="call_not_in_agent"):
        tell(world, answer, take=1)
    assert world.row(answer.call_id).state is State.RESERVED
    refusal = world.records("refusal")[-1]
    assert (refusal["method"], refusal["reason"]) == ("FinishOwnCall", "call_not_in_agent")


def test_a_foreign_call_cannot_be_finished(world) -> None:
    """Another crew, a tool host, and an id that nobody has."""
    answer = ask(world)
    world.begin(app="rival", run_id="run-2")
    for app in ("rival", "orders"):
        with pytest.raises(NotPermitted, match="call_not_owned"):
            tell(world, answer, app=app)
        assert world.records("refusal")[-1]["reason"] == "call_not_owned"
    with pytest.raises(NotPermitted, match="call_not_owned"):
        world.own_calls.finish(peer("desk"), OwnCall("c" + "0" * 40, 1, 1), STAGED)
    assert world.row(answer.call_id).state is State.SENT


def test_a_tool_host_cannot_take_or_finish_what_an_agent_runs(world) -> None:
    """Its certificate names another app than the tool's."""
    answer = ask(world)
    for app in ("orders", "desk"):
        with pytest.raises(NotPermitted, match="call_not_owned"):
            world.hosts.take(peer(app), call_id=answer.call_id, host_instance="x")
        with pytest.raises(NotPermitted, match="call_not_owned"):
            world.hosts.finish(peer(app), call_id=answer.call_id, take=1, host_instance="x", outcome=STAGED)


def test_a_stale_attempt_finishes_nothing(world) -> None:
    """Superseded, or not the attempt that was told to run it."""
    answer = ask(world)
    next_attempt(world)
    with pytest.raises(Conflict, match="attempt_superseded"):
        tell(world, answer)
    assert world.records("refusal")[-1]["reason"] == "attempt_superseded"
    with pytest.raises(Conflict, match="take_superseded"):
        tell(world, answer, attempt=2)
    again = ask(world, attempt=2)
    assert again.take == 2
    with pytest.raises(Conflict, match="take_superseded"):
        tell(world, answer, attempt=2)
    assert tell(world, again, attempt=2).state is State.DONE
    world.runs.end_attempt(peer("desk"), run_id="run-1", attempt=2, state="restarting", detail="")
    with pytest.raises(Conflict, match="attempt_ended"):
        tell(world, again, attempt=2)


def test_a_call_cut_by_a_crash_is_decided_again_and_run_again(world) -> None:
    """Never unknown: what it did went with its process. Both verdicts are recorded."""
    first = ask(world)
    world.clock.ms += 10_000_000
    assert world.sweeper.sweep() == 0
    assert world.row(first.call_id).state is State.SENT
    number = next_attempt(world)
    again = ask(world, attempt=number)
    assert (again.call_id, again.take, again.arguments) == (first.call_id, 2, first.arguments)
    assert [record["allow"] for record in world.records("decision")] == [True, True]


def test_an_equal_call_does_not_wait_for_one_that_died_with_its_process(world) -> None:
    """Another key, the same task and arguments: it is run, since nobody will ever finish the first."""
    task = "7a" * 32
    ask(world, step_key="a" * 64, task=task)
    again = ask(world, step_key="b" * 64, task=task, attempt=next_attempt(world))
    assert (again.take, tell(world, again, attempt=2).state) == (1, State.DONE)


def test_an_own_call_that_is_left_out_holds_the_next_one_of_its_tool(world) -> None:
    """What the last process had in its memory is not in this one, until it is asked for and run again."""
    tell(world, ask(world, step_key="a" * 64))
    with pytest.raises(Conflict, match="run_diverged"):
        ask(world, step_key="b" * 64, scope="5d" * 32, attempt=next_attempt(world), left_out="a" * 64)


def test_own_calls_keep_no_hosted_call_from_the_sweep(world, monkeypatch) -> None:
    """However many an agent leaves open: what a host had is settled at its deadline."""
    world.runtime.held = True
    hosted = world.call(step_key="c" * 64).call_id
    world.hosts.take(peer("orders"), call_id=hosted, host_instance="h1")
    monkeypatch.setattr(sweeper, "MAX_PER_SWEEP", 2)
    for number in range(3):
        world.clock.ms += 1
        ask(world, step_key=f"{number}" * 64)
    world.clock.ms += 10_000_000
    world.sweeper.sweep()
    assert world.row(hosted).state is State.UNKNOWN


def test_the_second_verdict_may_be_no(world) -> None:
    """A grant that was taken back meanwhile: the body does not run again."""
    ask(world)
    number = next_attempt(world)
    world.policy.answer = deny("revoked")
    again = ask(world, attempt=number)
    assert (again.state, again.reasons, again.arguments) == (State.DENIED, ("revoked",), b"")


def test_what_was_open_when_its_run_ended_failed(world) -> None:
    """The sweeper settles it, and it is no effect that might happen again."""
    answer = ask(world)
    world.runs.finish(peer("desk"), run_id="run-1", attempt=1, state="failed", detail="")
    world.clock.ms += 10_000_000
    assert world.sweeper.sweep() == 1
    row = world.row(answer.call_id)
    assert (row.state, row.error_class) == (State.FAILED, "run_ended")
    order = BranchOrder("run-1", "run-2", "rerun", 0, b"", "op")
    assert world.history.plan(order).effects == []


def test_the_journal_tells_the_next_attempt_to_run_it_again(world) -> None:
    """With the arguments that were decided on. A hosted call, a denied one and a repeat come without."""
    task = "7a" * 32
    tell(world, ask(world, task=task))
    assert ask(world, step_key="1" * 32, task=task).result == b"staged"
    world.call(step_key="2" * 32)
    world.policy.answer = deny("no")
    ask(world, step_key="3" * 32)
    entries = world.journal.read(peer("desk"), run_id="run-1", attempt=1)
    told = {entry.step.key[:1]: entry.arguments for entry in entries}
    assert told == {"0": b'{"amount":20,"order":"A1"}', "1": b"", "2": b"", "3": b""}


def test_the_same_outcome_again_is_no_error(world) -> None:
    """In the same attempt, and in a later one."""
    answer = ask(world)
    tell(world, answer)
    assert tell(world, answer).state is State.DONE
    with pytest.raises(Conflict, match="call_settled"):
        tell(world, answer, OTHER)
    number = next_attempt(world)
    assert tell(world, answer, attempt=number, take=0).result == b"staged"
    assert len(world.records("outcome")) == 1


@pytest.mark.parametrize(
    "other",
    [OTHER, Outcome(State.DONE, b"staged", "json"), Outcome(State.FAILED, b"staged", "", "tool_raised")],
)
def test_another_outcome_than_recorded_holds_the_run_up(world, other) -> None:
    """Both sides are kept, sealed; no record holds them in clear; a person says that it goes on."""
    answer = ask(world)
    tell(world, answer)
    number = next_attempt(world)
    if other.result_kind == "json":
        other = Outcome(State.DONE, b'"staged"', "json")
    with pytest.raises(Conflict, match="run_diverged"):
        tell(world, answer, other, attempt=number, take=0)
    run = world.run()
    assert (run.state, run.detail.startswith("diverged: desk.stage")) == ("waiting", True)
    sides = world.store.read(lambda tables: world.vault.get(tables, run.traceback)).decode()
    assert "recorded in attempt 1: done\nstaged" in sides
    assert "now, in attempt 2:" in sides
    assert other.data.decode() in sides
    committed = [record for record in world.records("lifecycle") if record["event"] == "run_differs"]
    assert committed[-1]["traceback"]["hmac_sha256"] == run.traceback.commitment
    assert "something else" not in json.dumps(world.records())
    world.runs.end_attempt(peer("desk"), run_id="run-1", attempt=number, state="restarting", detail="")
    world.runs.control(run_id="run-1", action="continue", operator="op")
    third = next_attempt(world, "l3")
    assert tell(world, answer, other, attempt=third, take=0).result == b"staged"
    assert world.run().state == "running"


def test_all_differences_of_an_attempt_are_kept_the_first_one_first(world) -> None:
    """Each once, however often it is told; those of the next attempt take their place."""
    answers = [ask(world, step_key=str(n) * 32, arguments={"order": str(n), "amount": 1}) for n in (1, 2)]
    for answer in answers:
        tell(world, answer)

    def told(attempt: int, *what: bytes) -> str:
        for answer, data in zip(answers, what, strict=True):
            with pytest.raises(Conflict, match="run_diverged"):
                tell(world, answer, Outcome(State.DONE, data, "text"), attempt=attempt, take=0)
        run = world.run()
        return world.store.read(lambda tables: world.vault.get(tables, run.traceback)).decode()

    number = next_attempt(world)
    told(number, b"first", b"second")
    sides = told(number, b"first", b"second")
    assert (sides.count("first"), sides.count("second"), sides.count("recorded in")) == (1, 1, 2)
    assert sides.index("first") < sides.index("second")
    large = told(number, b"x" * 100_000, b"y" * 100_000)
    assert large.startswith(sides)
    world.runs.end_attempt(peer("desk"), run_id="run-1", attempt=number, state="restarting", detail="")
    move(world, state="restarting")
    again = told(next_attempt(world, "l3"), b"third", b"fourth")
    assert "first" not in again
    assert "third" in again


def move(world, **changed) -> None:
    """Changes the run's row, as nothing but a test may."""

    def work(tables):
        run = tables.runs.get("run-1")
        return tables.runs.move(run, replace(run, **changed))

    assert world.store.write(work)


def test_a_fork_runs_its_copied_steps_again(world) -> None:
    """So that the new process holds what they made; their answers are compared, so nobody edits them."""
    answer = ask(world)
    tell(world, answer)
    world.runs.finish(peer("desk"), run_id="run-1", attempt=1, state="completed", detail="")
    edit = b'{"step": 1, "result": {"type": "text", "value": "x"}}'
    with pytest.raises(Conflict, match="step_not_editable"):
        world.history.make(BranchOrder("run-1", "run-3", "fork", 1, edit, "op"))
    world.history.make(BranchOrder("run-1", "run-2", "fork", 1, b"", "op"))
    assert world.records("copy")[-1]["executed_in"] == "agent"
    world.runs.start_attempt(peer("desk"), run_id="run-2", launcher="f1")
    (entry,) = world.journal.read(peer("desk"), run_id="run-2", attempt=1)
    assert entry.arguments == answer.arguments
    copied = entry.row
    assert tell(world, copied, attempt=1, take=0).result == b"staged"
    with pytest.raises(Conflict, match="run_diverged"):
        tell(world, copied, OTHER, attempt=1, take=0)


def test_an_open_call_outside_of_a_run_and_a_vanished_run_are_refused(world) -> None:
    """Only in a run can it be held to its word."""
    with pytest.raises(NotPermitted, match="call_outside_run"):
        ask(world, run_id="", app="nightly", step_key="01890000-0000-7000-8000-000000000000", scope="")
    with pytest.raises(Missing):
        ask(world, run_id="run-9")


def test_an_outcome_that_nobody_knows_is_none(world) -> None:
    """The ledger itself has no such step."""
    row = world.row(ask(world).call_id)
    with pytest.raises(RuntimeError, match="never unknown"):
        ledger.check_move(row, ledger.replace(row, state=State.UNKNOWN))


@pytest.mark.parametrize(
    ("tool", "change"),
    [
        ("desk.stage", {"effect": "external"}),
        ("desk.stage", {"effect": "read"}),
        ("desk.stage", {"execute": "toolhost"}),
        ("desk.stage", {"execute": "both"}),
        ("orders.refund", {"execute": "agent"}),
        ("orders.refund", {"execute": "agent", "effect": "memory"}),
    ],
)
def test_a_gateway_does_not_start_with_a_tool_in_the_wrong_place(tool, change) -> None:
    """A hosted tool is never run by an agent, an agent's own has no effect but in memory."""
    document = json.loads(json.dumps(CATALOGUE))
    document["tools"][tool] |= change
    with pytest.raises(ConfigurationError):
        catalogue.parse(json.dumps(document).encode())


def test_a_tool_host_is_told_that_it_makes_no_calls(world) -> None:
    """Before anything is looked up, so it learns nothing of a call."""
    answer = ask(world)
    with pytest.raises(NotPermitted) as caught:
        tell(world, answer, app="orders")
    assert caught.value.call_id == ""
