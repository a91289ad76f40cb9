"""A worker plays many runs in one process: each once, each with its own socket and its own processes."""

import dataclasses
import json
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from fakes.fake_worker import Store, a_worker
from meshgate_agents.launcher.announcing import Announcement
from meshgate_agents.launcher.peers import become_subreaper, start_time
from meshgate_agents.worker import activities

WAIT = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)"
SECONDS = 60


@pytest.fixture(scope="module", autouse=True)
def subreaper() -> None:
    """As the worker's own process is."""
    become_subreaper()


@pytest.fixture
def store() -> Store:
    """Empty."""
    return Store()


@pytest.fixture
def plays(store, tmp_path):
    """A worker's plays, with programs that need no CrewAI."""
    with a_worker(store, tmp_path) as made:
        yield made


def eventually(check, what: str):
    end = time.monotonic() + SECONDS
    while not (found := check()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return found


def ended(future: Future) -> str:
    return future.result(SECONDS)


def sockets(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "s").glob("a*/s"))


def test_a_run_is_played_to_its_end_and_only_its_state_is_told(store, plays) -> None:
    """What the app runs by itself; a run that has ended is not played again."""
    store.add("r")
    assert ended(plays.play("r")) == "completed"
    assert ended(plays.play("r")) == "completed"
    assert store.runs["r"]["attempt"] == 1


def test_the_input_is_a_file_that_the_environment_names(store, plays, tmp_path) -> None:
    """Not in the arguments; private; gone when the run has ended."""
    script = (
        "import json, os, sys; path = os.environ['MESHGATE_INPUT'];"
        "given = json.load(open(path)); assert len(sys.argv) == 2;"
        "assert os.stat(path).st_mode & 0o777 == 0o600; open(sys.argv[1], 'w').write(given['topic'])"
    )
    store.add("r", sys.executable, "-c", script, str(tmp_path / "out"), given={"topic": "mesh"})
    assert ended(plays.play("r")) == "completed"
    assert (tmp_path / "out").read_text() == "mesh"
    assert list((tmp_path / "s").iterdir()) == []


def test_a_second_delivery_joins_the_first(store, plays, tmp_path) -> None:
    """One attempt, one process, both get the state."""
    store.add("r", sys.executable, "-c", WAIT, str(tmp_path / "go"))
    first, second = plays.play("r"), plays.play("r")
    assert "r" in plays
    (tmp_path / "go").touch()
    assert (ended(first), ended(second)) == ("completed", "completed")
    assert store.runs["r"]["attempt"] == 1
    assert "r" not in plays


def test_runs_are_played_at_once(store, plays, tmp_path) -> None:
    """More of them than a thread pool of the SDK would take."""
    for number in range(12):
        store.add(f"r{number}", sys.executable, "-c", WAIT, str(tmp_path / "go"))
    futures = [plays.play(f"r{number}") for number in range(12)]
    eventually(lambda: len(sockets(tmp_path)) == 12, "all run at the same time")
    (tmp_path / "go").touch()
    assert {ended(future) for future in futures} == {"completed"}


def test_an_id_without_a_run_ends_cleanly(plays) -> None:
    """Stale, foreign, forged: nothing is started."""
    assert ended(plays.play("nothing")) == "unknown"


def test_a_crash_is_followed_by_another_attempt(store, plays, tmp_path) -> None:
    """Up to the bound, as under `meshgate run`."""
    store.add("r", sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    assert ended(plays.play("r")) == "failed"
    assert store.runs["r"]["attempt"] == 3
    assert "given up after 3 attempts" in store.runs["r"]["detail"]


def announced(folder: Path) -> dict[str, dict]:
    """What the worker's file says, by run."""
    return {row["run_id"]: row for row in json.loads((folder / "desk.ready").read_bytes())["runs"]}


def test_each_program_is_announced_while_it_runs(store, plays, tmp_path) -> None:
    """With its attempt, its pid and when it started; a run that rests between attempts has no program."""
    plays._settings = dataclasses.replace(plays._settings, backoff_seconds=SECONDS)
    script = "import os, sys; open(sys.argv[2], 'w').write(str(os.getpid()))\n" + WAIT
    for run_id, then in (("ends", ""), ("crashes", "\nos.kill(os.getpid(), 9)")):
        marks = (str(tmp_path / f"{run_id}.go"), str(tmp_path / f"{run_id}.pid"))
        store.add(run_id, sys.executable, "-c", script + then, *marks)
    ends, _crashes = plays.play("ends"), plays.play("crashes")
    for run_id in ("ends", "crashes"):
        pid = int(eventually(lambda at=tmp_path / f"{run_id}.pid": at.exists() and at.read_text(), "it runs"))
        row = {"run_id": run_id, "attempt": 1, "pid": pid, "started": start_time(pid)}
        assert announced(tmp_path)[run_id] == row
    (tmp_path / "crashes.go").touch()
    eventually(lambda: announced(tmp_path)["crashes"] == {"run_id": "crashes", "attempt": 1}, "it rests")
    (tmp_path / "ends.go").touch()
    assert ended(ends) == "completed"
    assert set(announced(tmp_path)) == {"crashes"}


def test_nothing_is_announced_after_the_end(tmp_path) -> None:
    """The file is how others know that runs are taken."""
    announcement = Announcement(tmp_path / "desk.ready")
    announcement.open()
    assert announced(tmp_path) == {}
    announcement.add("r")
    assert announced(tmp_path) == {"r": {"run_id": "r"}}
    announcement.close()
    announcement.add("late")
    announcement.open()
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_cannot_start_fails_its_run(store, plays) -> None:
    """And no other."""
    store.add("r", "no-such-command")
    assert ended(plays.play("r")) == "failed"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_one_run_takes_no_other_down(store, plays, tmp_path) -> None:
    """Its activity fails, so that the run is delivered again; the others go on."""
    store.broken.add("bad")
    store.add("good", sys.executable, "-c", WAIT, str(tmp_path / "go"))
    good = plays.play("good")
    with pytest.raises(KeyError):
        plays.play("bad").result(SECONDS)
    assert "bad" not in plays
    (tmp_path / "go").touch()
    assert ended(good) == "completed"


def test_a_gateway_that_is_away_is_waited_for(store, plays) -> None:
    """However long: the run is not over."""
    store.add("r")
    store.away = True
    future = plays.play("r")
    time.sleep(0.1)
    assert not future.done()
    store.away = False
    assert ended(future) == "completed"


def test_a_superseded_run_is_watched_and_taken_back_when_it_is_forsaken(store, plays, tmp_path) -> None:
    """The other worker's attempt is left alone while it lives."""
    store.add("r", sys.executable, "-c", WAIT, str(tmp_path / "go"))
    future = plays.play("r")
    eventually(lambda: sockets(tmp_path), "the first attempt is under way")
    assert store.start_attempt(run_id="r", instance="other", after=1).number == 2
    eventually(lambda: not sockets(tmp_path), "the superseded attempt's program is ended")
    assert (store.state("r"), future.done()) == ("running", False)
    with store.lock:
        store.runs["r"]["forsaken"] = True
    eventually(lambda: store.runs["r"]["attempt"] == 3, "taken back")
    (tmp_path / "go").touch()
    assert ended(future) == "completed"


def test_a_worker_that_is_told_to_end_leaves_its_runs_open(store, plays, tmp_path) -> None:
    """The program is gone, the run is not over, and Dapr is told nothing."""
    pid_file = tmp_path / "pid"
    script = f"import os; open({str(pid_file)!r}, 'w').write(str(os.getpid()))\n" + WAIT
    store.add("r", sys.executable, "-c", script, str(tmp_path / "never"))
    future = plays.play("r")
    pid = int(eventually(lambda: pid_file.exists() and pid_file.read_text(), "it runs"))
    plays.stop()
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the program was ended")
    eventually(lambda: not sockets(tmp_path), "its socket is gone")
    assert (store.state("r"), future.done()) == ("stopped", False)  # said, so that it counts for no failure
    assert not plays.play("r").done()


CONNECT = """
import json, socket, struct, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    data = json.dumps({"op": "alive"}).encode()
    try:
        s.sendall(struct.pack("!I", len(data)) + data)
        got = s.recv(100)
    except OSError:
        got = b""
open(sys.argv[2], "w").write("answered" if got else "refused")
"""


def test_a_run_answers_its_own_processes_only(store, plays, tmp_path) -> None:
    """A process of another run of the same app, as much a descendant of the worker, is refused."""
    own = "import os, subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[3], "
    own += "os.environ['MESHGATE_SOCKET'], sys.argv[2]])\n" + WAIT
    store.add("one", sys.executable, "-c", own, str(tmp_path / "go"), str(tmp_path / "own"), CONNECT)
    one = plays.play("one")
    eventually(lambda: (tmp_path / "own").exists() and (tmp_path / "own").read_text(), "it has asked")
    assert (tmp_path / "own").read_text() == "answered"
    (socket_of_one,) = sockets(tmp_path)
    store.add("two", sys.executable, "-c", CONNECT, str(socket_of_one), str(tmp_path / "other"))
    assert ended(plays.play("two")) == "completed"
    assert (tmp_path / "other").read_text() == "refused"
    (tmp_path / "go").touch()
    assert ended(one) == "completed"


def test_what_a_program_leaves_behind_is_killed_and_nothing_of_another_run(store, plays, tmp_path) -> None:
    """A daemon in a session of its own goes with its run; the other run's program lives."""
    daemon = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)\n"
        "    os._exit(0)\n"
        "while not os.path.exists(sys.argv[1]): time.sleep(0.02)\n"
    )
    store.add("stays", sys.executable, "-c", WAIT, str(tmp_path / "go"))
    store.add("leaves", sys.executable, "-c", daemon, str(tmp_path / "pid"))
    stays = plays.play("stays")
    assert ended(plays.play("leaves")) == "completed"
    pid = int(eventually((tmp_path / "pid").read_text, "it was there"))
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the daemon is gone")
    assert not stays.done()
    (tmp_path / "go").touch()
    assert ended(stays) == "completed"
    assert store.runs["stays"]["attempt"] == 1


@pytest.mark.parametrize(
    "given",
    [None, [], "r", {}, {"run_id": 1}, {"run_id": "../x"}, {"other": "r"}, {"run_id": "r", "call_id": "r"}],
)
def test_anything_but_one_id_is_ignored(given) -> None:
    """Nothing else may come from Dapr."""
    assert activities.parse(given) is None
    assert activities.parse({"run_id": "r-1"}) == activities.parse({"call_id": "r-1"}) == "r-1"
