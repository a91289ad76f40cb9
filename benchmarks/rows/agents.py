"""What an agent's app takes: memory of each of its processes after a first task, the start of its launcher.

A split crew in a mesh that `meshgate up` brought up. The agent's program has done its task and waits, so that
all its processes are there: the program (`child`) and its keeper, the app's worker, which is the launcher of
all its runs, its sidecar, and the program that stands ready for the next task. The fork servers serve all
apps; how many MB each has is printed beside them, and as `spare` the keeper and the program that wait to be
asked for next.

`private` is what a process shares with nobody (USS): the sum is what one more agent takes. PSS shares out
what is shared, so it falls with every further process that is forked from the same. Not pinned.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import Goal, Row, Series
from meshgate_deploy.control import ask_once
from meshgate_deploy.state import open_state

from rows import Bench
from rows.delegation import AGENT, LONGEST_SECONDS, QUIET, Mesh, Wrong, split_mesh

PRIVATE = Goal(most=70.0)
MEGABYTE = 1000.0  # of kB, as in the other rows
POLL_SECONDS = 0.005
CHILD, KEEPER, LAUNCHER, SIDECAR, STANDBY = "child", "keeper", "launcher", "sidecar", "stands ready"
APP = (CHILD, KEEPER, LAUNCHER, SIDECAR, STANDBY)
BUILT_SECONDS = 1.0  # from when it is announced until its crew is built
SPARE, PROGRAMS = "spare", "fork-server-programs"

Sizes = Mapping[str, tuple[float, float]]  # by process: private MB, PSS in MB


def measure(bench: Bench) -> Sequence[Row]:
    """Memory with each process printed apart, and the launcher from its loss until it serves again."""
    bench.cores.free()
    with split_mesh(bench) as mesh:
        bench.say("agents: the mesh is up")
        mesh.delegations()
        taken = [(_plain(mesh), _held(mesh)) for _ in range(bench.repeats)]
        again = [(_executed(mesh), _launcher_again(mesh)) for _ in range(bench.repeats)]
    plain, ours = ([pair[which] for pair in taken] for which in (0, 1))
    told = _told(ours)
    return [
        Row(
            name="agents.private", unit="MB", subject=_sums(ours, (CHILD, LAUNCHER), 0),
            baseline=_sums(plain, (CHILD,), 0), goal=PRIVATE,
            notes=f"child and launcher after a first task, against a plain program; {told(0)}",
        ),
        Row(
            name="agents.pss", unit="MB", subject=_sums(ours, APP, 1), baseline=_sums(plain, (CHILD,), 1),
            notes=f"all processes of the app, against a plain program; {told(1)}",
        ),
        Row(
            name="agents.launcher_ready", unit="ms", subject=Series(tuple(pair[1] for pair in again)),
            baseline=Series(tuple(pair[0] for pair in again)),
            notes="a forked launcher from the SIGKILL of the last one until it takes runs, against what its "
            "imports take alone; the child's: `forks.ready`",
        ),
    ]  # fmt: skip


def _sums(taken: Sequence[Sizes], names: Sequence[str], which: int) -> Series:
    return Series(tuple(sum(sizes[name][which] for name in names) for sizes in taken))


def _told(taken: Sequence[Sizes]) -> Any:
    """The middle of each process's size, as text."""

    def told(which: int) -> str:
        middles = {name: Series(tuple(sizes[name][which] for sizes in taken)).median for name in taken[0]}
        app = sum(middles[name] for name in APP)
        return ", ".join(f"{name} {size:.1f}" for name, size in {**middles, "the app together": app}.items())

    return told


def _held(mesh: Mesh) -> Sizes:
    """Of the agent's app, while its program waits with its first task done; and of the fork servers."""
    mesh.model.held.clear()
    mesh.model.let_go.clear()
    run_id = mesh.start("hold")
    try:
        if not mesh.model.held.wait(LONGEST_SECONDS):
            raise Wrong("the agent's program did not come to its end")
        status, worker, standing = _standing(mesh)
        (sidecar,) = [row for row in status["processes"] if row["name"] == f"dapr-{AGENT}"]
        (program,) = [one for one in worker["programs"] if one["run_id"] is not None]
        pids = {
            CHILD: program["pid"], KEEPER: _parent(program["pid"]), LAUNCHER: worker["pid"],
            SIDECAR: sidecar["pid"], STANDBY: standing,
            **{row["name"]: row["pid"] for row in status["fork_servers"]},
        }  # fmt: skip
        waiting = []
        for pid in _spare(status):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # one that was just replaced
                waiting.append(_size(pid))
        spare = (sum(size[0] for size in waiting), sum(size[1] for size in waiting))
        return {**{name: _size(pid) for name, pid in pids.items() if pid}, SPARE: spare}
    finally:
        mesh.model.let_go.set()
        mesh.finish(run_id)


def _standing(mesh: Mesh) -> tuple[Mapping[str, Any], Mapping[str, Any], int]:
    """The status once a program stands ready, the agent's row of it, and that program."""
    end = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < end:
        status = _status(mesh)
        (worker,) = [row for row in status["processes"] if row["name"] == AGENT]
        for one in worker["programs"]:
            if one["run_id"] is None:
                time.sleep(BUILT_SECONDS)
                return status, worker, int(one["pid"])
        time.sleep(POLL_SECONDS)
    raise Wrong("no program stands ready")


def _spare(status: Mapping[str, Any]) -> list[int]:
    """The processes below the fork server of programs that keep no program of an app, and are none."""
    taken = {_parent(one["pid"]) for row in status["processes"] for one in row.get("programs", ())}
    (server,) = [row["pid"] for row in status["fork_servers"] if row["name"] == PROGRAMS]
    keepers = [pid for pid in _children(server) if pid not in taken]
    return [*keepers, *(pid for keeper in keepers for pid in _children(keeper))]


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _plain(mesh: Mesh) -> Sizes:
    """Of the same program, run plainly, when its first task is done."""
    mesh.model.held.clear()
    mesh.model.let_go.clear()
    with _running(mesh) as popen:
        if not mesh.model.held.wait(LONGEST_SECONDS):
            raise Wrong("the plain program did not come to its first task's end")
        found = {CHILD: _size(popen.pid)}
        mesh.model.let_go.set()
    return found


@contextmanager
def _running(mesh: Mesh) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(
        [sys.executable, "bench_split.py", "hold"], cwd=mesh.project, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env={**os.environ, **QUIET, **mesh.environ},
    ) as popen:  # fmt: skip
        try:
            yield popen
            popen.wait(LONGEST_SECONDS)
        finally:
            popen.kill()


def _launcher_again(mesh: Mesh) -> float:
    """Milliseconds from SIGKILL until another one takes runs: the supervisor's watch is in it."""
    before = _worker(mesh)["pid"]
    begun = time.monotonic()
    os.kill(before, signal.SIGKILL)
    while (row := _worker(mesh))["state"] != "ready" or row["pid"] in (None, before):
        if time.monotonic() > begun + LONGEST_SECONDS:
            raise Wrong(f"the launcher did not come back: {row}")
        time.sleep(POLL_SECONDS)
    return (time.monotonic() - begun) * 1000


def _executed(mesh: Mesh) -> float:
    """Milliseconds that an interpreter takes to import what a launcher is."""
    begun = time.monotonic()
    command = [sys.executable, "-I", "-c", "import meshgate_agents.worker.__main__"]
    subprocess.run(command, cwd=mesh.project, check=True)
    return (time.monotonic() - begun) * 1000


def _worker(mesh: Mesh) -> Mapping[str, Any]:
    (row,) = [row for row in _status(mesh)["processes"] if row["name"] == AGENT]
    return dict(row)


def _status(mesh: Mesh) -> Mapping[str, Any]:
    return ask_once(open_state(mesh.project).control, {"op": "status"})


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _size(pid: int) -> tuple[float, float]:
    rows = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    sizes = {row[0]: int(row[1]) / MEGABYTE for row in rows}
    return sizes["Private_Clean:"] + sizes["Private_Dirty:"], sizes["Pss:"]
