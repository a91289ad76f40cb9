"""Attempts are counted where no worker's death can make one forgotten: in the store."""

import threading

import pytest
from fakes.gateway_parts import peer
from meshgate_gateway import attempts
from meshgate_gateway.errors import Conflict


def begin(world, name: str) -> tuple[int, int]:
    run = world.runs.start_attempt(peer("desk"), run_id="run-1", launcher=name)
    return run.attempt, run.crashes + run.lost


def end(world, attempt: int, state: str) -> None:
    world.runs.end_attempt(peer("desk"), run_id="run-1", attempt=attempt, state=state, detail="")


def test_an_attempt_that_nobody_ended_counts(world) -> None:
    """Its worker died with it; asked for again by the same worker it is the same attempt."""
    assert begin(world, "w1") == (2, 1)
    assert begin(world, "w1") == (2, 1)
    assert begin(world, "w2") == (3, 2)
    assert attempts.failures(world.run()) == 3  # were the third one dead, too


def test_of_two_that_saw_the_same_attempt_one_begins_the_next(world) -> None:
    """The other is refused and has spent none; what was answered already is answered again."""
    asked = {"run_id": "run-1", "after": 1}
    assert world.runs.start_attempt(peer("desk"), launcher="w1", **asked).attempt == 2
    records, before = len(world.records()), world.run()
    with pytest.raises(Conflict) as caught:
        world.runs.start_attempt(peer("desk"), launcher="w2", **asked)
    assert caught.value.reason == "attempt_superseded"
    assert world.runs.start_attempt(peer("desk"), launcher="w1", **asked).attempt == 2
    assert world.run() == before
    assert [record["kind"] for record in world.records()[records:]] == ["refusal"]


def test_many_at_once_begin_one_attempt(world) -> None:
    """Whatever the order in which their transactions come."""
    begun, refused = [], []
    barrier = threading.Barrier(8)

    def begin(name: str) -> None:
        barrier.wait(30)
        try:
            run = world.runs.start_attempt(peer("desk"), run_id="run-1", launcher=name, after=1)
        except Conflict as error:
            refused.append(error.reason)
        else:
            begun.append(run.attempt)

    threads = [threading.Thread(target=begin, args=(f"w{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (begun, refused) == ([2], ["attempt_superseded"] * 7)
    assert world.run().attempt == 2


def test_only_losses_in_a_row_without_a_new_step_count(world) -> None:
    """A worker takes runs with it that are well: they go on, and are not given up for that."""
    assert begin(world, "w1") == (2, 1)
    world.store.write(lambda tables: tables.runs.grow("run-1", steps=1, size_bytes=1))
    assert begin(world, "w2") == (3, 0)
    assert begin(world, "w3") == (4, 1)


def test_crashes_count_for_good(world) -> None:
    """Whatever steps they brought: each may have cost money."""
    for attempt in (1, 2, 3):
        world.store.write(lambda tables: tables.runs.grow("run-1", steps=1, size_bytes=1))
        end(world, attempt, "restarting")
        end(world, attempt, "restarting")  # asked again: the same end
        assert begin(world, f"w{attempt}") == (attempt + 1, attempt)


@pytest.mark.parametrize("state", ["stopped", "paused"])
def test_an_orderly_end_counts_for_nothing(world, state) -> None:
    """A worker that was told to end, and a run that was held up."""
    if state == "paused":
        world.runs.control(run_id="run-1", action="pause", operator="ada")
    end(world, 1, state)
    assert world.run().state == ("pending" if state == "stopped" else "paused")
    if state == "paused":
        world.runs.control(run_id="run-1", action="resume", operator="ada")
    assert begin(world, "w1") == (2, 0)
