"""A large family is cancelled a slice at a time, and to its end whoever dies over it. On both stores."""

import pytest
from fakes.gateway_parts import peer
from gateway.conftest import make_world
from gateway.delegating import begin, delegate, end, run_of
from gateway.test_gateway_history import key
from meshgate_gateway.delegations import SLICE
from meshgate_gateway.errors import Conflict, StoreUnavailable
from meshgate_gateway.model import State

WIDE = 2 * SLICE + 3


def ask(world, number: int, to: str = "billing", **more) -> str:
    """One task of many; the run that is to do it."""
    return run_of(delegate(world, to, step_key=key(f"{number} {more}"), arguments={"task": "x"}, **more))


def grown(world) -> tuple[list[str], list[str]]:
    """Tasks of run-1, some of them begun, and tasks of each of those: many of the first."""
    below = [ask(world, number) for number in range(WIDE)]
    for number, run_id in enumerate(below[: SLICE + 2]):
        begin(world, run_id, f"w{number}")
    many = [*below[:1] * WIDE, *below[1 : SLICE + 2]]
    return below, [
        ask(world, number, "refunds", app="billing", run_id=run_id) for number, run_id in enumerate(many)
    ]


def watch(world, *, dies_after: int = 10**6) -> list[int]:
    """So many runs were cancelled or ended by each transaction; none succeeds after so many that did any."""
    told: list[int] = []
    write = world.store.write

    def events(tables) -> int:
        sql = "SELECT count(*) FROM records WHERE kind = 'lifecycle'"
        return int(tables._db.execute(sql).fetchone()[0])

    def watched(work):
        def counted(tables):
            before = events(tables)
            return work(tables), events(tables) - before

        if len(told) >= dies_after:
            raise StoreUnavailable(detail="killed by the test")
        value, number = write(counted)
        if number:
            told.append(number)
        return value

    world.store.write = watched
    return told


def states(world, runs: list[str]) -> set[str]:
    """What became of these."""
    return {world.run(run_id).state for run_id in runs}


def marked(world) -> list[str]:
    """Runs whose callees are not all told."""
    return [run.run_id for run in world.store.read(lambda tables: tables.runs.recalling(limit=100))]


@pytest.mark.parametrize("how", ["cancel", "completed", "failed"])
def test_others_write_between_the_slices(world, how) -> None:
    """All are told before the answer, no transaction tells more than so many, and nothing stays marked."""
    below, lower = grown(world)
    told = watch(world)
    if how == "cancel":
        world.runs.control(run_id="run-1", action="cancel", operator="ann")
    else:
        world.runs.finish(peer("desk"), run_id="run-1", attempt=1, state=how, detail="")
    assert sum(told) == 1 + len(below) + len(lower)
    assert max(told) <= SLICE + 1
    assert len(told) >= (len(below) + len(lower)) / SLICE
    assert states(world, below[: SLICE + 2]) == {"cancelling"}
    assert states(world, below[SLICE + 2 :] + lower) == {"cancelled"}
    assert marked(world) == []
    rows = [world.row(world.run(run_id).parent_call) for run_id in lower]
    assert {(row.state, row.error_class) for row in rows} == {(State.FAILED, "cancelled")}


def test_a_small_family_is_cancelled_at_once(world) -> None:
    """In the transaction that ends its first run."""
    runs = [ask(world, number) for number in range(SLICE)]
    told = watch(world)
    world.runs.control(run_id="run-1", action="cancel", operator="ann")
    assert told == [SLICE + 1]
    assert states(world, runs) == {"cancelled"}


@pytest.mark.parametrize("slices", [1, 2, 4])
def test_who_comes_after_a_crash_goes_on(make_store, slices) -> None:
    """Killed between two slices: nothing begins meanwhile, and another gateway's sweep tells the rest."""
    world = make_world(make_store())
    world.begin()
    below, lower = grown(world)
    told = watch(world, dies_after=slices)
    with pytest.raises(StoreUnavailable):
        world.runs.control(run_id="run-1", action="cancel", operator="ann")
    assert len(told) == slices
    world.store.close()
    other = make_world(make_store())
    other.clock.ms += 1
    assert marked(other) != []
    assert {"pending", "cancelled"} <= states(other, below + lower)
    for run_id in [run_id for run_id in below + lower if other.run(run_id).state == "pending"]:
        with pytest.raises(Conflict, match="run_waiting"):
            begin(other, run_id)
    other.sweeper.sweep()
    assert marked(other) == []
    assert states(other, below + lower) == {"cancelling", "cancelled"}
    other.store.close()


def test_a_mark_keeps_what_the_run_has_grown_by(world) -> None:
    """Each failure below counts in the run that asked, also in the transaction that marks it."""
    runs = [ask(world, number) for number in range(WIDE)]
    before = world.run().recorded_bytes
    watch(world, dies_after=1)
    with pytest.raises(StoreUnavailable):
        world.runs.control(run_id="run-1", action="cancel", operator="ann")
    rows = [world.row(world.run(run_id).parent_call) for run_id in runs]
    failures = sum(row.result.size_bytes for row in rows if row.result is not None)
    assert world.run().recalling
    assert world.run().recorded_bytes == before + failures > before


def test_a_marked_run_may_end_meanwhile(world) -> None:
    """By its launcher, told again: what is left of its family goes with it."""
    below, _ = grown(world)
    write = world.store.write
    watch(world, dies_after=1)
    with pytest.raises(StoreUnavailable):
        world.runs.control(run_id="run-1", action="cancel", operator="ann")
    world.store.write = write
    end(world, "run-1", "cancelled", b"")
    assert states(world, below) == {"cancelling", "cancelled"}
    assert marked(world) == []


def test_those_whose_workers_are_gone_end_in_slices_too(world) -> None:
    """A family of which nobody gives a sign is settled by one sweep, so many in each transaction."""
    runs = [ask(world, number) for number in range(WIDE)]
    for number, run_id in enumerate(runs):
        begin(world, run_id, f"w{number}")
    world.runs.control(run_id="run-1", action="cancel", operator="ann")
    assert states(world, runs) == {"cancelling"}
    world.clock.ms += 15_001
    told = watch(world)
    world.sweeper.sweep()
    assert states(world, ["run-1", *runs]) == {"cancelled"}
    assert max(told) <= SLICE
    assert {world.row(world.run(run_id).parent_call).error_class for run_id in runs} == {"cancelled"}
