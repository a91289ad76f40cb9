"""Durable runs over real mTLS: the journal's stream, the operator's words, and whose run it is."""

import hashlib
import json
import threading
import time
from pathlib import Path

import grpc
import pytest
from fakes.gateway_wire import Wire, serve
from gateway.conftest import CATALOGUE
from meshgate_gateway.adapters import services
from meshgate_gateway.adapters.streams import MAX_PER_CALLER, MAX_STREAMS, Streams
from meshgate_gateway.errors import Unavailable
from meshgate_wire import broker_pb2 as pb


@pytest.fixture
def wire(tmp_path: Path):
    made = serve(tmp_path, CATALOGUE)
    made.await_serving(True)
    runs = made.runs("desk")
    given = b'{"app":"desk","command":["true"]}'
    runs.StartRun(pb.StartRunRequest(run_id="run-1", input_json=given))
    runs.StartAttempt(pb.StartAttemptRequest(run_id="run-1", launcher_instance="l1"))
    yield made
    made.close()


def test_an_attempt_begins_after_the_one_that_was_seen(wire: Wire) -> None:
    """None at all is something that was seen, too; whoever starts the run is told which there is."""
    given = b'{"app":"desk","command":["true"]}'
    assert wire.runs("desk").StartRun(pb.StartRunRequest(run_id="run-1", input_json=given)).attempt == 1
    for after, name in ((0, "l2"), (2, "l3")):
        asked = pb.StartAttemptRequest(run_id="run-1", launcher_instance=name, after=after)
        code, reason = refused(lambda ask, timeout: [wire.runs("desk").StartAttempt(ask)], asked)
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "attempt_superseded")
    asked = pb.StartAttemptRequest(run_id="run-1", launcher_instance="l4", after=1)
    begun = wire.runs("desk").StartAttempt(asked)
    assert (begun.attempt, begun.first) == (2, False)


def test_who_begins_a_run_is_told_that_it_has_no_journal(wire: Wire) -> None:
    """Of its first attempt, also where that is answered again; after it each attempt has one to read."""
    asked = pb.StartAttemptRequest(run_id="run-1", launcher_instance="l1")
    begun = wire.runs("desk").StartAttempt(asked)
    assert (begun.attempt, begun.first) == (1, True)
    asked = pb.StartAttemptRequest(run_id="run-1", launcher_instance="l2")
    assert not wire.runs("desk").StartAttempt(asked).first


def digest(name: str) -> str:
    """A key or a scope."""
    return hashlib.sha256(name.encode()).hexdigest()


def append(wire: Wire, name: str, app: str = "desk", attempt: int = 1, **changed) -> None:
    """Records a model's reply."""
    step = pb.Step(key=digest(name), scope=digest("scope"), turn=0, kind=changed.pop("kind", "model"))
    fields = {"request_json": b'{"messages":[]}', "reply_json": json.dumps(name).encode(), **changed}
    wire.runs(app).AppendStep(
        pb.AppendStepRequest(run_id="run-1", attempt=attempt, step=step, **fields), timeout=10
    )


def call(wire: Wire, name: str, attempt: int = 1) -> pb.CallToolResponse:
    """A tool call of the run."""
    return wire.broker("desk").CallTool(
        pb.CallToolRequest(
            run_id="run-1", attempt=attempt, step_key=digest(name), tool="orders.refund",
            arguments_json=b'{"order":"A","amount":5}', scope=digest("scope"), turn=0,
        )
    )  # fmt: skip


def refused(method, request) -> tuple[grpc.StatusCode, str]:
    """Status and reason of a refusal, also of a stream."""
    with pytest.raises(grpc.RpcError) as caught:
        list(method(request, timeout=10))
    return caught.value.code(), dict(caught.value.trailing_metadata())["meshgate-reason"]


def test_cancel_cuts_what_is_open(wire) -> None:
    """By the operator's word alone: what has not begun never will, what runs has its deadline now."""
    wire.runtime.held = True
    waiting, taken = call(wire, "waiting").call_id, call(wire, "taken").call_id
    wire.broker("orders").TakeCall(pb.TakeCallRequest(call_id=taken, host_instance="i"))
    before = wire.store.read(lambda tables: tables.calls.get(taken))
    wire.admin().ControlRun(pb.ControlRunRequest(run_id="run-1", action="cancel", operator="ada"))
    rows = wire.store.read(lambda tables: [tables.calls.get(call_id) for call_id in (waiting, taken)])
    assert [row.state.value for row in rows] == ["failed", "sent"]
    assert rows[0].error_class == "never_started"
    assert rows[1].deadline_at_ms < before.deadline_at_ms


def test_the_journal_comes_in_one_stream(wire) -> None:
    """Two hundred steps, replies and settled calls alike, in the order in which they were made."""
    names = [f"step {number}" for number in range(200)]
    for name in names:
        append(wire, name)
    assert call(wire, "refund").state == pb.CALL_STATE_DONE
    found = list(wire.runs("desk").ReadJournal(pb.ReadJournalRequest(run_id="run-1", attempt=1)))
    replies = {entry.step.key: entry.reply_json for entry in found if entry.step.kind == "model"}
    assert replies == {digest(name): json.dumps(name).encode() for name in names}
    (tool,) = [entry for entry in found if entry.step.kind == "tool"]
    assert json.loads(tool.answer.result) == {"order": "A", "amount": 5}


def test_a_journal_is_its_own_apps(wire) -> None:
    """Another app neither reads nor writes it, whatever attempt it names; each try is on record."""
    append(wire, "step")
    asked = pb.ReadJournalRequest(run_id="run-1", attempt=1)
    assert refused(wire.runs("rival").ReadJournal, asked) == (grpc.StatusCode.NOT_FOUND, "run_unknown")
    assert refused(wire.runs("orders").ReadJournal, asked)[1] == "run_unknown"
    look = pb.ReadJournalRequest(run_id="run-1", attempt=0)
    assert refused(wire.runs("rival").ReadJournal, look)[1] == "run_unknown"
    with pytest.raises(grpc.RpcError) as caught:
        append(wire, "forged", app="rival")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as caught:
        append(wire, "tool step", kind="tool")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    query = wire.admin().QueryRecords(pb.QueryRecordsRequest(kind="refusal"))
    assert len(query.records_json) == 5
    assert len(list(wire.runs("desk").ReadJournal(asked))) == 1


def until(reached, seconds: float = 30.0) -> None:
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        threading.Event().wait(0.02)


def test_nobody_holds_all_streams() -> None:
    """A caller has its share, the last free one is for who has none, and a slot is given back once."""
    streams = Streams()
    mine = [streams.take("desk") for _ in range(MAX_PER_CALLER)]
    with pytest.raises(Unavailable):
        streams.take("desk")
    others = [streams.take("rival")]
    with pytest.raises(Unavailable):
        streams.take("rival")
    others.append(streams.take("nightly"))
    with pytest.raises(Unavailable):
        streams.take("fourth")
    for slot in (*mine, *mine):
        slot.release()
    assert streams.open == MAX_STREAMS - MAX_PER_CALLER
    streams.take("fourth")


def test_who_does_not_read_is_cut_off(wire, monkeypatch) -> None:
    """Streams nobody reads from fill an app's share, and no other's; after a while they are closed."""
    monkeypatch.setattr(services, "STREAM_SECONDS", 5.0)
    for number in range(20):
        append(wire, f"large {number}", reply_json=json.dumps("x" * 3_000_000).encode())
    asked = pb.ReadJournalRequest(run_id="run-1", attempt=1)
    stub = wire.runs("desk")
    held = [stub.ReadJournal(asked) for _ in range(MAX_PER_CALLER)]
    for stream in held:
        next(iter(stream))
    assert refused(stub.ReadJournal, asked) == (grpc.StatusCode.UNAVAILABLE, "journal_busy")
    other = wire.runs("rival")
    other.StartRun(pb.StartRunRequest(run_id="run-r"))
    assert list(other.ReadJournal(pb.ReadJournalRequest(run_id="run-r"))) == []
    until(lambda: _free(stub, asked))
    assert len(held) == MAX_PER_CALLER  # nobody let them go


def _free(stub, asked) -> bool:
    """Whether a stream can be opened."""
    stream = stub.ReadJournal(asked, timeout=20)
    try:
        next(iter(stream))
    except grpc.RpcError:
        return False
    finally:
        stream.cancel()
    return True


def test_an_ended_run_is_looked_at_without_an_attempt(wire) -> None:
    """For a replay: attempt 0 reads in any state; as the ended run's attempt nobody reads."""
    append(wire, "step")
    wire.runs("desk").FinishRun(pb.FinishRunRequest(run_id="run-1", attempt=1, state="completed"))
    look = pb.ReadJournalRequest(run_id="run-1", attempt=0)
    assert len(list(wire.runs("desk").ReadJournal(look))) == 1
    asked = pb.ReadJournalRequest(run_id="run-1", attempt=1)
    assert refused(wire.runs("desk").ReadJournal, asked)[1] == "run_ended"


def test_the_operator_sees_steps_in_clear_and_settles_what_is_unknown(wire) -> None:
    """ShowRun, ControlRun, ResolveCall; an agent that asks for one of them is refused."""
    append(wire, "step")
    wire.runtime.held = True
    lost = call(wire, "lost").call_id
    host = wire.runtime.present("orders")
    wire.gateway.hosts.take(host, call_id=lost, host_instance="gone")
    wire.runtime.held = False
    wire.runtime.run(lost, "orders")
    admin = wire.admin()
    shown = admin.ShowRun(pb.ShowRunRequest(run_id="run-1"))
    assert (shown.run.state, shown.run.detail) == ("waiting", f"unknown {lost}")
    model, tool = sorted(shown.steps, key=lambda row: row.step.kind)
    assert (model.output, tool.input, tool.state) == (b'"step"', b'{"amount":5,"order":"A"}', "unknown")
    word = pb.ResolveCallRequest(
        call_id=lost, state="done", result=b"paid", kind=pb.RESULT_KIND_TEXT, operator="ada"
    )
    for method, request in (
        ("ResolveCall", word),
        ("ControlRun", pb.ControlRunRequest(run_id="run-1", action="cancel")),
        ("ShowRun", pb.ShowRunRequest(run_id="run-1")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            getattr(wire.admin("desk"), method)(request, timeout=10)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert admin.ResolveCall(word).state == "done"
    assert admin.ShowRun(pb.ShowRunRequest(run_id="run-1")).run.state == "restarting"
    assert refused_unary(admin.ResolveCall, word) == (grpc.StatusCode.FAILED_PRECONDITION, "call_settled")
    assert refused_unary(admin.ControlRun, pb.ControlRunRequest(run_id="nowhere", action="cancel")) == (
        grpc.StatusCode.NOT_FOUND,
        "run_unknown",
    )


def refused_unary(method, request) -> tuple[grpc.StatusCode, str]:
    """Status and reason of a refused unary call."""
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=10)
    return caught.value.code(), dict(caught.value.trailing_metadata())["meshgate-reason"]


def branch(**changed) -> pb.BranchRunRequest:
    """A fork of run-1 after its first step."""
    fields = {"run_id": "run-1", "new_run_id": "fork-1", "origin": "fork", "steps": 1, "operator": "ann"}
    return pb.BranchRunRequest(**{**fields, **changed})


def test_an_operator_forks_and_nobody_else(wire) -> None:
    """The app itself may not; a refusal tells the operator what an app is not told."""
    append(wire, "step")
    assert call(wire, "refund").state == pb.CALL_STATE_DONE
    admin = wire.admin()
    with pytest.raises(grpc.RpcError) as caught:
        admin.BranchRun(branch())
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details().startswith("run_not_ended: run-1 is running")
    wire.runs("desk").FinishRun(pb.FinishRunRequest(run_id="run-1", attempt=1, state="completed"))
    with pytest.raises(grpc.RpcError) as caught:
        wire.admin("desk").BranchRun(branch())
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert caught.value.details() == "admin_not_permitted"
    plan = admin.BranchRun(branch(dry_run=True))
    assert (plan.run.run_id, plan.steps, [row.step for row in plan.effects]) == ("run-1", 2, [2])
    made = admin.BranchRun(branch())
    assert (made.run.run_id, made.run.origin, made.run.origin_run) == ("fork-1", "fork", "run-1")
    assert (made.run.origin_step, made.run.state) == (1, "pending")
    (row,) = admin.ShowRun(pb.ShowRunRequest(run_id="fork-1")).steps
    assert (row.copied, row.attempt, row.state) == (True, 0, "replied")
    begun = wire.runs("desk").StartAttempt(pb.StartAttemptRequest(run_id="fork-1", launcher_instance="l9"))
    assert (begun.attempt, begun.first) == (1, False)  # what was copied is its journal


def test_a_foreign_app_cannot_take_a_fork_over(wire) -> None:
    """A run that an operator made is its own app's from the first moment."""
    append(wire, "step")
    wire.runs("desk").FinishRun(pb.FinishRunRequest(run_id="run-1", attempt=1, state="completed"))
    wire.admin().BranchRun(branch())
    start = pb.StartRunRequest(run_id="fork-1", input_json=b"{}")
    assert refused_once(wire.runs("rival").StartRun, start) == "run_unknown"
    attempt = pb.StartAttemptRequest(run_id="fork-1", launcher_instance="x")
    assert refused_once(wire.runs("rival").StartAttempt, attempt) == "run_unknown"
    other = pb.StartRunRequest(run_id="fork-1", input_json=b'{"app":"other"}')
    assert refused_once(wire.runs("desk").StartRun, other) == "run_changed_input"


def refused_once(method, request) -> str:
    """The reason of a refusal."""
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=10)
    return dict(caught.value.trailing_metadata())["meshgate-reason"]


def test_a_fork_that_is_asked_for_again_is_told_to_nobody(wire) -> None:
    """While it is pending its app was told; when it runs there is nothing to tell."""
    admin, agent = wire.admin(), wire.runs("desk")
    agent.StartRun(pb.StartRunRequest(run_id="run-1", input_json=b'{"app":"desk","command":["true"]}'))
    begun = agent.StartAttempt(pb.StartAttemptRequest(run_id="run-1", launcher_instance="l"))
    agent.FinishRun(pb.FinishRunRequest(run_id="run-1", attempt=begun.attempt, state="completed"))
    ask = pb.BranchRunRequest(run_id="run-1", new_run_id="again", origin="rerun", cwd="/", operator="ann")
    made = [admin.BranchRun(ask).run for _ in range(2)]
    assert [run.state for run in made] == ["pending"] * 2
    agent.StartAttempt(pb.StartAttemptRequest(run_id="again", launcher_instance="l"))
    assert admin.BranchRun(ask).run.state == "running"
    assert wire.runtime.started == [("again", "desk")]


def test_an_operator_reads_clear_text_on_record(wire) -> None:
    """Over the wire: the row alone, without its steps, and whole; the record names who asked."""
    append(wire, "step")
    admin = wire.admin()
    row = admin.ShowRun(pb.ShowRunRequest(run_id="run-1", row_only=True))
    assert (row.run.state, row.input_json, len(row.steps)) == ("running", b"", 0)
    part = admin.ShowRun(pb.ShowRunRequest(run_id="run-1", operator="ann", without_steps=True))
    assert (bool(part.input_json), len(part.steps)) == (True, 0)
    assert len(admin.ShowRun(pb.ShowRunRequest(run_id="run-1", operator="ann")).steps) == 1
    page = admin.QueryRecords(pb.QueryRecordsRequest(kind="lifecycle", limit=100))
    looks = [look for look in map(json.loads, page.records_json) if look["event"] == "run_shown"]
    assert [(look["caller"], look["operator"], look["shown_run"], look["steps"]) for look in looks] == [
        ("spiffe://desk.example/ns/desk/operator", "ann", "run-1", steps) for steps in (0, 1)
    ]
