"""A sweep ends in time whatever the durable runtime does, and the gateway's lease does not wait for it."""

import threading

import pytest
from fakes.gateway_parts import peer
from fakes.gateway_wire import serve
from gateway.conftest import CATALOGUE
from gateway.test_gateway_drive import drive, order  # noqa: F401 - a fixture
from meshgate_gateway import compose
from meshgate_gateway.errors import DeliveriesSpent, RuntimeUnavailable
from meshgate_gateway.instances import Instance
from meshgate_gateway.model import State
from meshgate_gateway.passes import MAX_FAILURES
from meshgate_gateway.sweeper import Sweeper

PATIENCE_SECONDS = 20.0
HANG_MS = 2_000  # until a question to a stopped sidecar is given up
MANY = 30


def reserved(world, count: int) -> list[str]:
    """So many calls that were recorded and never delivered, old enough to be delivered again."""
    world.runtime.away = True
    for number in range(count):
        with pytest.raises(RuntimeUnavailable):
            world.call(step_key=f"{number:032x}")
    world.runtime.away, world.runtime.asked = False, 0
    world.clock.ms += 11_000
    return [row.call_id for row in world.store.read(lambda tables: tables.calls.of_run("run-1"))]


def hang(world) -> None:
    """From here on each question takes its whole time and comes to nothing."""
    world.runtime.away = True
    world.runtime.on_ask = lambda: setattr(world.clock, "ms", world.clock.ms + HANG_MS)


def test_a_sweep_of_calls_ends_while_the_runtime_hangs(world) -> None:
    """After two questions; what needs no runtime is settled all the same."""
    world.runtime.held = True
    lost = world.call(step_key="f" * 32).call_id
    world.hosts.take(peer("orders"), call_id=lost, host_instance="a")
    world.runtime.held = False
    world.clock.ms += 40_000
    reserved(world, MANY)
    hang(world)
    assert world.sweeper.sweep() == 1
    assert world.runtime.asked == 2
    assert world.row(lost).state is State.UNKNOWN


def test_a_sweep_ends_when_the_runtime_refuses(world) -> None:
    """At once, each time: three lines in the log are enough."""
    reserved(world, MANY)
    world.runtime.away = True
    world.sweeper.sweep()
    assert world.runtime.asked == MAX_FAILURES


def test_a_call_that_was_delivered_too_often_keeps_no_other(world) -> None:
    """However many of them there are: the runtime works, and the others are delivered."""
    ids = reserved(world, MANY)
    real, spent = world.runtime.dispatch, set(ids[-10:])

    def dispatch(call_id: str, host: str, *, fresh: bool = False) -> None:
        if call_id in spent:
            raise DeliveriesSpent(detail=call_id)
        real(call_id, host, fresh=fresh)

    world.runtime.dispatch = dispatch
    assert world.sweeper.sweep() == MANY - len(spent)
    assert {world.row(call_id).state for call_id in set(ids) - spent} == {State.DONE}


def test_a_question_is_not_used_up_while_the_runtime_hangs(world) -> None:
    """A host is asked ten times what came of a call: those that cannot be put do not count."""
    world.runtime.held = True
    lost = [
        world.call(tool="orders.booked", step_key=f"{number:032x}").call_id for number in range(MAX_FAILURES)
    ]
    for call_id in lost:
        world.hosts.take(peer("orders"), call_id=call_id, host_instance="gone")
    world.clock.ms += 10_000_000
    hang(world)
    world.executor._started.clear()
    world.runtime.asked = 0
    world.sweeper.sweep()
    assert world.runtime.asked == 2
    assert sorted(world.row(call_id).asks for call_id in lost) == [0, 1, 1]


def test_a_sweep_of_runs_ends_while_the_runtime_hangs(world, drive) -> None:  # noqa: F811
    """And a slow one is asked once about each telling, so that every run gets its turn."""
    world.runtime.away = True
    for number in range(MANY):
        drive.order(order(run_id=f"r{number:02}"), operator="ada")
    world.clock.ms += 5_001
    hang(world)
    world.runtime.asked = 0
    assert drive.sweep() == 0
    assert world.runtime.asked == 2
    world.runtime.away = False
    for _ in range(2 * MANY):
        drive.sweep()
    assert {run_id for run_id, _app in world.runtime.started} == {f"r{number:02}" for number in range(MANY)}


def test_the_lease_is_renewed_while_a_sweep_hangs(tmp_path, monkeypatch) -> None:
    """A gateway whose runtime does not answer keeps its name, and with it its log."""
    monkeypatch.setattr(compose, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(compose, "SWEEP_SECONDS", 0.01)
    hung, over, renewed = threading.Event(), threading.Event(), threading.Event()
    real = Instance.renew

    def hanging(_sweeper: Sweeper) -> int:
        hung.set()
        over.wait(PATIENCE_SECONDS)
        return 0

    def renew(instance: Instance) -> bool:
        held = real(instance)
        if hung.is_set():
            renewed.set()
        return held

    monkeypatch.setattr(Instance, "renew", renew)
    monkeypatch.setattr(Sweeper, "sweep", hanging)
    wire = serve(tmp_path, CATALOGUE)
    try:
        assert hung.wait(PATIENCE_SECONDS)
        assert renewed.wait(PATIENCE_SECONDS)
        assert wire.gateway.instance.held
    finally:
        over.set()
        wire.close()
