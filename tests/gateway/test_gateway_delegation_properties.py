"""Whatever happens in whatever order: a delegation is open exactly as long as its run is."""

import contextlib
import tempfile
from pathlib import Path
from unittest.mock import patch

from fakes.gateway_parts import ALLOW, deny, peer
from gateway.conftest import make_world
from gateway.delegating import begin, delegate, end
from hypothesis import given, settings
from hypothesis import strategies as st
from meshgate_gateway import chains, delegations
from meshgate_gateway.adapters.sqlite_store import SqliteStore
from meshgate_gateway.answers import OPEN
from meshgate_gateway.calls import delegated_run
from meshgate_gateway.errors import Refused, StoreUnavailable
from meshgate_gateway.model import State
from meshgate_gateway.store import CallQuery

APPS = ("billing", "refunds", "a0", "a1")
WHICH = st.integers(0, 5)
STEPS = st.one_of(
    st.tuples(st.just("ask"), WHICH, st.sampled_from(APPS)),
    st.tuples(st.just("begin"), WHICH, st.sampled_from(["w1", "w2"])),
    st.tuples(st.just("end"), WHICH, st.sampled_from(["completed", "failed", "cancelled"])),
    st.tuples(st.just("pause"), WHICH, st.sampled_from(["restarting", "paused", "stopped"])),
    st.tuples(st.just("control"), WHICH, st.sampled_from(["cancel", "pause", "resume", "fail"])),
    st.tuples(st.just("sweep"), st.sampled_from([10, 6_000, 16_000, 4_000_000]), st.just("")),
    st.tuples(st.just("policy"), WHICH, st.sampled_from(["allow", "deny"])),
    st.tuples(st.just("store"), WHICH, st.sampled_from(["before", "after", "works"])),
)


def act(world, kind: str, which: int, what: str) -> None:
    """One step; what cannot be is refused, and that is all the same here."""
    runs = sorted(world.store.read(lambda tables: tables.runs.list(100)), key=lambda run: len(run.chain))
    run = runs[which % len(runs)]
    app = run.app.rpartition("/")[2]
    if kind == "ask":
        delegate(world, what, app=app, run_id=run.run_id, attempt=run.attempt)
    elif kind == "begin":
        begin(world, run.run_id, what)
    elif kind == "end":
        end(world, run.run_id, what)
    elif kind == "pause":
        world.runs.end_attempt(peer(app), run_id=run.run_id, attempt=run.attempt, state=what, detail="")
    elif kind == "control":
        world.runs.control(run_id=run.run_id, action=what, operator="ann")
        for each in world.runs.family(run.run_id) if what == "cancel" else ():
            world.hosts.cut(each)
    elif kind == "sweep":
        world.clock.ms += which
        world.sweeper.sweep()
        world.drive.sweep()
    elif kind == "policy":
        world.policy.answer = ALLOW if what == "allow" else deny("no")
    else:
        world.store.fail_before, world.store.fail_after = what == "before", what == "after"


def check(world) -> None:
    """What must hold after every step."""
    rows = world.store.read(lambda tables: tables.calls.query(CallQuery(delegated=True)))
    runs = {run.run_id: run for run in world.store.read(lambda tables: tables.runs.list(100))}
    assert {run_id for run_id, run in runs.items() if run.parent_call} <= {
        delegated_run(row.call_id) for row in rows
    }
    for row in rows:
        run, asking = runs.get(delegated_run(row.call_id)), runs[row.run_id]
        assert row.state is not State.UNKNOWN
        if run is None:
            assert (row.state, row.take) == (State.DENIED, 0)
            continue
        assert run.parent_call == row.call_id
        assert chains.parent_run(run) == asking.run_id
        assert len(chains.read(run.chain)) == len(chains.read(asking.chain)) + 1 <= chains.MAX_DEPTH
        assert (row.state in OPEN) is not run.ended
        assert row.take == min(run.attempt, 1)
        if row.state in OPEN:
            assert (row.state is State.SENT) is bool(run.attempt)
            told = run.state == "cancelling" or asking.recalling  # or it is still to be told
            assert not asking.ended or told
            assert asking.state != "cancelling" or told
        elif row.state is State.DONE:
            assert run.state == "completed"


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEPS, min_size=5, max_size=40), size=st.sampled_from([1, 2, 10]))
def test_call_and_run_never_part(steps, size) -> None:
    """In any order of questions, attempts, ends, an operator's words, sweeps and faults of the store."""
    with tempfile.TemporaryDirectory() as folder, patch.object(delegations, "SLICE", size):
        world = make_world(SqliteStore(path=Path(folder) / "s.db"))
        world.broker._wait_seconds = 0.0
        world.begin()
        for kind, which, what in steps:
            with contextlib.suppress(Refused, StoreUnavailable):
                act(world, kind, which, what)
            check(world)
        act(world, "store", 0, "works")
        world.sweeper.sweep()
        check(world)
        assert not world.store.read(lambda tables: tables.runs.recalling(limit=1))
        world.store.close()
