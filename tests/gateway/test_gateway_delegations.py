"""A task for another agent: a call and a run, made together, ended together. On both stores."""

import json
import threading
from dataclasses import replace

import pytest
from fakes.gateway_parts import deny, peer
from gateway.conftest import CATALOGUE, make_world
from gateway.delegating import DONE, begin, delegate, descend, end, kinds, result_of, run_of, started
from gateway.test_gateway_history import key
from meshgate_gateway import catalogue
from meshgate_gateway.authenticate import Mesh
from meshgate_gateway.bounds import Bounds
from meshgate_gateway.delegations import MAX_ANSWER_BYTES
from meshgate_gateway.errors import Conflict, NotPermitted, RuntimeUnavailable, StoreUnavailable
from meshgate_gateway.model import Outcome, Sealed, State
from meshgate_gateway.own_calls import OwnCall

DESK, BILLING = "spiffe://desk.example/ns/desk/desk", "spiffe://desk.example/ns/desk/billing"
YEAR_MS = 31_536_000_000
LINK = {"spiffe_id": DESK, "trust_domain": "desk.example", "namespace": "desk", "app": "desk"}


def test_a_delegation_makes_a_run_and_tells_its_app(world) -> None:
    """Decision, ledger row and run; the callee reads the task; who asked is on record and with the run."""
    answer = delegate(world)
    assert (answer.state, world.row(answer.call_id).take) == (State.RESERVED, 0)
    run, given = world.runs.read(peer("billing"), run_id=run_of(answer))
    assert (run.app, run.state, run.attempt, run.driven) == (BILLING, "pending", 0, True)
    assert (run.origin, run.origin_run, run.parent_call, run.narrow) == ("start", "", answer.call_id, "")
    assert json.loads(given) == {"app": "billing", "delegation": {"task": "pay"}, "depth": 1}
    assert json.loads(run.chain) == [{"app": "desk", "spiffe_id": DESK, "run_id": "run-1"}]
    assert world.runtime.started == [(run.run_id, "billing")]
    assert world.runtime.effects == []
    record = started(world, run.run_id)
    assert (record["parent_call"], record["delegation"]) == (answer.call_id, [{**LINK, "run_id": "run-1"}])
    (decision,) = world.records("decision")
    assert (decision["kind_of_call"], decision["tool"], decision["host"]) == (
        "delegate", "agent:billing", "billing",
    )  # fmt: skip


def test_decision_row_and_run_are_one_transaction(world) -> None:
    """No room for one more run of the callee, or a store that fails: nothing of the call is stored."""
    rooms = world.broker._rooms
    full = replace(rooms.delegations, bounds=Bounds(open_runs=0))
    world.broker._rooms = replace(rooms, delegations=full)
    with pytest.raises(Conflict, match="open_runs_limit"):
        delegate(world)
    world.broker._rooms = rooms
    world.store.fail_before = True
    with pytest.raises(StoreUnavailable):
        delegate(world)
    world.store.fail_before = False
    assert world.store.read(lambda tables: tables.calls.of_run("run-1")) == []
    assert world.records("decision") == []
    assert delegate(world).state is State.RESERVED


def test_a_denied_delegation_starts_nothing(world) -> None:
    """One record; no run, nobody told."""
    world.policy.answer = deny("tool_not_granted")
    answer = delegate(world)
    assert (answer.state, answer.reasons) == (State.DENIED, ("tool_not_granted",))
    assert world.run(run_of(answer)) is None
    assert world.runtime.started == []


def test_the_run_s_begin_and_end_are_the_call_s(world) -> None:
    """Sent with the first attempt, done with the result; a second attempt of the run is no second take."""
    answer = delegate(world)
    run_id = run_of(answer)
    begin(world, run_id)
    assert (world.row(answer.call_id).state, world.row(answer.call_id).take) == (State.SENT, 1)
    begin(world, run_id, "w2")
    assert (world.row(answer.call_id).state, world.row(answer.call_id).take) == (State.SENT, 1)
    assert delegate(world).state is State.SENT
    end(world, run_id)
    answer = delegate(world)
    assert (answer.state, answer.result_kind, answer.result) == (State.DONE, "json", DONE)
    assert result_of(answer) == {"output": {"type": "text", "value": "paid"}}
    assert kinds(world, answer.call_id) == ["decision", "outcome"]
    (outcome,) = world.records("outcome")
    assert (outcome["settled_by"], outcome["cause"], outcome["state"]) == (
        f"run {run_id}", "run_completed", "done",
    )  # fmt: skip
    assert len(world.policy.asked) == 1
    assert world.runtime.started == [(run_id, "billing")]


def test_the_end_is_stored_with_its_outcome_or_not_at_all(world) -> None:
    """A store that fails keeps both as they were; one that only says so has both."""
    answer = delegate(world)
    begin(world, run_of(answer))
    world.store.fail_before = True
    with pytest.raises(StoreUnavailable):
        end(world, run_of(answer))
    world.store.fail_before = False
    assert (world.run(run_of(answer)).state, world.row(answer.call_id).state) == ("running", State.SENT)
    world.store.fail_after = True
    with pytest.raises(StoreUnavailable):
        end(world, run_of(answer))
    assert (world.run(run_of(answer)).state, world.row(answer.call_id).state) == ("completed", State.DONE)
    end(world, run_of(answer))  # told again
    assert kinds(world, answer.call_id) == ["decision", "outcome"]


@pytest.mark.parametrize(
    ("state", "result", "detail", "error_class", "message"),
    [
        ("completed", b"", "", "agent_no_result", "the agent's run ended without a result"),
        ("completed", b"{", "", "agent_result_invalid", "the agent's result is not JSON"),
        ("failed", b"", "KeyError: 'total'\nsecond line", "agent_failed", "KeyError: 'total' second line"),
        ("failed", b"", "", "agent_failed", "the agent's run failed"),
        ("cancelled", b"", "by a signal", "cancelled", "the agent's run was cancelled: by a signal"),
        ("failed", b"", "x" * 2000, "agent_failed", "x" * 500),
    ],
)
def test_every_other_end_is_a_failure(world, state, result, detail, error_class, message) -> None:  # noqa: PLR0917
    """In one line that a model may see."""
    answer = delegate(world)
    begin(world, run_of(answer))
    end(world, run_of(answer), state, result, detail)
    answer = delegate(world)
    assert (answer.state, answer.error_class, answer.message) == (State.FAILED, error_class, message)


def test_a_result_that_no_answer_holds_is_a_failure(world) -> None:
    """Nothing is cut: half of a JSON value is none."""
    answer = delegate(world)
    begin(world, run_of(answer))
    huge = replace(world.run(run_of(answer)), state="completed")
    huge = replace(huge, result=Sealed("0" * 32, "0" * 64, MAX_ANSWER_BYTES + 1))
    world.store.write(lambda tables: world.runs.delegations.ended(tables, huge))
    answer = delegate(world)
    assert (answer.state, answer.error_class) == (State.FAILED, "agent_result_too_large")


def test_who_waits_is_woken(world) -> None:
    """The first question is answered with the result, by the transaction that ended the run."""
    woken = []
    waiters = world.broker._rooms.waiters
    wait = waiters.wait

    def watched(event, seconds):
        woken.append(wait(event, 60.0))
        return woken[-1]

    waiters.wait = watched
    threads = []

    def plays() -> None:
        (run_id, _) = world.runtime.started[-1] if world.runtime.started else ("", "")
        row = world.store.read(lambda tables: tables.calls.of_run("run-1"))[0]
        run_id = run_id or f"run-{row.call_id}"
        begin(world, run_id)
        end(world, run_id)

    def on_ask() -> None:
        threads.append(threading.Thread(target=plays))
        threads[-1].start()

    world.runtime.on_ask = on_ask
    answer = delegate(world)
    threads[0].join()
    assert (answer.state, answer.result, woken) == (State.DONE, DONE, [True])


@pytest.mark.parametrize("action", ["cancel", "fail"])
def test_an_operator_s_word_wakes_too(world, action) -> None:
    """Cancelled before it began, or failed while it waited."""
    answer = delegate(world)
    if action == "fail":
        begin(world, run_of(answer))
        run = world.run(run_of(answer))
        held = replace(run, state="waiting", detail="diverged: x")
        world.store.write(lambda tables: tables.runs.move(run, held))
    with world.broker._rooms.waiters.expecting(answer.call_id) as event:
        world.runs.control(run_id=run_of(answer), action=action, operator="ann")
        assert event.is_set()
    row = world.row(answer.call_id)
    assert (row.state, row.error_class) == (
        State.FAILED, {"cancel": "cancelled", "fail": "agent_failed"}[action],
    )  # fmt: skip


def test_a_runtime_that_is_away_delays_only(world) -> None:
    """The call stands and its caller waits; the sweep tells the app later."""
    world.runtime.away = True
    answer = delegate(world)
    assert answer.state is State.RESERVED
    world.runtime.away = False
    world.clock.ms += 6_000
    world.drive.sweep()
    assert world.runtime.started == [(run_of(answer), "billing")]


def test_no_sweep_ends_a_delegation(world) -> None:
    """Years later it is as open as its run, begun or not; no host is ever asked about it."""
    for step in ("begun", "not begun"):
        answer = delegate(world, "billing" if step == "begun" else "refunds")
        if step == "begun":
            begin(world, run_of(answer))
        before = world.row(answer.call_id)
        world.clock.ms += YEAR_MS
        world.sweeper.sweep()
        assert world.row(answer.call_id) == before
    assert world.runtime.waiting == []
    assert world.runtime.effects == []


def test_delegations_take_no_place_in_a_sweep(world, monkeypatch) -> None:
    """However many are open, calls of tool hosts and of agents are reached."""
    monkeypatch.setattr("meshgate_gateway.sweeper.MAX_PER_SWEEP", 1)
    world.runtime.held = True
    call = world.call(step_key="ab" * 16)
    for app in ("billing", "refunds"):
        world.clock.ms += 1
        delegate(world, app)
    world.clock.ms += YEAR_MS
    world.sweeper.sweep()
    assert world.row(call.call_id).error_class == "never_started"


@pytest.mark.parametrize("app", ["billing", "orders", "desk"])
def test_nobody_takes_or_finishes_a_delegation(world, app) -> None:
    """No tool host, not the callee, not the caller: only the end of its run is its outcome."""
    answer = delegate(world)
    begin(world, run_of(answer))
    with pytest.raises(NotPermitted, match="call_not_owned"):
        world.hosts.take(peer(app), call_id=answer.call_id, host_instance="i")
    outcome = Outcome(State.DONE, b"{}", "json")
    with pytest.raises(NotPermitted, match="call_not_owned"):
        world.hosts.finish(peer(app), call_id=answer.call_id, take=1, host_instance="i", outcome=outcome)
    with pytest.raises(NotPermitted):
        world.own_calls.finish(peer(app), OwnCall(answer.call_id, 1, 1), outcome)
    assert world.row(answer.call_id).state is State.SENT


def test_the_caller_s_next_attempt_joins(world) -> None:
    """Begun or not, the same key is the same call and the same run; the task is never given twice."""
    answer = delegate(world)
    world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l2")
    again = delegate(world, attempt=2)
    assert (again.call_id, again.state, world.row(again.call_id).attempt) == (
        answer.call_id,
        State.RESERVED,
        2,
    )
    assert len(world.policy.asked) == 2
    begin(world, run_of(answer))
    world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l3")
    assert delegate(world, attempt=3).state is State.SENT
    assert len(world.policy.asked) == 2  # it has begun: there is nothing to decide
    end(world, run_of(answer))
    assert delegate(world, attempt=3).result == DONE
    assert world.runtime.started == [(run_of(answer), "billing")]
    entries = list(world.journal.read(peer("desk"), run_id="run-1", attempt=3))
    assert [(entry.row.call_id, entry.reply) for entry in entries] == [(answer.call_id, DONE)]


def test_a_second_verdict_may_withdraw_what_has_not_begun(world) -> None:
    """Policy says no now: the call is denied, its run never begins, the record has both."""
    answer = delegate(world)
    world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l2")
    world.policy.answer = deny("closed_today")
    again = delegate(world, attempt=2)
    assert (again.state, again.reasons) == (State.DENIED, ("closed_today",))
    assert world.run(run_of(answer)).state == "cancelled"
    with pytest.raises(Conflict, match="run_ended"):
        begin(world, run_of(answer))
    assert kinds(world, answer.call_id) == ["decision", "decision"]


@pytest.mark.parametrize("how", ["waiting", "paused", "superseded", "ended"])
def test_nothing_begins_for_who_does_not_wait_for_it(world, how) -> None:
    """As a tool's host begins nothing then; a task that the next attempt asks for again does."""
    answer = delegate(world)
    run = world.run()
    if how == "superseded":
        world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l2")
    elif how == "ended":
        world.runs.end_attempt(peer("desk"), run_id="run-1", attempt=1, state="restarting", detail="")
    else:
        world.store.write(lambda tables: tables.runs.move(run, replace(run, state=how)))
    with pytest.raises(Conflict, match="run_waiting"):
        begin(world, run_of(answer))
    assert (world.run(run_of(answer)).state, world.row(answer.call_id).state) == ("pending", State.RESERVED)
    if how in ("waiting", "paused"):
        world.store.write(lambda tables: tables.runs.move(world.run(), run))
    else:
        world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l3")
        delegate(world, attempt=world.run().attempt)
    begin(world, run_of(answer))
    assert world.row(answer.call_id).state is State.SENT


def test_a_task_that_is_left_out_does_not_begin_beside_the_one_in_its_place(world) -> None:
    """A program that does not repeat itself asks for one task under two keys; one of them is done."""
    first = delegate(world)
    world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l2")
    other = delegate(
        world, attempt=2, step_key=key("other"), arguments={"task": "Pay"}, left_out=key("run-1 billing")
    )
    begin(world, run_of(other))
    with pytest.raises(Conflict, match="run_waiting"):
        begin(world, run_of(first))


def test_a_changed_definition_withdraws_it_too(world) -> None:
    """What was decided on is not what would be done now."""
    answer = delegate(world)
    world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l2")
    tool = replace(world.broker._catalogue.tools["agent:billing"], definition_sha256="e" * 64)
    tools = {**world.broker._catalogue.tools, tool.id: tool}
    world.broker._catalogue = replace(world.broker._catalogue, tools=tools)
    assert delegate(world, attempt=2).reasons == ("definition_changed",)
    assert world.run(run_of(answer)).state == "cancelled"


def test_a_repeat_of_the_task_is_answered_with_the_first_one(world) -> None:
    """`repeat: same`, as of any call: no second run."""
    first = delegate(world, task="7a" * 32)
    begin(world, run_of(first))
    end(world, run_of(first))
    second = delegate(world, task="7a" * 32, step_key="ee" * 16)
    assert (second.state, second.result) == (State.DONE, DONE)
    assert second.call_id != first.call_id
    assert world.run(run_of(second)) is None


@pytest.mark.parametrize("how", ["cancel", "failed", "completed", "left"])
def test_what_a_run_asked_for_ends_with_it(world, how) -> None:
    """All the way down: what has not begun is over at once; what runs is told to stop, and ends its call."""
    _, middle = descend(world, "billing")
    leaf = run_of(delegate(world, "refunds", app="billing", run_id=middle))
    other = run_of(delegate(world, "a0"))
    if how == "cancel":
        world.runs.control(run_id="run-1", action="cancel", operator="ann")
    elif how == "left":
        run = world.run()
        world.store.write(lambda tables: tables.runs.move(run, replace(run, state="cancelling")))
        world.clock.ms += 15_001
        world.sweeper.sweep()
    else:
        world.runs.finish(peer("desk"), run_id="run-1", attempt=1, state=how, detail="")
    assert [world.run(each).state for each in (middle, leaf, other)] == [
        "cancelling",
        "cancelled",
        "cancelled",
    ]
    calls = {each: world.row(world.run(each).parent_call) for each in (middle, leaf, other)}
    assert [calls[each].state for each in calls] == [State.SENT, State.FAILED, State.FAILED]
    assert (calls[leaf].error_class, calls[other].error_class) == ("cancelled", "cancelled")
    end(world, middle, "cancelled", b"")
    assert world.row(calls[middle].call_id).error_class == "cancelled"


def test_a_cancelled_family_without_workers_is_ended(world) -> None:
    """The sweep ends those whose launcher is gone, callers and callees, and settles their calls."""
    _, middle, leaf = descend(world, "billing", "refunds")
    world.runs.control(run_id="run-1", action="cancel", operator="ann")
    world.clock.ms += 15_001
    with world.broker._rooms.waiters.expecting(world.run(middle).parent_call) as event:
        world.sweeper.sweep()
        assert event.is_set()
    assert [world.run(each).state for each in ("run-1", middle, leaf)] == ["cancelled"] * 3
    rows = [world.row(world.run(each).parent_call) for each in (middle, leaf)]
    assert [(row.state, row.error_class) for row in rows] == [(State.FAILED, "cancelled")] * 2


@pytest.mark.parametrize("state", ["pausing", "paused", "restarting", "waiting"])
def test_a_run_that_only_pauses_settles_nothing(world, state) -> None:
    """Its caller waits on, also when the sweep ends an attempt whose launcher is gone."""
    (_, middle) = descend(world, "billing")
    if state == "restarting":
        world.runs.end_attempt(peer("billing"), run_id=middle, attempt=1, state="restarting", detail="x")
    elif state == "waiting":
        run = world.run(middle)
        world.store.write(lambda tables: tables.runs.move(run, replace(run, state="waiting", detail="x")))
    else:
        world.runs.control(run_id=middle, action="pause", operator="ann")
    if state == "paused":
        world.runs.end_attempt(peer("billing"), run_id=middle, attempt=1, state="paused", detail="")
    world.clock.ms += 15_001
    world.sweeper.sweep()
    assert world.run(middle).state == ("paused" if state == "pausing" else state)
    assert world.row(world.run(middle).parent_call).state is State.SENT


def test_the_calls_of_a_cancelled_family_are_cut(world) -> None:
    """Of every run below: what has not begun never will."""
    _, middle, leaf = descend(world, "billing", "refunds")
    world.runtime.held = True
    call = world.call("refunds", run_id=leaf, step_key="cd" * 16)
    assert world.runs.family("run-1") == ["run-1", middle, leaf]
    world.runs.control(run_id="run-1", action="cancel", operator="ann")
    for each in world.runs.family("run-1"):
        world.hosts.cut(each)
    assert world.row(call.call_id).error_class == "never_started"
    assert world.row(world.run(leaf).parent_call).state is State.SENT  # its run is on its way to the end


def test_a_run_whose_app_is_gone_fails_its_call(world) -> None:
    """After an hour without the app in the manifest, so that the caller does not wait for ever."""
    answer = delegate(world)
    apps = {name: app for name, app in CATALOGUE["apps"].items() if name == "desk"}
    tools = catalogue.parse(json.dumps({"tools": {}, "apps": apps}).encode())
    drive = replace(world.drive, mesh=Mesh("desk", "desk.example", frozenset(), tools))
    world.clock.ms += 3_700_000
    with world.broker._rooms.waiters.expecting(answer.call_id) as event:
        assert drive.sweep() == 1
        assert event.is_set()
    row = world.row(answer.call_id)
    assert (row.state, row.error_class) == (State.FAILED, "agent_failed")
    assert delegate(world).message == "its app billing is not in the manifest any more"


def test_two_gateways_serve_one_delegation(make_store) -> None:
    """Asked for at one, played at the other; the first answers at the next question."""
    one, other = make_world(make_store()), make_world(make_store())
    one.begin()
    answer = delegate(one)
    begin(other, run_of(answer))
    assert delegate(one).state is State.SENT
    end(other, run_of(answer))
    assert delegate(one).result == DONE
    assert delegate(other).result == DONE
    assert kinds(one, answer.call_id) == ["decision", "outcome"]
    one.store.close()
    other.store.close()


def test_a_busy_gateway_answers_at_once(world) -> None:
    """With every waiter's place taken the caller is told to ask again."""
    waiters = world.broker._rooms.waiters
    while waiters._slots.acquire(blocking=False):
        pass
    world.broker._wait_seconds = 3600.0
    assert delegate(world).state is State.RESERVED


def test_a_delegation_needs_a_run(world) -> None:
    """A program may call tools outside of one; a task has a run above it."""
    with pytest.raises(NotPermitted, match="call_outside_run"):
        delegate(
            world, app="nightly", run_id="", attempt=0, scope="",
            step_key="0192f0c0-0000-7000-8000-000000000000",
        )  # fmt: skip
    assert world.records("refusal")[-1]["tool"] == "agent:billing"


def test_the_runtime_s_word_is_no_failure_of_the_call(world) -> None:
    """A delivery that fails is tried again; the executor, which starts tools, is never asked."""

    def never(*_args, **_kwargs):
        raise RuntimeUnavailable(detail="a delegation is no call of a tool host")

    world.runtime.dispatch = never
    assert delegate(world).state is State.RESERVED


def test_a_delegation_is_never_unknown(world) -> None:
    """Whatever asks for it: its run says what became of it."""
    answer = delegate(world)
    begin(world, run_of(answer))
    row = world.row(answer.call_id)
    with pytest.raises(RuntimeError, match="its run says"):
        world.hosts.expire(row, Outcome(State.UNKNOWN, b"", "", "timeout"), cause="deadline")
    assert world.row(answer.call_id) == row


def test_a_run_that_is_cut_leaves_delegations_to_their_runs(world) -> None:
    """A cut is for what tool hosts do; the end of its run is the only end that a delegation has."""
    rows = [world.row(delegate(world, app).call_id) for app in ("billing", "refunds")]
    begin(world, f"run-{rows[1].call_id}")
    rows[1] = world.row(rows[1].call_id)
    world.hosts.cut("run-1")
    assert [world.row(row.call_id) for row in rows] == rows
