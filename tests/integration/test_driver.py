"""Runs that a worker plays: whatever dies under them, they go on at their step. A file counts effects."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration import fault_mesh
from integration.fault_mesh import MESHGATE, Mesh
from meshgate_agents.launcher.peers import children_of
from meshgate_deploy.control import ask_once

pytestmark = [pytest.mark.plane, pytest.mark.timeout(900)]

DESK = Path(__file__).parent / "driver_desk"
SECONDS = 300  # on a busy machine the import of CrewAI alone takes a minute
OVER = ("completed", "failed", "cancelled")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory) -> Iterator[Mesh]:
    """One mesh for all; each test uses a run and orders of its own."""
    made = Mesh.start(tmp_path_factory.mktemp("d"), DESK)
    yield made
    made.close()


def eventually(check: Callable[[], Any], what: str) -> Any:
    """Polls until `check` gives something true, and returns it."""
    return fault_mesh.eventually(check, what, seconds=SECONDS)


def meshgate(mesh: Mesh, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([MESHGATE, *arguments], cwd=mesh.root, capture_output=True, text=True, check=False)


def begin(mesh: Mesh, run_id: str, *wanted: str, app: str = "nightly") -> None:
    """Orders a run of the program and tells at once."""
    given = json.dumps({"wanted": list(wanted)})
    done = meshgate(mesh, "runs", "start", app, "--run-id", run_id, "--input", given)
    assert (done.returncode, done.stdout.strip()) == (0, run_id), done.stderr


def shown(mesh: Mesh, run_id: str) -> dict:
    return dict(mesh.ask("ShowRun", run_id=run_id, row_only=True)["run"])


def over(mesh: Mesh, run_id: str) -> dict:
    """The run once it has ended."""
    eventually(lambda: shown(mesh, run_id)["state"] in OVER, f"{run_id} has ended")
    return shown(mesh, run_id)


def once(mesh: Mesh, run_id: str, *orders: str) -> None:
    """Each order took effect once, under the key of a call of this run."""
    calls = {row["call_id"] for row in mesh.ask("ListCalls", run_id=run_id)["calls"]}
    keys = [mesh.effects(order) for order in orders]
    assert all(len(found) == 1 for found in keys), keys
    assert {key for (key,) in keys} == calls


def log(mesh: Mesh, app: str) -> str:
    return mesh.state.log(app).read_text()


def test_a_crew_is_built_and_kicked_off_with_its_input(mesh) -> None:
    """What the manifest names, by its factory; the result is kept with the run, and not in the log."""
    done = meshgate(mesh, "runs", "start", "clerk", "--run-id", "crew", "--input", '{"order": "A-1"}')
    assert done.returncode == 0, done.stderr
    assert over(mesh, "crew")["state"] == "completed", log(mesh, "clerk")
    once(mesh, "crew", "o-crew", "o-crew-paid")
    told = json.loads(meshgate(mesh, "runs", "show", "crew", "-o", "json").stdout)
    assert json.loads(told["result"]) == {"raw": "The desk says: o-crew-paid paid"}
    assert json.loads(told["input"]) == {"app": "clerk", "input": {"order": "A-1"}}
    printed = log(mesh, "clerk")
    assert "run crew, attempt 1" in printed
    assert "The desk says" not in printed  # a payload, which a purge must reach
    assert not [path for path in mesh.state.sockets.rglob("*") if "input" in path.name]


def test_a_run_of_a_worker_is_replayed(mesh) -> None:
    """Read-only, with the input it had: a program's, a crew's, and one with a command of its own."""
    begin(mesh, "again", "pay:o-again")
    assert over(mesh, "again")["state"] == "completed"
    before = mesh.ask("ShowRun", run_id="again")
    for run_id in ("again", "crew"):
        done = meshgate(mesh, "runs", "replay", run_id)
        assert (done.returncode, "equal, all" in done.stderr) == (0, True), done.stderr
    assert mesh.ask("ShowRun", run_id="again") == before
    once(mesh, "again", "o-again")


def test_a_program_is_forked_with_its_imports_done(mesh) -> None:
    """By the server of its interpreter, below a keeper; killed there, it is killed, and another goes on."""
    server = eventually(lambda: _forks(mesh), "it serves")
    with mesh.held("o-forked"):
        begin(mesh, "forked", "pay:o-forked")
        eventually(lambda: mesh.effects("o-forked"), "its call is under way")
        keepers = [pid for pid in children_of(server) if _name(pid) == "meshgate-keeper"]  # one is to spare
        (program,) = {one["pid"] for one in programs(mesh, "nightly") if one["run_id"] == "forked"}
        assert sum(program in children_of(keeper) for keeper in keepers) == 1
        assert mesh.ask("ShowRun", run_id="forked")["run"]["state"] == "running"
        os.kill(program, signal.SIGKILL)
        eventually(lambda: shown(mesh, "forked")["attempt"] != "1", "another attempt has begun")
    assert over(mesh, "forked")["state"] == "completed"
    assert "the program was ended by signal 9" in log(mesh, "nightly")
    once(mesh, "forked", "o-forked")


def _forks(mesh: Mesh) -> int:
    """The fork server of the mesh's programs; 0 until it serves, and ignores how keepers end."""
    rows = json.loads((mesh.state.run / "processes.json").read_text())
    (pid,) = [row["pid"] for row in rows if row["name"] == "fork-server-programs"]
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (ignored,) = [line.split()[1] for line in lines if line.startswith("SigIgn")]
    return int(pid) if int(ignored, 16) & 1 << signal.SIGCHLD - 1 else 0


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_a_start_is_idempotent_and_says_what_is_wrong(mesh) -> None:
    """Same id and input: the same run. Everything else is refused with its exit code, and recorded."""
    begin(mesh, "same", "lookup:o-same")
    begin(mesh, "same", "lookup:o-same")
    assert over(mesh, "same")["state"] == "completed"
    begin(mesh, "same", "lookup:o-same")
    once(mesh, "same", "o-same")
    start = ("runs", "start")
    other = meshgate(mesh, *start, "nightly", "--run-id", "same", "--input", "[]")
    assert (other.returncode, "with another app or input" in other.stderr) == (1, True)
    assert meshgate(mesh, *start, "nobody").returncode == 4
    assert meshgate(mesh, *start, "nightly", "--input", "{").returncode == 2
    assert meshgate(mesh, *start, "nightly", "--input", "@none").returncode == 4
    assert meshgate(mesh, *start, "nightly", "--run-id", "a/b").returncode == 2
    records = [r for r in mesh.records(kind="lifecycle") if r.get("run_id") == "same"]
    (started,) = [r for r in records if r["event"] == "run_started"]
    assert f"uid {os.getuid()}" in started["operator"]
    refusals = [r["reason"] for r in mesh.records(kind="refusal") if r["method"] == "StartRun"]
    assert {"run_changed_input", "app_unknown"} <= set(refusals)


def test_a_killed_worker(mesh) -> None:
    """SIGKILL in the second call: started again, handed the run again, answered from the journal."""
    with mesh.held("o-worker-2"):
        begin(mesh, "worker", "pay:o-worker-1", "pay:o-worker-2")
        eventually(lambda: mesh.effects("o-worker-2"), "its second call is under way")
        (row,) = [r for r in processes(mesh) if r["name"] == "nightly"]
        assert "worker" in row["detail"]
        mesh.kill("nightly")
        eventually(lambda: shown(mesh, "worker")["attempt"] != "1", "another attempt has begun")
    run = over(mesh, "worker")
    assert (run["state"], run["attempt"]) == ("completed", "2"), log(mesh, "nightly")
    once(mesh, "worker", "o-worker-1", "o-worker-2")


def test_what_a_killed_program_kept_in_its_memory_is_there_again(mesh) -> None:
    """A tool with `execute: agent`: run again by the next attempt, without the gateway, and so recorded."""
    wanted = ("keep:k-1", "pay:o-own", "keep:k-2")
    with mesh.held("o-own"):
        begin(mesh, "own", *wanted)
        eventually(lambda: mesh.effects("o-own"), "its second call is under way")
        mesh.kill("nightly")
        eventually(lambda: shown(mesh, "own")["attempt"] != "1", "another attempt has begun")
    assert over(mesh, "own")["state"] == "completed", log(mesh, "nightly")
    assert log(mesh, "nightly").count("KEPT k-1 k-2") == 1
    assert "GOT keep 2 kept" in log(mesh, "nightly")
    mine = [row for row in mesh.records() if row.get("run_id") == "own" and row.get("tool") == "nightly.keep"]
    told = [(row["kind"], row["executed_in"]) for row in mine]
    assert told == [("decision", "agent"), ("outcome", "agent")] * 2
    assert len(mesh.effects("o-own")) == 1


def test_a_run_that_kills_its_worker_is_given_up(mesh) -> None:
    """Each time at the same step, in whatever worker: bounded over all of them, the journal kept."""
    begin(mesh, "fells", "pay:o-fells", "fell:")
    asked = mesh.root / "fell"

    def killed_until_over() -> bool:
        if asked.exists():
            program = int(asked.read_text())
            asked.unlink()
            rows = ask_once(mesh.state.control, {"op": "status"})["processes"]
            workers = [
                row["pid"] for row in rows if program in [one["pid"] for one in row.get("programs", ())]
            ]
            for worker in workers:
                os.kill(worker, signal.SIGKILL)  # what an out-of-memory killer does
        return shown(mesh, "fells")["state"] in OVER

    eventually(killed_until_over, "fells has ended")
    run = shown(mesh, "fells")
    assert (run["state"], "given up after 5 attempts" in run["detail"]) == ("failed", True), run
    once(mesh, "fells", "o-fells")
    assert settled(mesh, "fells") == 1
    begin(mesh, "fells-not", "lookup:o-fells-not")
    assert over(mesh, "fells-not")["state"] == "completed"


def processes(mesh: Mesh) -> list[dict]:
    return list(json.loads(meshgate(mesh, "ps", "-o", "json").stdout)["processes"])


def test_a_killed_sidecar(mesh) -> None:
    """The run goes on meanwhile, its second delivery joins it; the worker takes new runs afterwards."""
    with mesh.held("o-sidecar-2"):
        begin(mesh, "sidecar", "pay:o-sidecar-1", "pay:o-sidecar-2")
        eventually(lambda: mesh.effects("o-sidecar-2"), "its second call is under way")
        before = mesh.pid("dapr-nightly")
        mesh.kill("dapr-nightly")
        eventually(lambda: back(mesh, "dapr-nightly", before), "the sidecar is back")
        begin(mesh, "after", "lookup:o-after")
        assert over(mesh, "after")["state"] == "completed"
    run = over(mesh, "sidecar")
    assert (run["state"], run["attempt"]) == ("completed", "1"), log(mesh, "nightly")
    once(mesh, "sidecar", "o-sidecar-1", "o-sidecar-2")


def programs(mesh: Mesh, name: str) -> list[dict]:
    """What a process of the mesh says to play."""
    return [program for row in processes(mesh) if row["name"] == name for program in row["programs"]]


def test_whose_program_a_process_is_can_be_told(mesh) -> None:
    """Of a worker's run and of one at a terminal: by the pid that the program itself has."""
    with mesh.held("o-told-1"), mesh.held("o-told-2"):
        begin(mesh, "told", "tell:told", "pay:o-told-1")
        command = [MESHGATE, "run", "--app", "nightly", "--run-id", "terminal", "--"]
        terminal = subprocess.Popen(
            [*command, "python", "nightly.py", "tell:terminal", "pay:o-told-2"], cwd=mesh.root
        )
        eventually(lambda: mesh.effects("o-told-1") and mesh.effects("o-told-2"), "both calls are under way")
        for run_id in ("told", "terminal"):
            (found,) = [one for one in programs(mesh, "nightly") if one["run_id"] == run_id]
            pid = int((mesh.root / f"{run_id}.pid").read_text())
            assert found.pop("memory")["bytes"] > 0
            found.pop("keeper")  # whose child it is, where it was forked
            assert found == {"run_id": run_id, "attempt": 1, "pid": pid}
    assert over(mesh, "told")["state"] == "completed"
    assert terminal.wait(SECONDS) == 0
    eventually(lambda: programs(mesh, "nightly") == [], "no program is left")
    assert not list(mesh.state.run.glob("*.programs"))


def test_replicas_hold_a_certificate_each(mesh) -> None:
    """Of one app, under one SPIFFE ID, with keys of their own."""
    told = json.loads(meshgate(mesh, "id", "show", "twice", "-o", "json").stdout)
    assert told["processes"] == 2
    assert {one["pid"] for one in told["certificates"]} == {mesh.pid("twice"), mesh.pid("twice.2")}
    assert len({one["serial"] for one in told["certificates"]}) == 2


def back(mesh: Mesh, name: str, pid: int) -> bool:
    (row,) = [row for row in processes(mesh) if row["name"] == name]
    return row["pid"] not in (None, pid) and row["state"] == "ready"


def test_a_stopped_worker_is_killed_and_its_run_goes_on(mesh) -> None:
    """SIGSTOP: it neither works nor ends, until the supervisor sees to it."""
    with mesh.held("o-stop-2"):
        begin(mesh, "stop", "pay:o-stop-1", "pay:o-stop-2")
        eventually(lambda: mesh.effects("o-stop-2"), "its second call is under way")
        with mesh.stopped("nightly") as pid:
            eventually(lambda: back(mesh, "nightly", pid), "it was killed and started again")
    run = over(mesh, "stop")
    assert (run["state"], run["attempt"]) == ("completed", "2"), log(mesh, "nightly")
    once(mesh, "stop", "o-stop-1", "o-stop-2")


def test_the_other_replica_takes_over(mesh) -> None:
    """The worker that plays a run dies with its sidecar and is not let up again: the other one goes on."""
    with mesh.held("o-replica-2"):
        begin(mesh, "replica", "pay:o-replica-1", "pay:o-replica-2", app="twice")
        eventually(lambda: mesh.effects("o-replica-2"), "its second call is under way")
        (lost,) = [row["name"] for row in processes(mesh) if "replica" in row["detail"]]
        (other,) = {"twice", "twice.2"} - {lost}
        mesh.kill(lost)
        mesh.kill(f"dapr-{lost}")

        def taken_over() -> bool:
            rows = {row["name"]: row for row in processes(mesh)}
            if rows[lost]["pid"] is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rows[lost]["pid"], signal.SIGKILL)
            return "replica" in rows[other]["detail"]

        eventually(taken_over, f"{other} plays it")
    run = over(mesh, "replica")
    assert (run["state"], int(run["attempt"]) > 1) == ("completed", True), log(mesh, other)
    once(mesh, "replica", "o-replica-1", "o-replica-2")


def test_a_detached_run_outlives_its_terminal(mesh) -> None:
    """`run -d` is the worker's: from its own folder and with its own command, until it ends by itself."""
    folder = mesh.root / "elsewhere"
    folder.mkdir()
    program = [sys.executable, str(mesh.root / "nightly.py"), "pay:o-detached"]
    with mesh.held("o-detached"):
        done = subprocess.run(
            [MESHGATE, "run", "-d", "--app", "nightly", "--run-id", "detached", "--", *program],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout.strip()) == (0, "detached"), done.stderr
        eventually(lambda: mesh.effects("o-detached"), "its call is under way")
        mesh.kill("nightly")
    assert over(mesh, "detached")["state"] == "completed", log(mesh, "nightly")
    once(mesh, "detached", "o-detached")


def test_a_paused_run_is_resumed_by_its_worker(mesh) -> None:
    """Held up between two steps, and no step is made twice."""
    with mesh.held("o-pause-1"):
        begin(mesh, "pause", "pay:o-pause-1", "pay:o-pause-2")
        eventually(lambda: mesh.effects("o-pause-1"), "its first call is under way")
        assert meshgate(mesh, "runs", "pause", "pause").returncode == 0
        heartbeats(mesh, "pause", 2)  # by then its worker knows
    eventually(lambda: shown(mesh, "pause")["state"] == "paused", "it is paused")
    assert mesh.effects("o-pause-2") == []
    assert meshgate(mesh, "runs", "resume", "pause").returncode == 0
    assert over(mesh, "pause")["state"] == "completed"
    once(mesh, "pause", "o-pause-1", "o-pause-2")


def heartbeats(mesh: Mesh, run_id: str, count: int) -> None:
    """Waits until a run's worker has spoken to the gateway that often."""
    for _ in range(count):
        before = shown(mesh, run_id)["updated"]
        eventually(lambda before=before: shown(mesh, run_id)["updated"] != before, "a heartbeat")


def test_a_cancelled_run_ends(mesh) -> None:
    """While it works: its program is ended, and the second call never begins."""
    with mesh.held("o-cancel-1"):
        begin(mesh, "cancel", "lookup:o-cancel-1", "pay:o-cancel-2")
        eventually(lambda: mesh.effects("o-cancel-1"), "its first call is under way")
        assert meshgate(mesh, "runs", "cancel", "cancel").returncode == 0
        assert over(mesh, "cancel")["state"] == "cancelled"
    assert mesh.effects("o-cancel-2") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["down", "supervisor killed"])
def test_everything_ends_in_the_middle(mesh, number) -> None:
    """`meshgate down`, or the death of what keeps it: after the next `up` the run goes on at its step."""
    name = f"all-{number:d}"
    with mesh.held(name):
        begin(mesh, name, f"pay:o-{name}-1", f"wait:{name}", f"pay:o-{name}-2")
        eventually(lambda: settled(mesh, name) == 1, "its first call is settled")
        mesh.again(number)
        eventually(lambda: shown(mesh, name)["attempt"] != "1", "another attempt has begun")
        assert mesh.effects(f"o-{name}-2") == []
    run = over(mesh, name)
    assert (run["state"], run["attempt"]) == ("completed", "2"), log(mesh, "nightly")
    once(mesh, name, f"o-{name}-1", f"o-{name}-2")
    assert mesh.ask("VerifyRecords")["verified"]


def settled(mesh: Mesh, run_id: str) -> int:
    return sum(row["state"] == "done" for row in mesh.ask("ListCalls", run_id=run_id)["calls"])
