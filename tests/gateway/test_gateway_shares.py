"""What one caller, and all below one run, may have others do. On both stores."""

from dataclasses import replace

import pytest
from fakes.gateway_parts import peer
from gateway.conftest import make_world
from gateway.delegating import begin, delegate, descend, end, run_of
from gateway.test_gateway_delegated_history import order
from gateway.test_gateway_history import key
from meshgate_gateway.bounds import Bounds
from meshgate_gateway.errors import Conflict
from meshgate_gateway.model import State


def bound(world, **bounds: int) -> None:
    """Puts small bounds on delegations in force."""
    rooms = world.broker._rooms
    small = replace(rooms.delegations, bounds=replace(Bounds(), **bounds))
    world.broker._rooms = replace(rooms, delegations=small)


def ask(world, number: int, to: str = "billing", **more):
    """One task of many."""
    return delegate(world, to, step_key=key(f"{more} {to} {number}"), arguments={"task": str(number)}, **more)


def refused(world, ask_once) -> str:
    """The reason for which a task is refused, which is on record; empty when it is not."""
    try:
        ask_once()
    except Conflict as error:
        reason = error.reason
    else:
        return ""
    record = world.records("refusal")[-1]
    assert record["reason"] == reason
    assert record["tool"].startswith("agent:")
    assert world.row(record["call_id"]) is None
    return reason


def asked(world, to: str = "billing", **more) -> int:
    """So many tasks a caller can give before it is refused."""
    for number in range(100):
        if reason := refused(world, lambda number=number: ask(world, number, to, **more)):
            assert reason in {"open_runs_share", "delegations_limit"}
            return number
    return 100


def test_no_caller_fills_an_app(world) -> None:
    """Alone it gets half; who comes later gets half of what is left, and so on. Nobody is left without."""
    bound(world, open_runs=16)
    world.begin("rival", "run-2")
    assert asked(world) == 8
    assert asked(world, app="rival", run_id="run-2") == 4
    (_, middle) = descend(world, "a0")
    assert asked(world, app="a0", run_id=middle) == 2
    assert asked(world, "refunds") == 8  # of each app anew


def test_a_share_is_of_a_caller_not_of_its_run(world) -> None:
    """All its runs count together, and what it asks for in a deeper place too."""
    bound(world, open_runs=16)
    world.begin(run_id="run-2")
    assert asked(world) + asked(world, run_id="run-2") == 8


def test_what_has_ended_is_no_share(world) -> None:
    """However it ended; and a task that is asked for again is no further one."""
    bound(world, open_runs=4)
    first = ask(world, 0)
    assert asked(world) == 2
    assert ask(world, 0).call_id == first.call_id
    begin(world, run_of(first))
    assert asked(world) == 2
    end(world, run_of(first))
    assert ask(world, 7).state is State.RESERVED
    world.runs.control(run_id=run_of(ask(world, 1)), action="cancel", operator="ann")
    assert ask(world, 8).state is State.RESERVED


def test_all_below_one_run_are_bounded_together(world) -> None:
    """Whoever asks, at whatever depth, ended or not: as many as there were over its life."""
    bound(world, delegated=6)
    runs = descend(world, "billing", "refunds")
    for _ in range(2):
        end(world, run_of(descend_once(world, runs[-1])))
    assert [world.run(run_id).delegated for run_id in runs] == [4, 0, 0]
    assert asked(world, "a1", app="billing", run_id=runs[1]) == 2
    assert asked(world, "a2") == asked(world, "a3", app="refunds", run_id=runs[2]) == 0
    assert world.records("refusal")[-1]["reason"] == "delegations_limit"
    assert ask(world, 0, "a1", app="billing", run_id=runs[1]).state is State.RESERVED  # asked before
    world.begin(run_id="run-2")
    assert asked(world, run_id="run-2") == 6  # another run's own


def descend_once(world, run_id: str):
    """One more task below, which begins."""
    number = world.run().delegated
    answer = ask(world, number, "a0", app="refunds", run_id=run_id)
    begin(world, run_of(answer), f"w{number}")
    return answer


def test_a_refused_task_is_not_counted(world) -> None:
    """Neither refused nor denied, nor what the store did not take."""
    bound(world, delegated=3, open_runs=2)
    assert asked(world) == 1
    assert world.run().delegated == 1
    bound(world, delegated=3)
    world.policy.answer = {"allow": False, "reasons": ["no"], "approval": None, "obligations": {}}
    assert ask(world, 11).state is State.DENIED
    assert world.run().delegated == 1


def test_a_count_outlives_attempts_and_gateways(make_store) -> None:
    """It lies with the run, in the transaction that makes the next one."""
    one, other = make_world(make_store()), make_world(make_store())
    one.begin()
    bound(one, delegated=2)
    bound(other, delegated=2)
    assert asked(one) == 2
    other.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l2")
    assert asked(other, attempt=2, to="refunds") == 0
    one.store.close()
    other.store.close()


def test_a_fork_has_a_count_of_its_own(world) -> None:
    """What is copied to it was never done for it."""
    bound(world, delegated=1)
    answer = ask(world, 0)
    begin(world, run_of(answer))
    end(world, run_of(answer))
    world.runs.finish(peer("desk"), run_id="run-1", attempt=1, state="failed", detail="")
    world.history.make(order())
    assert world.run("new-1").delegated == 0
    world.runs.start_attempt(peer("desk"), run_id="new-1", launcher="l9")
    assert asked(world, "refunds", run_id="new-1") == 1


@pytest.mark.parametrize("event", ["heartbeat", "pause"])
def test_what_else_happens_to_the_run_keeps_the_count(world, event) -> None:
    """Its row is written whole by others."""
    ask(world, 0)
    if event == "heartbeat":
        world.runs.heartbeat(peer("desk"), run_id="run-1", attempt=1, steps=1)
    else:
        world.runs.control(run_id="run-1", action="pause", operator="ann")
    assert world.run().delegated == 1
