"""How an attempt begins: it lives while it reads, and it is whoever saw the run last that begins it."""

import dataclasses
import sys
import threading

import pytest
from agents.test_worker import WAIT, ended, eventually, plays, store, subreaper  # noqa: F401 - fixtures
from meshgate_agents.launcher import launch
from meshgate_agents.launcher.errors import AttemptEnded, RunOver, Stopping
from meshgate_agents.worker import slots

SECONDS = 30


@pytest.fixture
def beats(monkeypatch):
    """Heartbeats come often."""
    monkeypatch.setattr(launch, "HEARTBEAT_SECONDS", 0.02)


def reading(store, monkeypatch, until) -> None:  # noqa: F811
    """Lets the journal's reading last until something has come to pass."""

    def journal(**_asked) -> list:
        assert until(), "did not come to pass while the journal was read"
        return []

    monkeypatch.setattr(store, "journal", journal)


def test_an_attempt_that_reads_its_journal_gives_signs_of_life(store, plays, beats, monkeypatch) -> None:  # noqa: F811
    """Else another worker may take the run up while this one reads."""
    real, beaten = store.heartbeat, threading.Event()

    def heartbeat(**asked) -> str:
        beaten.set()
        return real(**asked)

    monkeypatch.setattr(store, "heartbeat", heartbeat)
    reading(store, monkeypatch, lambda: beaten.wait(SECONDS))
    store.add("r")
    assert ended(plays.play("r")) == "completed"
    assert store.runs["r"]["attempt"] == 1


def test_the_first_attempt_of_a_run_has_no_journal_to_ask_for(store, plays, monkeypatch, tmp_path) -> None:  # noqa: F811
    """Every later one has; after each the run is looked at again: another worker may have been at it."""
    asked, real, look = [], store.start_attempt, store.read_run
    looks: list[int] = []

    def start_attempt(**of):
        begun = real(**of)
        return dataclasses.replace(begun, first=begun.number == 1)

    def read_run(run_id):
        looks.append(store.runs[run_id]["attempt"])
        return look(run_id)

    monkeypatch.setattr(store, "start_attempt", start_attempt)
    monkeypatch.setattr(store, "read_run", read_run)
    monkeypatch.setattr(store, "journal", lambda run_id, attempt: asked.append(attempt) or [])
    once = f"import os, pathlib; p = pathlib.Path({str(tmp_path / 'once')!r})\n"
    store.add("r", sys.executable, "-c", once + "p.exists() or (p.touch(), os.kill(os.getpid(), 9))")
    assert ended(plays.play("r")) == "completed"
    assert (store.runs["r"]["attempt"], asked, looks) == (2, [2], [0, 1, 2])


def test_a_run_lost_while_it_is_read_starts_nothing(store, plays, beats, monkeypatch, tmp_path) -> None:  # noqa: F811
    """What a heartbeat hears meanwhile is not forgotten."""
    heard, noted = threading.Event(), threading.Event()

    def heartbeat(**_asked) -> str:
        if heard.is_set():
            noted.set()  # somebody asks again: then the first word was not enough
        heard.set()
        raise RunOver("the run is another worker's")

    real = launch.Supervisor.end

    def end(supervisor, reason) -> None:
        real(supervisor, reason)
        noted.set()

    monkeypatch.setattr(launch.Supervisor, "end", end)
    monkeypatch.setattr(store, "heartbeat", heartbeat)
    reading(store, monkeypatch, lambda: noted.wait(SECONDS))
    store.add("r", sys.executable, "-c", "import sys; open(sys.argv[1], 'w')", str(tmp_path / "started"))
    future = plays.play("r")
    eventually(lambda: noted.is_set() and not plays._launches, "the launcher left it")
    assert not (tmp_path / "started").exists()
    store.runs["r"]["state"] = "completed"
    assert ended(future) == "completed"


def test_an_attempt_whose_journal_cannot_be_read_is_left(store, plays, monkeypatch) -> None:  # noqa: F811
    """Nothing of it has run: it counts for nothing, and the run does not fail for it."""
    faults = [AttemptEnded("the gateway does not say")]

    def journal(**_asked) -> list:
        if faults:
            raise faults.pop()
        return []

    monkeypatch.setattr(store, "journal", journal)
    store.add("r")
    assert ended(plays.play("r")) == "completed"
    assert [state for state, _ in store.ends] == ["stopped"]
    assert store.runs["r"]["attempt"] == 2


@pytest.mark.parametrize("where", ["journal", "listen"])
def test_a_worker_that_ends_fails_no_run(store, plays, monkeypatch, where) -> None:  # noqa: F811
    """It is told to end before there is a program: the run is left to the next one."""
    told = threading.Event()

    def stopping(*_given, **_asked) -> list:
        threading.Thread(target=plays.stop).start()
        eventually(plays._stop.is_set, "it is told")
        told.set()
        raise Stopping("the worker ends")

    owner = store if where == "journal" else launch.Session
    monkeypatch.setattr(owner, where, stopping)
    store.add("r")
    future = plays.play("r")
    eventually(lambda: told.is_set() and not plays._launches, "it has left")
    assert [state for state, _ in store.ends] == ["stopped"]
    assert (store.state("r"), future.done()) == ("stopped", False)


def meanwhile(store, monkeypatch, happens) -> None:  # noqa: F811
    """Something happens right after the run was looked at for the second time: its turn has come."""
    real, looks = store.read_run, []

    def read_run(run_id):
        known = real(run_id)
        looks.append(known)
        if len(looks) == 2:
            happens(store.runs[run_id])
        return known

    monkeypatch.setattr(store, "read_run", read_run)


def test_a_worker_that_comes_second_spends_no_attempt(store, plays, monkeypatch) -> None:  # noqa: F811
    """Another one began in the moment between the last look and this one's attempt."""
    meanwhile(store, monkeypatch, lambda run: run.update(attempt=1, state="running"))
    store.add("r")
    future = plays.play("r")
    eventually(
        lambda: store.runs["r"]["attempt"] == 1 and not plays._launches, "it left the run to the other"
    )
    assert (store.runs["r"]["attempt"], future.done()) == (1, False)
    store.runs["r"]["state"] = "completed"
    assert ended(future) == "completed"


def test_what_ended_elsewhere_meanwhile_goes_on_here(store, plays) -> None:  # noqa: F811
    """Another worker made an attempt and lost it while this one waited for its turn."""
    plays._slots = slots.Slots(1)
    with plays._slots.slot(plays._stop):
        store.add("r")
        future = plays.play("r")
        eventually(lambda: plays._slots._waiting, "it waits for its turn")
        store.runs["r"] |= {"attempt": 3, "state": "restarting"}
    assert ended(future) == "completed"
    assert store.runs["r"]["attempt"] == 4


def test_a_run_is_given_up_only_as_it_was_seen(store, plays) -> None:  # noqa: F811
    """Not while another worker has begun an attempt."""
    store.add("r")
    store.runs["r"]["attempt"] = 2
    with pytest.raises(RunOver):
        plays.give_up("r", "nothing of it can be played", after=1)
    assert store.state("r") == "pending"


def test_a_launcher_at_a_terminal_goes_on_after_what_it_saw(desk) -> None:
    """The attempt that the gateway named when the run was started, and then its own."""
    desk.gateway.seen_attempt = 7
    desk.python("import os; os.kill(os.getpid(), 9)", attempts=2, backoff_seconds=0.05)
    assert desk.gateway.after == [7, 3]
