"""A run that takes its worker down, and a worker whose machine is out of something: bounded, never silent."""

import contextlib
import errno
import json
import sys
import threading

import pytest
from agents.test_worker import WAIT, ended, eventually, plays, store, subreaper  # noqa: F401 - fixtures
from meshgate_agents.launcher import launch, supervise
from meshgate_agents.launcher.errors import GatewayUnavailable, StartsSpent
from meshgate_agents.launcher.launch import Launch
from meshgate_agents.launcher.session import Session
from meshgate_agents.worker import activities, sidecar, slots
from meshgate_agents.worker import plays as plays_module


def test_attempts_are_counted_over_the_deaths_of_workers(store, plays, tmp_path) -> None:  # noqa: F811
    """The store knows of three that failed, this process of none: nothing of the program is started."""
    store.add("r", sys.executable, "-c", "import sys; open(sys.argv[1], 'w')", str(tmp_path / "started"))
    store.runs["r"] |= {"failures": 3, "attempt": 3}
    assert ended(plays.play("r")) == "failed"
    assert "given up after 3 attempts" in store.runs["r"]["detail"]
    assert not (tmp_path / "started").exists()


def test_the_backoff_is_kept_over_the_deaths_of_workers(store, plays, monkeypatch) -> None:  # noqa: F811
    """The first attempt of this process rests as the third of the run."""
    rests: list[float] = []
    monkeypatch.setattr(supervise.Supervisor, "rest", lambda _self, seconds: rests.append(seconds))
    store.add("r")
    monkeypatch.setattr(launch, "FIRST_BACKOFF_SECONDS", 0.01)  # of the second; the tests' own is 0.05
    store.runs["r"] |= {"failures": 2, "attempt": 2}
    assert ended(plays.play("r")) == "completed"
    assert rests == [0.05]


@pytest.mark.parametrize("how", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("no thread")])
def test_a_fault_of_the_machine_is_tried_again(store, plays, monkeypatch, how) -> None:  # noqa: F811
    """It ends the attempt with its reason; once there is room again the run goes on."""
    real, faults = Session.listen, [how, how]

    def listen(session, directory):
        if faults:
            raise faults.pop()
        return real(session, directory)

    monkeypatch.setattr(Session, "listen", listen)
    store.add("r")
    assert ended(plays.play("r")) == "completed"
    assert store.runs["r"]["attempt"] == 3
    assert [state for state, _ in store.ends] == ["restarting"] * 2
    assert all(type(how).__name__ in detail for _, detail in store.ends)


def test_a_fault_that_stays_ends_the_run(store, plays, monkeypatch) -> None:  # noqa: F811
    """As failed, with what the machine is out of."""

    def listen(_session, _directory):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Session, "listen", listen)
    store.add("r")
    assert ended(plays.play("r")) == "failed"
    assert "Too many open files" in store.runs["r"]["detail"]


def test_a_fault_outside_of_an_attempt_is_tried_again(store, plays, monkeypatch) -> None:  # noqa: F811
    """Nothing was begun, so nothing is counted; the delivery is not lost."""
    real, faults = Launch.play, [OSError(errno.ENFILE, "Too many open files in system")]

    def play(launch):
        if faults:
            raise faults.pop()
        return real(launch)

    monkeypatch.setattr(Launch, "play", play)
    monkeypatch.setattr(plays_module, "PAUSE_SECONDS", 0.01)
    store.add("r")
    assert ended(plays.play("r")) == "completed"
    assert store.runs["r"]["attempt"] == 1


def test_a_run_for_which_no_thread_is_to_be_had_is_not_kept(store, plays, monkeypatch) -> None:  # noqa: F811
    """Its delivery fails, so that it is made again; the next one is no joiner of nobody."""
    store.add("r")
    with monkeypatch.context() as patched:
        patched.setattr(plays_module.threading.Thread, "start", _no_thread)
        with pytest.raises(RuntimeError):
            plays.play("r")
    assert "r" not in plays
    assert ended(plays.play("r")) == "completed"


def _no_thread(_thread) -> None:
    raise RuntimeError("can't start new thread")


def test_an_order_that_cannot_be_read_fails_its_run(store, plays) -> None:  # noqa: F811
    """With the reason, in one attempt."""
    store.add("r")
    store.runs["r"]["order"] = b"["
    assert ended(plays.play("r")) == "failed"
    assert "cannot be read" in store.runs["r"]["detail"]
    assert store.runs["r"]["attempt"] == 1


def test_so_many_runs_are_played_at_once(store, plays, tmp_path) -> None:  # noqa: F811
    """The others stay pending, and get their turn in their order."""
    plays._slots = slots.Slots(2)
    futures = []
    for number in range(5):
        store.add(f"r{number}", sys.executable, "-c", WAIT, str(tmp_path / f"go{number}"))
        futures.append(plays.play(f"r{number}"))
        eventually(lambda n=number: n < 2 or len(plays._slots._waiting) == n - 1, "it waits")
    for number in range(5):
        eventually(lambda n=number: store.state(f"r{n}") == "running", "its turn")
        begun = [name for name in store.runs if store.runs[name]["attempt"]]
        assert len(begun) <= number + 2
        assert begun == [f"r{n}" for n in range(len(begun))]
        (tmp_path / f"go{number}").touch()
        assert ended(futures[number]) == "completed"


def test_a_task_waits_for_no_slot_of_who_waits_for_tasks(store, plays, tmp_path) -> None:  # noqa: F811
    """Runs wait for deeper ones alone: two apps whose agents give each other tasks never wait in a circle."""
    plays._slots, plays._runs_at_once = slots.Slots(1), 1
    store.add("root", sys.executable, "-c", WAIT, str(tmp_path / "go"))
    root = plays.play("root")
    eventually(lambda: store.state("root") == "running", "it has the slot")
    for depth in (1, 2):
        name = f"d{depth}"
        store.add(name, sys.executable, "-c", WAIT, str(tmp_path / ("go" if depth == 1 else "free")))
        store.runs[name]["order"] = json.dumps(
            {**json.loads(store.runs[name]["order"]), "depth": depth}
        ).encode()
    (tmp_path / "free").touch()
    first, second = plays.play("d1"), plays.play("d2")
    eventually(lambda: store.state("d1") == "running", "it has a slot of its own depth")
    assert ended(second) == "completed"
    (tmp_path / "go").touch()
    assert (ended(root), ended(first)) == ("completed", "completed")


def test_a_run_that_rests_or_is_held_up_takes_no_place(store, plays, tmp_path) -> None:  # noqa: F811
    """Else a few that wait for a person would stop the app."""
    plays._slots = slots.Slots(1)
    store.add("held", sys.executable, "-c", WAIT, str(tmp_path / "go"))
    held = plays.play("held")
    eventually(lambda: store.state("held") == "running", "it runs")
    store.runs["held"]["state"] = "waiting"
    store.add("other")
    assert ended(plays.play("other")) == "completed"
    assert not held.done()
    store.add("paused")
    store.runs["paused"]["state"] = "paused"  # before anything of it was begun
    paused = plays.play("paused")
    eventually(lambda: any(launch._held_by for launch in plays._launches.values()), "it is held up")
    store.add("another")
    assert ended(plays.play("another")) == "completed"
    store.runs["paused"]["state"] = "restarting"
    assert ended(paused) == "completed"


def test_a_run_has_its_last_chance_alone(store, plays, tmp_path) -> None:  # noqa: F811
    """Of two that lost their workers together, one is not given up for the other's fault."""
    for name in ("one", "two"):
        store.add(name, sys.executable, "-c", WAIT, str(tmp_path / name))
        store.runs[name] |= {"failures": 2, "lost": 1, "attempt": 2}  # one crashed, one was lost
    store.add("well")
    one = plays.play("one")
    eventually(lambda: store.state("one") == "running", "it has its chance")
    two = plays.play("two")
    assert ended(plays.play("well")) == "completed"
    eventually(lambda: plays._last_chance._waiting, "the other waits")
    assert store.state("two") == "pending"
    (tmp_path / "one").touch()
    assert ended(one) == "completed"
    (tmp_path / "two").touch()
    assert ended(two) == "completed"


def test_a_last_chance_is_over_with_the_first_new_step(store, plays, tmp_path, monkeypatch) -> None:  # noqa: F811
    """However long the attempt goes on: the next one in the queue has its chance meanwhile."""
    monkeypatch.setattr(plays_module, "CHANCE_SECONDS", 0.01)
    for name in ("one", "two", "three"):
        store.add(name, sys.executable, "-c", WAIT, str(tmp_path / name))
        store.runs[name] |= {"failures": 2, "lost": 2, "attempt": 2}
    futures = {"one": plays.play("one")}
    eventually(lambda: store.state("one") == "running", "it has its chance")
    futures |= {name: plays.play(name) for name in ("two", "three")}
    eventually(lambda: len(plays._last_chance._waiting) == 2, "the others wait")
    store.runs["one"] |= {"failures": 1, "lost": 0, "moved": True}  # it recorded a step: losses count no more
    eventually(lambda: store.state("two") == "running", "the next one has its chance")
    assert (store.state("one"), store.state("three")) == ("running", "pending")
    (tmp_path / "one").touch()
    assert ended(futures["one"]) == "completed"
    assert store.state("three") == "pending"  # leaving twice makes no second place
    (tmp_path / "two").touch()
    eventually(lambda: store.state("three") == "running", "the last one has its chance")
    (tmp_path / "three").touch()
    assert [ended(future) for future in futures.values()] == ["completed"] * 3


def test_a_last_chance_stays_alone_while_nobody_can_say(store, plays, tmp_path, monkeypatch) -> None:  # noqa: F811
    """A gateway that is away is no step."""
    monkeypatch.setattr(plays_module, "CHANCE_SECONDS", 0.01)
    looks = threading.Semaphore(0)
    for name in ("one", "two"):
        store.add(name, sys.executable, "-c", WAIT, str(tmp_path / name))
        store.runs[name] |= {"failures": 2, "lost": 2, "attempt": 2}
    one = plays.play("one")
    eventually(lambda: store.state("one") == "running", "it has its chance")
    two = plays.play("two")
    eventually(lambda: plays._last_chance._waiting, "the other waits")
    with monkeypatch.context() as patched:
        real = store.read_run

        def read_run(run_id):
            if run_id != "one":
                return real(run_id)
            looks.release()
            raise GatewayUnavailable(reason="away", detail="says the test")

        patched.setattr(store, "read_run", read_run)
        for _ in range(3):
            assert looks.acquire(timeout=60)
        assert (len(plays._last_chance._waiting), store.state("two")) == (1, "pending")
    for name in ("one", "two"):
        (tmp_path / name).touch()
    assert [ended(future) for future in (one, two)] == ["completed"] * 2


def test_a_run_that_another_worker_took_up_meanwhile_is_left_to_it(store, plays, monkeypatch) -> None:  # noqa: F811
    """It waited for its turn; when that comes, an attempt of somebody else lives."""
    real, looks = plays._slots.slot, []

    @contextlib.contextmanager
    def slot(stop):
        with real(stop):
            if not looks:
                store.runs["r"] |= {"attempt": 7, "state": "running"}
                monkeypatch.setattr(store, "read_run", seen)
            yield True

    read = store.read_run

    def seen(run_id):
        looks.append(run_id)
        return read(run_id)

    monkeypatch.setattr(plays._slots, "slot", slot)
    store.add("r")
    future = plays.play("r")
    eventually(lambda: len(looks) > 2, "it watches")
    assert (store.runs["r"]["attempt"], future.done()) == (7, False)
    store.runs["r"]["state"] = "completed"
    assert ended(future) == "completed"


def test_a_run_that_waits_for_its_turn_is_left_at_the_end(store, plays, tmp_path) -> None:  # noqa: F811
    """Its worker ends without waiting for it."""
    plays._slots = slots.Slots(1)
    for name in ("first", "second"):
        store.add(name, sys.executable, "-c", WAIT, str(tmp_path / "never"))
        plays.play(name)
    eventually(lambda: plays._slots._waiting, "one waits")
    plays.stop()
    assert sorted(run["attempt"] for run in store.runs.values()) == [0, 1]
    assert not plays._slots._waiting


def test_a_pause_does_not_wait_for_a_step_for_ever(store, plays, tmp_path, monkeypatch) -> None:  # noqa: F811
    """After its grace the attempt is ended all the same, and the run is paused; then it goes on."""
    monkeypatch.setattr(launch, "PAUSE_GRACE_SECONDS", 0.0)
    monkeypatch.setattr(Session, "pause", _step_under_way)
    store.add("r", sys.executable, "-c", WAIT, str(tmp_path / "go"))
    future = plays.play("r")
    eventually(lambda: store.state("r") == "running", "it runs")
    store.runs["r"]["state"] = "pausing"
    eventually(lambda: store.state("r") == "paused", "paused, though its step did not end")
    store.runs["r"]["state"] = "restarting"
    (tmp_path / "go").touch()
    assert ended(future) == "completed"


def _step_under_way(session) -> bool:
    session._paused_at = session._paused_at or 1e-9
    return False


class State:
    """FAKE: how one workflow instance is."""

    def __init__(self, name: str, age: float) -> None:
        self.runtime_status, self.age = type("Status", (), {"name": name}), age


class Handed:
    """FAKE: a sidecar's instances."""

    def __init__(self, monkeypatch) -> None:
        self.states: dict[str, State] = {}
        self.made: list[str] = []
        monkeypatch.setattr(sidecar, "_age", lambda state: state.age)
        self.sidecar = object.__new__(sidecar.Sidecar)
        monkeypatch.setattr(sidecar.Sidecar, "_state", lambda _self, instance: self.states.get(instance))
        monkeypatch.setattr(sidecar.Sidecar, "_schedule", self._schedule)

    def _schedule(self, _run_id, instance) -> bool:
        self.made.append(instance)
        self.states[instance] = State("RUNNING", 0.0)
        return True


def test_each_attempt_of_a_run_has_instances_of_its_own(monkeypatch) -> None:
    """However many were used up before; and no name is another run's."""
    handed = Handed(monkeypatch)
    assert handed.sidecar.start("r", 0)
    assert not handed.sidecar.start("r", 0)  # young: it is coming
    for attempt in range(1, 100):
        assert handed.sidecar.start("r", attempt)
    assert len(set(handed.made)) == 100
    assert not any(activities.parse({"run_id": name}) for name in handed.made if name != "r")


def test_a_run_that_is_handed_out_in_vain_fails(store, plays, monkeypatch) -> None:  # noqa: F811
    """Each instance after twice the wait; after the last one the run ends with the reason."""
    handed = Handed(monkeypatch)
    store.add("r")
    store.runs["r"]["order"] = b"{}"
    for number in range(sidecar.MAX_STARTS):
        assert handed.sidecar.start("r", 0)
        handed.states[sidecar.instance_id("r", 0, number)] = State("FAILED", 0.0)
        if number:
            assert not handed.sidecar.start("r", 0)
        handed.states[sidecar.instance_id("r", 0, number)].age = 1e9
    with pytest.raises(StartsSpent):
        handed.sidecar.start("r", 0)
    begin = activities.start_run(plays, handed.sidecar)
    assert _awaited(begin(None, {"run_id": "r"})) == {"state": "failed"}
    assert store.state("r") == "failed"
    assert "handed out 16 times" in store.runs["r"]["detail"]


def _awaited(coroutine) -> object:
    import asyncio

    return asyncio.run(coroutine)
