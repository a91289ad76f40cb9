"""`ps`: memory as the kernel counts it, and a table that fits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from meshgate_deploy import memory, ps
from meshgate_deploy.memory import Families

MIB = 1_048_576
HELD = 48 * MIB
HOLDER = f"""
import sys
kept = bytearray({HELD})
kept[::4096] = b"x" * len(kept[::4096])
print("held", flush=True)
sys.stdin.readline()
"""
RUN = "01935e1b-7d4f-7e10-9c5e-0242ac120002"


@pytest.fixture
def holder():
    """A process whose child holds 48 MiB."""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLDER!r}])"
    command = [sys.executable, "-c", parent]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.stdin.close()


def test_memory_is_that_of_a_process_and_of_what_it_started(holder) -> None:
    """Each counted once, however often it is named."""
    found = Families().memory([holder.pid, holder.pid])
    assert found is not None
    assert HELD < found.bytes < 4 * HELD
    below = Families()._children[holder.pid]
    both = Families().memory([holder.pid, *below])
    assert both is not None
    assert abs(both.bytes - found.bytes) < MIB


def test_memory_says_how_it_was_measured(holder, monkeypatch) -> None:
    """Where the kernel keeps the fair share to itself, what is resident is told, of the whole family."""
    rollup = Path(f"/proc/{holder.pid}/smaps_rollup")
    try:
        rollup.read_text()
    except OSError:
        assert Families().row([holder.pid])["measure"] == "rss"
    else:
        assert Families().row([holder.pid])["measure"] == "pss"
    (below,) = Families()._children[holder.pid]
    fair = memory._pss

    def refused(process: Path) -> int:
        if process.name == str(below):
            raise PermissionError(process)
        return fair(process)

    monkeypatch.setattr(memory, "_pss", refused)
    told = Families().row([holder.pid])
    assert told["measure"] == "rss"
    assert told["bytes"] > HELD


def test_a_process_that_has_ended_takes_no_memory() -> None:
    """And is no failure."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    assert Families().memory([ended.pid]) is None
    assert Families().memory([]) is None


def row(name: str, **more: object) -> dict:
    return {
        "name": name, "spiffe_id": f"spiffe://my-company.example/ns/support/{name}", "state": "ready",
        "pid": None, "restarts": 0, "up_seconds": 3700.0, "detail": "",
    } | more  # fmt: skip


def app(name: str, kind: str, *crews: str) -> dict:
    return {"name": name, "spiffe_id": row(name)["spiffe_id"], "kind": kind, "crews": list(crews)}


def status(*, pid: int) -> dict:
    """A crew of two, its host, and a run at a terminal."""
    played = {
        "runs": [{"run_id": RUN, "attempt": 2}, {"run_id": "rests", "attempt": 1}],
        "programs": [{"run_id": RUN, "attempt": 2, "pid": pid}],
    }
    idle: dict = {"runs": [], "programs": []}
    failing: dict = {"state": "restarting", "restarts": 3}
    terminal = {"runs": [{"run_id": "by-hand", "attempt": None}], "programs": []}
    return {
        "ready": True, "mesh": "support", "trust_domain": "my-company.example", "pid": 1,
        "processes": [
            row("dapr-desk"),
            row("opa", spiffe_id=None, detail="policy 1"),
            row("desk-tools", app="desk-tools"),
            row("gateway", app="gateway"),
            row("desk", app="desk", pid=pid, detail=f"plays {RUN}, rests", **played),
            row("triage-analyst", app="triage-analyst", detail="ended", **idle, **failing),
            row("replay by-hand", app="desk", spiffe_id=row("desk")["spiffe_id"], detail="desk", **terminal),
        ],
        "fork_servers": [row("fork-server-programs", spiffe_id=None, detail="forks programs")],
        "apps": [
            app("gateway", "gateway"), app("desk-tools", "toolhost"), app("triage-analyst", "agent", "desk"),
            app("desk", "crew"),
        ],
    }  # fmt: skip


def test_apps_come_first_and_agents_below_their_crew() -> None:
    """With every SPIFFE ID whole and every run with its attempt, within 100 columns."""
    text = ps.text(ps.measured(status(pid=os.getpid())))
    table, others, said = text.split("\n\n")
    lines = table.splitlines()
    assert [line[: line.index("  ", 5)].rstrip() for line in lines[1:]] == [
        "gateway", "desk-tools", "desk", "  program", "  no program", "  replay", "    no program",
        "  triage-analyst",
    ]  # fmt: skip
    assert [line.split()[0] for line in others.splitlines()] == [
        "NAME", "dapr-desk", "opa", "fork-server-programs", "supervisor",
    ]  # fmt: skip
    assert max(map(len, lines)) <= 100, table
    assert "restarting (3x)" in lines[8]
    assert "attempt 2" in lines[4]
    assert lines[4].endswith(f"run {RUN}")
    assert "waits" in lines[7]
    assert lines[8].endswith("spiffe://my-company.example/ns/support/triage-analyst")
    assert said.splitlines() == ["opa: policy 1", "triage-analyst: ended"]


def test_what_an_app_does_is_told_as_data() -> None:
    """State, restarts, runs and memory, over all processes of the app."""
    pid = os.getpid()
    apps = {one["name"]: one for one in ps.measured(status(pid=pid))["apps"]}
    desk = apps["desk"]
    assert (desk["state"], desk["processes"]) == ("ready", ["desk", "replay by-hand"])
    assert [run["run_id"] for run in desk["runs"]] == [RUN, "rests", "by-hand"]
    assert desk["memory"]["bytes"] > MIB
    assert (apps["triage-analyst"]["state"], apps["triage-analyst"]["restarts"]) == ("restarting", 3)
    assert apps["gateway"]["memory"] is None


def test_a_narrow_mesh_shows_all_columns() -> None:
    """What is left out is left out for want of room only."""
    told = status(pid=os.getpid())
    for process in told["processes"]:
        process["spiffe_id"] = "spiffe://a/b"
    told["processes"] = [one for one in told["processes"] if not one.get("runs")]
    head = ps.text(ps.measured(told)).splitlines()[0].split()
    assert head == ["NAME", "STATE", "PID", "RESTARTS", "UP", "MEMORY", "SPIFFE_ID"]


KEPT = """
import subprocess, sys
keeper = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sys.argv[1]!r}], stdin=0)"
with subprocess.Popen([sys.executable, "-c", keeper]) as below:
    below.wait()
"""


def _below(pid: int) -> int:
    (found,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(found)


def test_what_is_forked_counts_for_its_app_and_not_for_the_fork_server() -> None:
    """With its keeper: so that the sum over all rows counts every process once."""
    command = [sys.executable, "-c", KEPT, HOLDER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        assert server.stdout.readline() == b"held\n"
        keeper = _below(server.pid)
        told = status(pid=os.getpid())
        told["fork_servers"][0]["pid"] = server.pid
        (played,) = [one for one in told["processes"] if one["name"] == "desk"]
        played["pid"], played["programs"][0]["pid"] = None, _below(keeper)
        shown = ps.measured(told)
        (served,) = shown["fork_servers"]
        (desk,) = [one for one in shown["processes"] if one["name"] == "desk"]
        assert desk["programs"][0]["keeper"] == keeper
        assert HELD < desk["programs"][0]["memory"]["bytes"] < desk["memory"]["bytes"]
        assert 0 < served["memory"]["bytes"] < HELD / 2
        table = ps.text(shown).split("\n\n")[1]
        assert f"{served['memory']['bytes'] / MIB:.0f} MB" in table.splitlines()[3]
        server.stdin.close()
