"""Runs that workers play: ordered once, told to their app, told again while nobody is at them."""

import itertools
import json
from dataclasses import replace

import pytest
from fakes.gateway_parts import peer
from meshgate_gateway import catalogue, tellings
from meshgate_gateway.authenticate import Mesh
from meshgate_gateway.drive import PER_APP, Drive, Order
from meshgate_gateway.errors import Conflict, InvalidRequest, Missing

DESK = "spiffe://desk.example/ns/desk/desk"
DAY_MS = 86_400_000
APPS = {"desk": {"kind": "crew"}, "nightly": {"kind": "program"}, "orders": {"kind": "toolhost"}}


@pytest.fixture
def drive(world) -> Drive:
    """Over the world's store and runtime."""
    tools = catalogue.parse(json.dumps({"tools": {}, "apps": APPS}).encode())
    mesh = Mesh("desk", "desk.example", frozenset(), tools)
    return Drive(
        world.store,
        world.vault,
        world.hosts.recorder,
        world.runtime,
        mesh,
        world.clock,
        world.runs.delegations,
    )


def order(app: str = "desk", run_id: str = "r", given: bytes = b'{"a": 1, "b": 2}', **more) -> Order:
    return Order(app=app, run_id=run_id, input_json=given, **more)


def starts(world) -> list[tuple[str, str]]:
    rows = [row for row in world.records("lifecycle") if row["event"] == "run_started"]
    return [(row["run_id"], row.get("operator", "")) for row in rows if row["run_id"] != "run-1"]


def test_an_order_makes_one_run_and_tells_its_app(world, drive) -> None:
    """Equal input in any order of keys is the same run; the record names who ordered it, once."""
    run = drive.order(order(), operator="ada")
    assert (run.state, run.app, run.attempt, run.driven) == ("pending", DESK, 0, True)
    assert drive.order(order(given=b'{"b":2,"a":1}'), operator="bob") == run
    assert starts(world) == [("r", "ada")]
    assert world.runtime.started == [("r", "desk")]
    read, kept = world.runs.read(peer("desk"), run_id="r")
    assert (read, json.loads(kept)) == (run, {"app": "desk", "input": {"a": 1, "b": 2}})


def test_an_id_is_one_run(world, drive) -> None:
    """Another input, another app, or a command under the same id is refused; the run stays."""
    run = drive.order(order(), operator="ada")
    for other in (order(given=b"{}"), order(app="nightly"), order(command=("x",), cwd="/")):
        with pytest.raises(Conflict) as caught:
            drive.order(other, operator="ada", local=True)
        assert caught.value.reason == "run_changed_input"
    assert world.run("r") == run
    assert starts(world) == [("r", "ada")]


@pytest.mark.parametrize("app", ["nobody", "orders", ""])
def test_only_crews_and_programs_have_runs(world, drive, app) -> None:
    """An unknown app and a tool host are not found; nothing is stored."""
    with pytest.raises(Missing):
        drive.order(order(app=app), operator="ada")
    assert world.run("r") is None
    assert world.runtime.started == []


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (order(run_id="../x"), "run_id_invalid"),
        (order(given=b"{"), "input_not_json"),
        (order(given=b"[NaN]"), "input_not_finite"),
        (order(given=b"[" * 100_000), "input_too_deep"),
        (order(given=b'{"topic": "\\ud800"}'), "input_not_json"),
        (order(given=b'{"topic": "a", "topic": "b"}'), "input_duplicate_key"),
        (order(given=b'{"a": ' + b" " * 2**20 + b"1}"), "input_too_large"),
        (order(given=b"[1]"), "input_not_an_object"),
        (order(given=json.dumps({"a": "x" * 2**20}).encode()), "input_too_large"),
        (order(command=("x",), cwd="here"), "command_invalid"),
        (order(env={"LD_PRELOAD": "/tmp/x.so"}), "command_invalid"),
        (order(cwd="/tmp"), "command_invalid"),
    ],
)
def test_an_order_that_is_not_valid_starts_nothing(world, drive, wrong, reason) -> None:
    """Each says why."""
    with pytest.raises(InvalidRequest) as caught:
        drive.order(wrong, operator="ada")
    assert caught.value.reason == reason
    assert world.run(wrong.run_id) is None
    assert world.runtime.started == []


def test_an_input_may_have_as_much_in_it_as_its_size_allows(world, drive) -> None:
    """Its members are not counted apart, as those of a call's arguments are."""
    many = json.dumps({"rows": [1] * 520_000}, separators=(",", ":")).encode()
    assert drive.order(order(given=many), operator="ada").state == "pending"


def test_a_purged_run_is_said_to_be_purged(world, drive) -> None:
    """Nobody can tell any more whether the input is the same: it is not said to be another."""
    drive.order(order(), operator="ada")
    run = world.run("r")
    world.store.write(lambda tables: tables.runs.move(run, replace(run, purged_ms=1)))
    with pytest.raises(Conflict) as caught:
        drive.order(order(), operator="ada")
    assert caught.value.reason == "run_purged"


def test_a_lost_delivery_is_made_again(world, drive) -> None:
    """The runtime was away: the order stands, and the sweep tells the app until an attempt begins."""
    world.runtime.away = True
    assert drive.order(order(), operator="ada").state == "pending"
    world.runtime.away = False
    assert drive.sweep() == 0  # it may still be on its way
    world.clock.ms += 5_001
    assert drive.sweep() == 1
    assert world.runtime.started == [("r", "desk")]
    world.runs.start_attempt(peer("desk"), run_id="r", launcher="w")
    assert drive.sweep() == 0


def test_a_run_that_nobody_is_at_is_delivered_again(world, drive) -> None:
    """Fifteen seconds of silence, not while a heartbeat comes, not when it is held up or has ended."""
    drive.order(order(), operator="ada")
    world.runs.start_attempt(peer("desk"), run_id="r", launcher="w")
    world.clock.ms += 15_000
    assert drive.sweep() == 0
    world.clock.ms += 1
    assert drive.sweep() == 1
    assert world.runtime.started == [("r", "desk")] * 2
    world.runs.heartbeat(peer("desk"), run_id="r", attempt=1, steps=0)
    assert drive.sweep() == 0
    world.runs.end_attempt(peer("desk"), run_id="r", attempt=1, state="restarting", detail="")
    world.clock.ms += 45_000
    assert drive.sweep() == 0  # it may rest before its next attempt
    world.clock.ms += 1
    assert drive.sweep() == 1
    world.runs.control(run_id="r", action="cancel", operator="ada")
    world.clock.ms += 3_600_000
    assert drive.sweep() == 0


def test_an_app_with_many_runs_starves_none(world, drive) -> None:
    """Each app has a share of a sweep, one run of each in turn, and a long queue comes round to its end."""
    world.runtime.away = True
    for number in range(3 * PER_APP):
        drive.order(order(run_id=f"many-{number:02}"), operator="ada")
        world.clock.ms += 1
    drive.order(order(app="nightly", run_id="one"), operator="ada")
    world.runtime.away = False
    world.clock.ms += 5_001
    assert drive.sweep() == PER_APP + 1
    told = [run_id for run_id, _app in world.runtime.started]
    assert "one" in told[:2]
    assert [drive.sweep() for _ in range(2)] == [PER_APP + 1] * 2
    assert {run_id for run_id, _app in world.runtime.started} == {
        "one", *(f"many-{number:02}" for number in range(3 * PER_APP))
    }  # fmt: skip


def test_runs_that_are_well_take_nobodys_place(world, drive) -> None:
    """However many older ones there are."""
    for number in range(2 * PER_APP):
        drive.order(order(run_id=f"well-{number}"), operator="ada")
        world.runs.start_attempt(peer("desk"), run_id=f"well-{number}", launcher="w")
    world.clock.ms += 1
    drive.order(order(run_id="lost"), operator="ada")
    world.clock.ms += 5_001
    world.runtime.started.clear()
    assert drive.sweep() == 1
    assert world.runtime.started == [("lost", "desk")]


def test_a_run_at_a_terminal_is_nobodys_to_deliver(world, drive) -> None:
    """A launcher that somebody started plays it, and no worker takes it over."""
    world.clock.ms += 3_600_000
    assert world.run().state == "running"
    assert drive.sweep() == 0


def test_people_see_what_a_run_that_was_left_needs(world, drive) -> None:
    """At a terminal, its launcher gone: the command that goes on with it, and the one that ends it."""
    assert drive.shown(world.run()) == world.run()
    world.runs.end_attempt(peer("desk"), run_id="run-1", attempt=1, state="restarting", detail="status 1")
    assert drive.shown(world.run()).detail == "status 1"
    world.clock.ms += 45_001
    seen = drive.shown(world.run())
    assert seen.state == "suspect"
    assert seen.detail.startswith("status 1; no sign of its launcher: ")
    assert "`meshgate run --app desk --run-id run-1 -- CMD`" in seen.detail
    assert "`meshgate runs cancel run-1`" in seen.detail
    world.runs.control(run_id="run-1", action="cancel", operator="ada")
    assert "--run-id" not in drive.shown(world.run()).detail


def test_a_run_is_read_by_its_own_app_only(world, drive) -> None:
    """Another app's run and none look the same, and each question leaves a record."""
    drive.order(order(), operator="ada")
    before = len(world.records("refusal"))
    for app, run_id in (("rival", "r"), ("desk", "none"), ("desk", "../x")):
        with pytest.raises(Missing) as caught:
            world.runs.read(peer(app), run_id=run_id)
        assert caught.value.reason == "run_unknown"
    assert len(world.records("refusal")) == before + 3


def test_the_result_is_kept_with_the_run(world, drive) -> None:
    """Encrypted like every clear text; one that is too large is refused."""
    drive.order(order(), operator="ada")
    world.runs.start_attempt(peer("desk"), run_id="r", launcher="w")
    end = {"run_id": "r", "attempt": 1, "state": "completed", "detail": ""}
    with pytest.raises(InvalidRequest):
        world.runs.finish(peer("desk"), **end, result=b"x" * 2**20 + b"x")
    run = world.runs.finish(peer("desk"), **end, result=b'{"raw": "done"}')
    kept = world.store.read(lambda tables: world.vault.get(tables, run.result))
    assert kept == b'{"raw": "done"}'
    assert all("done" not in json.dumps(record) for record in world.records() if record.get("run_id") == "r")


def without_desk(drive: Drive) -> Drive:
    """The same store, behind a gateway whose manifest has no app `desk` any more."""
    apps = {name: entry for name, entry in APPS.items() if name != "desk"}
    tools = catalogue.parse(json.dumps({"tools": {}, "apps": apps}).encode())
    mesh = Mesh("desk", "desk.example", frozenset(), tools)
    return replace(drive, mesh=mesh, since_ms=drive.now_ms())


def test_a_run_without_a_worker_is_told_of_for_ever(world, drive) -> None:
    """After pauses that double, once a day in the end; each time once, and people see it."""
    drive.order(order(), operator="ada")
    world.clock.ms += 5_000
    told_at: list[int] = []
    begun = world.clock.ms
    while world.clock.ms < begun + 30 * DAY_MS:
        world.clock.ms = tellings.due(world.run("r"), now_ms=world.clock.ms).next_ms
        drive.sweep()
        assert len(world.runtime.started) == 1 + len(told_at)  # not before its time
        world.clock.ms += 1
        assert (drive.sweep(), drive.sweep()) == (1, 1)
        told_at.append(world.clock.ms - begun - 1)
        assert len(world.runtime.started) == 1 + len(told_at)
    assert told_at[:4] == [0, 4_000, 12_000, 28_000]
    pauses = [later - earlier for earlier, later in itertools.pairwise(told_at)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == DAY_MS
    assert len(told_at) > 30
    assert drive.shown(world.run("r")).detail.startswith("waits for a worker of desk: told again ")


def test_a_run_that_gave_a_sign_is_told_of_anew(world, drive) -> None:
    """As soon as the first time, however often it was told of before that."""
    drive.order(order(), operator="ada")
    world.clock.ms += DAY_MS
    drive.sweep()
    world.runs.control(run_id="r", action="pause", operator="ada")
    world.runs.control(run_id="r", action="resume", operator="ada")
    assert drive.shown(world.run("r")).detail == "resumed by an operator"
    world.runtime.started.clear()
    world.clock.ms += 45_001
    drive.sweep()
    assert world.runtime.started == [("r", "desk")]


def test_a_run_whose_app_left_the_manifest_fails(world, drive) -> None:
    """An hour after that is known, with the reason, recorded once; its journal and others' runs stay."""
    drive.order(order(), operator="ada")
    drive.order(order(app="nightly", run_id="other"), operator="ada")
    world.clock.ms += 30 * DAY_MS
    after = without_desk(drive)
    world.runtime.started.clear()
    world.clock.ms += 3_600_000
    assert after.sweep() == 1
    assert world.runtime.started == [("other", "nightly")]
    assert "desk is not in the manifest" in after.shown(world.run("r")).detail
    assert world.run("r").state == "pending"
    world.clock.ms += 1
    assert after.sweep() == 2
    run = world.run("r")
    assert (run.state, run.detail) == ("failed", "its app desk is not in the manifest any more")
    assert run.input is not None
    assert after.sweep() == 1
    ends = [row for row in world.records("lifecycle") if row["event"] == "run_finished"]
    assert [(row["run_id"], row["state"], row["cause"]) for row in ends] == [("r", "failed", "app_gone")]


def test_a_run_whose_app_comes_back_goes_on(world, drive) -> None:
    """A manifest that was wrong for less than an hour ends nothing."""
    drive.order(order(), operator="ada")
    world.clock.ms += 3_600_000
    assert without_desk(drive).sweep() == 0
    world.runtime.started.clear()
    assert drive.sweep() == 1
    assert world.runtime.started == [("r", "desk")]
