"""Looking back on delegations: forks, re-runs, exports and purges of callers and callees."""

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from fakes.gateway_parts import peer
from fakes.gateway_wire import serve
from gateway.conftest import CATALOGUE
from gateway.delegating import DONE, begin, delegate, end, run_of
from gateway.test_gateway_archive import asking, export, files_of, key
from meshgate_gateway import chains
from meshgate_gateway.adapters.postgres_store import PostgresStore
from meshgate_gateway.adapters.sqlite_store import SqliteStore
from meshgate_gateway.calls import delegated_run
from meshgate_gateway.errors import Conflict, NotPermitted
from meshgate_gateway.history import BranchOrder
from meshgate_gateway.model import Run, State
from meshgate_wire import broker_pb2 as pb


def order(run_id: str = "run-1", origin: str = "fork", steps: int = 1) -> BranchOrder:
    """A branch of a run."""
    return BranchOrder(run_id, "new-1", origin, steps, b"", "ann")


def over(world, state: str = "completed") -> str:
    """run-1 gave one task, which was done, and ended; the run that did it."""
    answer = delegate(world)
    begin(world, run_of(answer))
    end(world, run_of(answer))
    world.runs.finish(peer("desk"), run_id="run-1", attempt=1, state=state, detail="")
    return run_of(answer)


def test_a_fork_is_answered_with_the_copied_task(world) -> None:
    """As with any call: no run is made for a step that it holds, and one that is new starts one."""
    over(world)
    assert [row.tool for _, row in world.history.plan(order(steps=1)).effects] == []
    world.history.make(order())
    world.runs.start_attempt(peer("desk"), run_id="new-1", launcher="l1")
    asked = {"run_id": "new-1", "step_key": delegate_key()}
    answer = delegate(world, **asked)
    assert (answer.state, answer.result) == (State.DONE, DONE)
    assert world.run(run_of(answer)) is None
    other = delegate(world, "refunds", run_id="new-1")
    assert (other.state, world.run(run_of(other)).state) == (State.RESERVED, "pending")
    assert world.run(run_of(other)).origin == "fork"


def delegate_key() -> str:
    """The step under which `over` gave its task."""
    return key("run-1 billing")


def test_a_rerun_gives_the_task_anew(world) -> None:
    """It is told of as an effect that may happen again, and rules see where the callee's run comes from."""
    first = over(world)
    assert [row.tool for _, row in world.history.plan(order(origin="rerun", steps=0)).effects] == [
        "agent:billing"
    ]
    world.history.make(order(origin="rerun", steps=0))
    world.runs.start_attempt(peer("desk"), run_id="new-1", launcher="l1")
    answer = delegate(world, run_id="new-1", step_key=delegate_key())
    assert run_of(answer) != first
    begin(world, run_of(answer))
    world.call("billing", run_id=run_of(answer), step_key=key("pay"))
    assert [each["run"]["origin"] for each in world.policy.asked] == ["start", "rerun", "rerun"]


def test_a_task_that_is_open_is_not_copied(world) -> None:
    """Its run is being cancelled: a fork waits until that is over."""
    answer = delegate(world)
    begin(world, run_of(answer))
    world.runs.finish(peer("desk"), run_id="run-1", attempt=1, state="failed", detail="")
    with pytest.raises(Conflict, match="step_not_settled"):
        world.history.make(order())
    end(world, run_of(answer), "cancelled", b"")
    assert world.history.make(order()).run.state == "pending"


@pytest.mark.parametrize(("origin", "steps"), [("fork", 1), ("rerun", 0)])
def test_a_callee_s_run_is_not_branched(world, origin, steps) -> None:
    """Nobody would take the answer; the refusal names the run to be branched."""
    answer = delegate(world)
    begin(world, run_of(answer))
    world.call("billing", run_id=run_of(answer), step_key=key("pay"))
    end(world, run_of(answer))
    with pytest.raises(NotPermitted, match="fork or re-run run-1"):
        world.history.make(order(run_of(answer), origin, steps))
    assert world.run("new-1") is None


@pytest.fixture
def former(world) -> str:
    """A run of the time when billing was a crew."""
    now = world.clock()
    run = Run("old-1", "spiffe://desk.example/ns/desk/billing", "pending", 0, "", now, now, now, 0, "")

    def work(tables) -> None:
        given = world.vault.put(tables, b'{"app":"billing","input":{"crew":"desk"}}')
        tables.runs.insert(replace(run, driven=True, input=given))

    world.store.write(work)
    return "old-1"


def test_an_agent_does_nothing_in_a_run_of_a_time_before_it_was_one(world, former) -> None:
    """No delegation stands above it, so that nothing would bind it; it can only be ended."""
    begin(world, former)
    with pytest.raises(NotPermitted, match="run_not_delegated"):
        world.call("billing", run_id=former)
    with pytest.raises(NotPermitted, match="run_not_delegated"):
        end(world, former)
    assert end(world, former, "failed", b"").state == "failed"
    with pytest.raises(NotPermitted, match="run_of_agent"):
        world.history.make(order(former, "rerun", 0))
    assert (world.run("new-1"), world.records("decision")) == (None, [])


@pytest.fixture
def wire(tmp_path: Path):
    made = serve(tmp_path, CATALOGUE)
    made.await_serving(True)
    runs = made.runs("desk")
    runs.StartRun(pb.StartRunRequest(run_id="run-1", input_json=b'{"app":"desk","command":["true"]}'))
    runs.StartAttempt(pb.StartAttemptRequest(run_id="run-1", launcher_instance="l1"))
    yield made
    made.close()


def ask(wire, app: str = "desk", run_id: str = "run-1") -> pb.CallToolResponse:
    """Gives the task over mTLS."""
    return wire.broker(app).CallTool(
        pb.CallToolRequest(
            run_id=run_id, attempt=1, step_key=key("run-1 billing"), tool="agent:billing", scope=key("scope"),
            arguments_json=b'{"task": "pay"}',
        )
    )  # fmt: skip


def play(wire, call_id: str) -> str:
    """The callee's worker does the task over mTLS."""
    run_id, runs = delegated_run(call_id), wire.runs("billing")
    given = json.loads(runs.ReadRun(pb.ReadRunRequest(run_id=run_id)).input_json)
    assert given == {"app": "billing", "delegation": {"task": "pay"}, "depth": 1}
    attempt = pb.StartAttemptRequest(run_id=run_id, launcher_instance="w", after=0)
    assert runs.StartAttempt(attempt).attempt == 1
    runs.FinishRun(pb.FinishRunRequest(run_id=run_id, attempt=1, state="completed", result=DONE))
    return run_id


def test_a_delegation_over_mtls(wire) -> None:
    """From the caller's side one CallTool; the operator sees whose task a run is."""
    asked = ask(wire)
    assert asked.state == pb.CALL_STATE_PENDING
    run_id = play(wire, asked.call_id)
    answer = ask(wire)
    assert (answer.state, answer.kind, answer.result) == (pb.CALL_STATE_DONE, pb.RESULT_KIND_JSON, DONE)
    rows = {row.run_id: row for row in wire.admin().ListRuns(pb.ListRunsRequest()).runs}
    assert (rows[run_id].parent_run, rows[run_id].parent_call) == ("run-1", asked.call_id)
    assert (rows["run-1"].parent_run, rows["run-1"].parent_call) == ("", "")


@pytest.mark.parametrize("how", ["start", "order"])
def test_an_agent_s_run_is_started_by_nobody(wire, how) -> None:
    """Neither by itself nor by an operator, who is told why."""
    start, ordered = wire.runs("billing").StartRun, wire.admin().StartRun
    ask_for, request = (
        (start, pb.StartRunRequest(run_id="mine"))
        if how == "start"
        else (ordered, pb.AdminStartRunRequest(app="billing", run_id="mine"))
    )
    with pytest.raises(grpc.RpcError) as caught:
        ask_for(request)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert ("have no task" in caught.value.details()) is (how == "order")


def test_cancelling_over_mtls_reaches_the_whole_family(wire) -> None:
    """The callee's open call of a tool is cut as the caller's own would be."""
    run_id = delegated_run(ask(wire).call_id)
    wire.runs("billing").StartAttempt(pb.StartAttemptRequest(run_id=run_id, launcher_instance="w"))
    wire.runtime.held = True
    call = wire.broker("billing").CallTool(
        pb.CallToolRequest(
            run_id=run_id, attempt=1, step_key=key("pay"), tool="orders.refund", scope=key("s"),
            arguments_json=b'{"order": "A", "amount": 1}',
        )
    )  # fmt: skip
    wire.admin().ControlRun(pb.ControlRunRequest(run_id="run-1", action="cancel", operator="ann"))
    rows = {row.call_id: row for row in wire.admin().ListCalls(pb.ListCallsRequest()).calls}
    assert rows[call.call_id].state == "failed"
    runs = {row.run_id: row.state for row in wire.admin().ListRuns(pb.ListRunsRequest()).runs}
    assert runs == {"run-1": "cancelling", run_id: "cancelling"}


def test_archives_of_both_verify_and_name_each_other(wire, tmp_path) -> None:
    """The caller's names the callee's run, the callee's the call and its callers; each is purged alone."""
    run_id = play(wire, ask(wire).call_id)
    call_id = ask(wire).call_id
    wire.runs("desk").FinishRun(pb.FinishRunRequest(run_id="run-1", attempt=1, state="completed"))
    found = export(wire, tmp_path / "caller.tar.gz")
    (step,) = [json.loads(line) for line in files_of(tmp_path / "caller.tar.gz")["steps.jsonl"].splitlines()]
    assert (step["delegated_run"], step["tool"]) == (run_id, "agent:billing")
    export(wire, tmp_path / "callee.tar.gz", run_id)
    run = json.loads(files_of(tmp_path / "callee.tar.gz")["run.json"])
    assert (run["parent_call"], run["narrow"]) == (call_id, [])
    assert [(link["app"], link["run_id"]) for link in run["delegation"]] == [("desk", "run-1")]
    purge = {"run_id": "run-1", "digest": found.digest, "without_export": False, "operator": "ann"}
    asking(wire)("PurgeRun", purge)
    assert wire.admin().ShowRun(pb.ShowRunRequest(run_id=run_id, operator="ann")).result == DONE
    purge = {"run_id": run_id, "digest": "", "without_export": True, "operator": "ann"}
    asking(wire)("PurgeRun", purge)
    assert wire.admin().ShowRun(pb.ShowRunRequest(run_id=run_id, operator="ann")).result == b""


ADDED = {8: ("caller", "delegated", "recalling")}
ADDED[7] = ("parent_call", "chain", "narrow", *ADDED[8])
BILLING = "spiffe://desk.example/ns/desk/billing"


def without(columns: tuple[str, ...], execute: Any) -> None:
    """Makes a database what an earlier version left behind."""
    for index in ("runs_asked", "runs_recalling"):
        execute(f"DROP INDEX {index}")
    for column in columns:
        execute(f"ALTER TABLE runs DROP COLUMN {column}")
    execute("CREATE INDEX runs_open ON runs (app) WHERE state NOT IN ('completed', 'failed', 'cancelled')")


@pytest.mark.parametrize("version", [7, 8])
def test_a_file_of_an_earlier_version_is_brought_up_to_date(tmp_path, version) -> None:
    """The second start has nothing to do."""
    path = tmp_path / "s.db"
    old(SqliteStore(path=path))
    with sqlite3.connect(path) as db:
        without(ADDED[version], db.execute)
        db.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (str(version),))
    db.close()
    for _ in range(2):
        store = SqliteStore(path=path)
        check_old(store, delegated=version > 7)
        store.close()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone() == ("9",)
        names = {row[1] for row in db.execute("PRAGMA index_list(runs)")}
        assert ("runs_asked" in names, "runs_open" in names) == (True, False)
    db.close()


@pytest.mark.parametrize("version", [7, 8])
def test_a_database_of_an_earlier_version_is_brought_up_to_date(postgres, version) -> None:
    """By the migrations that came with delegations, and with their bounds."""
    url = postgres.url()
    old(PostgresStore(url=url))
    with psycopg.connect(url) as db:
        without(ADDED[version], db.execute)
        db.execute("UPDATE meshgate_schema SET version_num = %s", (f"000{version - 6}",))
    store = PostgresStore(url=url)
    check_old(store, delegated=version > 7)
    store.close()


def check_old(store: Any, *, delegated: bool) -> None:
    """Runs of before delegations are runs that nobody delegated; later ones are counted where they belong."""
    runs = {run.run_id: run for run in store.read(lambda tables: tables.runs.list(10))}
    if delegated:
        below = {run_id: (run.caller, run.delegated) for run_id, run in runs.items()}
        desk = BILLING.replace("billing", "desk")
        assert below == {"old": ("", 2), "run-c1": (desk, 0), "run-c2": (BILLING, 0), "alone": ("", 0)}
        assert store.read(lambda tables: tables.runs.open(BILLING, caller=desk)) == 1
    else:
        for run in runs.values():
            assert (run.parent_call, run.chain, run.narrow, run.caller, run.delegated) == ("", "", "", "", 0)
    assert not any(run.recalling for run in runs.values())


def old(store: Any) -> None:
    """Runs of before: one with a task and what that asked for in turn, one alone."""
    desk, refunds = (BILLING.replace("billing", name) for name in ("desk", "refunds"))
    links = (chains.Link("desk", desk, "old"), chains.Link("billing", BILLING, "run-c1"))
    blank = Run("old", desk, "pending", 0, "", 1, 1, 1, 0, "")
    made = [
        blank,
        replace(blank, run_id="run-c1", app=BILLING, parent_call="c1", chain=chains.written(links[:1])),
        replace(blank, run_id="run-c2", app=refunds, parent_call="c2", chain=chains.written(links)),
        replace(blank, run_id="alone"),
    ]
    store.write(lambda tables: [tables.runs.insert(run) for run in made])
    store.close()
