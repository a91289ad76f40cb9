"""What an operator is shown of a run: clear text only when it is on record who read it."""

from dataclasses import replace

import pytest
from gateway.test_gateway_history import rows, worked
from meshgate_gateway import views
from meshgate_gateway.errors import Missing, StoreUnavailable
from meshgate_gateway.views import Question, Views

ANN = "spiffe://desk.example/ns/desk/operator"
ALL = Question("run-1", "ann (uid 7)")


@pytest.fixture
def shown(world) -> Views:
    """Of a run with five steps that ended."""
    worked(world)
    return Views(world.store, world.vault, world.hosts.recorder)


def looks(world) -> list[tuple[object, ...]]:
    found = [row for row in world.records("lifecycle") if row["event"] == "run_shown"]
    return [(row["caller"], row["operator"], row["shown_run"], row["steps"]) for row in found]


def test_who_reads_clear_text_is_recorded(world, shown) -> None:
    """Each time, with how many steps; the run's own records stay as they are."""
    own = [row for row in world.records() if row.get("run_id") == "run-1"]
    view = shown.of(ALL, caller=ANN)
    assert (len(view.steps), view.cut) == (5, False)
    assert all(step.given and step.gave for step in view.steps)
    assert view.given
    part = shown.of(replace(ALL, with_steps=False), caller=ANN)
    assert (part.given, part.steps, part.cut) == (view.given, [], False)
    assert looks(world) == [(ANN, "ann (uid 7)", "run-1", 5), (ANN, "ann (uid 7)", "run-1", 0)]
    assert [row for row in world.records() if row.get("run_id") == "run-1"] == own


def test_a_look_at_the_row_alone_is_free(world, shown) -> None:
    """Who waits for a run asks many times: there is no clear text in it, and no record."""
    view = shown.of(replace(ALL, row_only=True), caller=ANN)
    assert view == views.RunView(world.run())
    assert looks(world) == []


@pytest.mark.parametrize("fault", ["fail_before", "fail_after"])
def test_without_a_record_nothing_is_shown(world, shown, fault) -> None:
    """As with every other thing that the gateway does."""
    setattr(world.store, fault, True)
    with pytest.raises(StoreUnavailable):
        shown.of(ALL, caller=ANN)
    world.store.fail_before = False


def test_a_run_that_is_not_there_is_not_shown(world, shown) -> None:
    """And is no look at anything."""
    for row_only in (True, False):
        with pytest.raises(Missing):
            shown.of(Question("none", "ann", row_only=row_only), caller=ANN)
    assert looks(world) == []


def test_as_many_steps_as_fit_are_read_and_recorded(world, monkeypatch) -> None:
    """The first ones, and in any case what a runner was given and gave."""
    worked(world)
    shown = Views(world.store, world.vault, world.hosts.recorder)
    whole = shown.of(ALL, caller=ANN)
    sizes = [len(step.given) + len(step.gave) + views.STEP_BYTES for step in whole.steps]
    monkeypatch.setattr(views, "MAX_SHOWN_BYTES", len(whole.given) + sum(sizes[:2]))
    view = shown.of(ALL, caller=ANN)
    assert (list(view.steps), view.cut) == (list(whole.steps[:2]), True)
    monkeypatch.setattr(views, "MAX_SHOWN_BYTES", len(whole.given) + sizes[0] + sizes[4])
    monkeypatch.setattr(views, "RUN_STEPS", {rows(world, "run-1")[4].step_key: "result"})
    view = shown.of(ALL, caller=ANN)
    assert ([step.row.place for step in view.steps], view.cut) == ([1, 5], True)
    assert [steps for *_, steps in looks(world)] == [5, 2, 2]


def test_a_purged_run_shows_no_text(world, shown) -> None:
    """Nothing is read, so nothing is recorded."""
    purged = replace(world.run(), purged_ms=1)
    world.store.write(lambda tables: tables.runs.move(world.run(), purged))
    view = shown.of(ALL, caller=ANN)
    assert (view.given, view.traceback, view.result) == (b"", b"", b"")
    assert {(step.given, step.gave) for step in view.steps} == {(b"", b"")}
    assert looks(world) == []
