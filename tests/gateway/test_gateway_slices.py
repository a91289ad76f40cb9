"""Forks and purges of many steps: in slices between which others write, and not lost in a crash."""

import pytest
from fakes.gateway_parts import peer
from gateway.test_gateway_history import answers, append, call, finish, order, rows, worked
from meshgate_gateway import archive, history
from meshgate_gateway.archive import Archive
from meshgate_gateway.errors import Conflict, Missing, StoreUnavailable

OPERATOR = {"digest": "", "without_export": True, "operator": "ann"}


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """Two rows per transaction."""
    monkeypatch.setattr(history, "SLICE", 2)
    monkeypatch.setattr(archive, "SLICE", 2)


def archive_of(world) -> Archive:
    """Export and purge of the same gateway."""
    parts = world.history
    return Archive(world.store, world.vault, parts.recorder, parts.mesh, world.clock)


def between(world, monkeypatch, act) -> None:
    """Calls `act` with the number of each write of the store, before it."""
    write, count = world.store.write, iter(range(1, 1000))

    def counted(work):
        act(next(count))
        return write(work)

    monkeypatch.setattr(world.store, "write", counted)


def dies_at(world, monkeypatch, number: int):
    """The gateway is killed before its n-th transaction; returns what brings it back."""

    def act(now: int) -> None:
        if now >= number:
            raise StoreUnavailable(detail="killed, says the test")

    with monkeypatch.context() as patched:
        between(world, patched, act)
        yield
    world.clock.ms += 100_000


def payloads(world) -> int:
    """How many clear texts there are."""
    return world.store.read(
        lambda tables: tables.payloads._db.execute("SELECT count(*) FROM payloads").fetchone()[0]
    )


def test_nobody_acts_in_a_fork_before_it_is_whole(world, monkeypatch) -> None:
    """In slices, one transaction each; no attempt begins and no worker is told before the last."""
    worked(world)
    seen: list[tuple[str, str]] = []

    def act(now: int) -> None:
        run = world.run("fork-1")
        if run is None:
            return
        ever = dict.fromkeys(("pending", "running", "restarting"), 2**62)
        forsaken = world.store.read(lambda tables: tables.runs.forsaken(ever, per_app=10, turn=0))
        told = [one.run_id for one in forsaken]
        seen.append((run.state, "told" if "fork-1" in told else ""))

    with monkeypatch.context() as patched:
        between(world, patched, act)
        made = world.history.make(order(steps=5))
    assert seen == [("copying", "")] * 2
    assert (made.run.state, world.run("fork-1").recorded_steps) == ("pending", 5)
    assert [row.place for row in rows(world, "fork-1")] == [1, 2, 3, 4, 5]
    world.runs.start_attempt(peer("desk"), run_id="fork-1", launcher="l1")
    assert len(answers(world, "fork-1")) == 5
    append(world, "next", 3, run_id="fork-1")
    assert rows(world, "fork-1")[-1].place == 6


def test_a_fork_that_was_not_finished_never_begins(world, monkeypatch) -> None:
    """Its gateway was killed between two slices: nobody may act in it, and the sweep ends it."""
    worked(world)
    for _ in dies_at(world, monkeypatch, 2):
        with pytest.raises(StoreUnavailable):
            world.history.make(order(steps=5))
    with pytest.raises(Conflict) as caught:
        world.runs.start_attempt(peer("desk"), run_id="fork-1", launcher="l1")
    assert caught.value.reason == "run_copying"
    assert world.history.give_up_stale() == 1
    assert (world.run("fork-1").state, world.history.give_up_stale()) == ("failed", 0)


@pytest.mark.parametrize("number", [2, 3])
def test_a_fork_that_was_not_finished_is_finished_when_asked_for_again(world, monkeypatch, number) -> None:
    """In the minute before it is given up: each step copied once, its repeats known, then it may begin."""
    worked(world)
    for _ in dies_at(world, monkeypatch, number):
        with pytest.raises(StoreUnavailable):
            world.history.make(order(steps=5))
    assert world.run("fork-1").recorded_steps == 2 * (number - 1)
    with pytest.raises(Conflict) as caught:
        world.history.make(order(steps=4))
    assert caught.value.reason == "run_taken"
    assert world.history.make(order(steps=5)).run.state == "pending"
    assert [row.place for row in rows(world, "fork-1")] == [1, 2, 3, 4, 5]
    assert [record["step"] for record in world.records("copy")] == [1, 2, 3, 4, 5]
    world.runs.start_attempt(peer("desk"), run_id="fork-1", launcher="l1")
    assert len(answers(world, "fork-1")) == 5


def test_a_fork_that_was_given_up_is_not_asked_for_again(world, monkeypatch) -> None:
    """It never was the fork that was ordered; the refusal says so."""
    worked(world)
    for _ in dies_at(world, monkeypatch, 2):
        with pytest.raises(StoreUnavailable):
            world.history.make(order(steps=5))
    world.history.give_up_stale()
    with pytest.raises(Conflict) as caught:
        world.history.make(order(steps=5))
    assert (caught.value.reason, "not all steps" in caught.value.detail) == ("run_taken", True)


def test_two_that_make_the_same_fork_take_turns(world, monkeypatch) -> None:
    """A second request while the first one copies: together they copy each step once, and both are told."""
    worked(world)
    second: list[str] = []

    def act(now: int) -> None:
        if now == 2:
            monkeypatch.undo()
            second.append(world.history.make(order(steps=5)).run.state)

    between(world, monkeypatch, act)
    assert (world.history.make(order(steps=5)).run.state, second) == ("pending", ["pending"])
    assert [record["step"] for record in world.records("copy")] == [1, 2, 3, 4, 5]


def test_a_fork_that_is_being_made_is_not_given_up(world) -> None:
    """A slice a moment ago is a sign of life."""
    worked(world)
    _, kept, edit = world.store.read(lambda tables: world.history._checked(tables, order(steps=5)))
    made, copier = world.store.write(lambda tables: world.history._begun(tables, order(steps=5), kept, edit))
    assert (made.state, world.history.give_up_stale()) == ("copying", 0)
    assert world.history._more(copier, kept).state == "copying"


def test_a_run_that_is_purged_meanwhile_is_not_forked(world, monkeypatch) -> None:
    """What was not copied yet may be gone: the fork fails, and what it has stays its own to purge."""
    worked(world)
    box = archive_of(world)

    def act(now: int) -> None:
        if now == 2:
            monkeypatch.undo()
            box.purge(run_id="run-1", **OPERATOR)

    between(world, monkeypatch, act)
    with pytest.raises(Conflict) as caught:
        world.history.make(order(steps=5))
    assert caught.value.reason == "run_purged"
    assert world.run("fork-1").state == "failed"


@pytest.mark.parametrize("at", [2, 3, 5, 7, 8, 9])
def test_a_purge_goes_on_after_a_crash(world, monkeypatch, at) -> None:
    """Killed before one of its transactions: nobody reads the run, the sweep deletes what is left."""
    worked(world)
    box = archive_of(world)
    for _ in dies_at(world, monkeypatch, at):
        with pytest.raises(StoreUnavailable):
            box.purge(run_id="run-1", **OPERATOR)
    run = world.run()
    assert (run.purging, bool(run.purged_ms)) == (True, True)
    with pytest.raises(Conflict):
        world.history.make(order())
    assert box.resume() == 1
    run = world.run()
    assert (run.purging, run.input, payloads(world), box.resume()) == (False, None, 0, 0)
    assert world.store.read(lambda tables: tables.journal.of_run("run-1")) == []
    events = [record["event"] for record in world.records("lifecycle")]
    assert events.count("run_purge_begun") == events.count("run_purged") == 1


def test_a_purge_leaves_what_a_fork_holds(world) -> None:
    """As when it was one transaction: the fork still answers, and its own purge deletes the last."""
    worked(world)
    world.history.make(order(steps=5))
    box = archive_of(world)
    first = box.purge(run_id="run-1", **OPERATOR)
    assert (first.deleted, first.shared) == (1, 10)  # its input alone was its own
    world.runs.start_attempt(peer("desk"), run_id="fork-1", launcher="l1")
    assert len(answers(world, "fork-1")) == 5
    finish(world, run_id="fork-1")
    box.purge(run_id="fork-1", **OPERATOR)
    assert payloads(world) == 0


def test_two_gateways_that_purge_one_run_record_it_once(world, monkeypatch) -> None:
    """One is so slow that the other takes it up: both come to the end, and one says so."""
    worked(world)
    box = archive_of(world)

    def act(now: int) -> None:
        if now == 4:
            monkeypatch.undo()
            world.clock.ms += 100_000
            assert box.resume() == 1

    between(world, monkeypatch, act)
    assert not box.purge(run_id="run-1", **OPERATOR).run.purging
    events = [record["event"] for record in world.records("lifecycle")]
    assert (events.count("run_purged"), payloads(world)) == (1, 0)


def test_a_purge_under_way_is_nobody_elses(world, monkeypatch) -> None:
    """The sweep takes it up only when it was left alone for a while."""
    worked(world)
    box, taken = archive_of(world), []
    between(world, monkeypatch, lambda now: taken.append(box.resume()))
    box.purge(run_id="run-1", **OPERATOR)
    assert set(taken) == {0}


def test_steps_are_in_the_order_in_which_they_were_stored(world) -> None:
    """Two gateways whose clocks differ by minutes, in turn: the order is not that of their clocks."""
    for turn in range(6):
        append(world, f"m{turn}", turn)
        world.clock.ms += 300_000 if turn % 2 else -300_000
        call(world, f"t{turn}", turn + 1, tool="orders.lookup", arguments={"order": f"A{turn}"})
    kinds = [type(row).__name__ for row in rows(world, "run-1")]
    assert kinds == ["JournalRow", "LedgerRow"] * 6
    assert [row.place for row in rows(world, "run-1")] == list(range(1, 13))
    entries = world.journal.read(peer("desk"), run_id="run-1", attempt=1)
    assert [entry.step.kind for entry in entries] == ["model", "tool"] * 6


def test_a_run_that_is_not_there_is_not_purged(world) -> None:
    """Also in slices."""
    with pytest.raises(Missing):
        archive_of(world).purge(run_id="run-9", **OPERATOR)
