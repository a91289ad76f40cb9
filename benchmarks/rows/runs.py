"""Durable runs on a real mesh: the same CrewAI program with meshgate and without it.

`meshgate up` brings up the whole mesh. `programs/bench_crew.py` is an ordinary program that times its own
steps; it is run plainly, and under `meshgate run`. The model answers inside the program at once, so what
is left is CrewAI's own work and what is added to it: a journaled reply per model call, a durable brokered
call per tool call. Nothing is pinned: the mesh needs every core there is.
"""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ca import Authority
from measure import Goal, Row, Series
from meshgate_deploy import detached
from meshgate_deploy.control import ask_once
from meshgate_deploy.state import open_state
from meshgate_wire import broker_pb2 as pb
from meshgate_wire import broker_pb2_grpc as services

from rows import Bench

PROGRAMS = Path(__file__).resolve().parents[1] / "programs"
MESH, DOMAIN, APP, HOST = "runs", "runs.example", "clerk", "tools"
LONGEST_SECONDS = 180
RIVAL_MS = 520.0  # published measurement of Diagrid's runner, same shape of run, two cores
PLENTY, PLENTY_QUICK = 1000, 20
MANIFEST = f"""\
apiVersion: meshgate/v1
mesh: {MESH}
trustDomain: {DOMAIN}
programs:
  {APP}: {{run: [python, bench_crew.py, idle]}}
toolhosts:
  {HOST}:
    tools: [bench_tools:lookup, bench_tools:blob]
tools:
  {HOST}.lookup: {{effect: read}}
  {HOST}.blob: {{effect: read}}
"""
POLICY = f'package mesh.agents.{APP}\n\nallow contains "{HOST}.lookup"\n\nallow contains "{HOST}.blob"\n'
QUIET = {
    "CREWAI_DISABLE_TELEMETRY": "true", "CREWAI_TRACING_ENABLED": "false", "OTEL_SDK_DISABLED": "true",
}  # fmt: skip


Timings = Mapping[str, Sequence[float]]


class Wrong(Exception):
    """A program did not end as it must: its speed means nothing."""


def measure(bench: Bench) -> Sequence[Row]:
    """All rows of durable runs, on one mesh."""
    bench.cores.free()
    flat = [20] if bench.quick else [50, 200]
    crew, model = f"crew:{bench.count(10, 2)}", f"model:{bench.count(300, 20)}"
    small, large = f"blob:1000:{bench.count(10, 3)}", f"blob:1000000:{bench.count(10, 3)}"
    asked = [crew, model, *[f"turns:{count}" for count in flat], small, large]
    with _mesh(bench) as project:
        bench.say("runs: the mesh is up")
        plain, ours, replayed = [], [], []
        for _ in range(_repeats(bench)):
            plain.append(_timings(_argv(*asked), project))
            ours.append(_timings(_meshgate(*_argv(*asked)), project))
            replayed.append(_timings(_meshgate(*_argv(model, "cut")), project))
        return [
            Row(
                name="runs.crew", unit="ms", subject=_medians(ours, crew), baseline=_medians(plain, crew),
                goal=Goal(ratio_most=3.0, most=RIVAL_MS / 3),
                notes=f"a kickoff with three tool calls; {RIVAL_MS:g} ms are known of another runner",
            ),
            Row(
                name="runs.model_step", unit="ms", subject=_medians(ours, model),
                baseline=_medians(plain, model), goal=Goal(added_most=1.5),
                notes="one model call, its reply recorded and synced before the program sees it",
            ),
            *[_flat(plain, ours, count) for count in flat],
            Row(
                name="runs.replayed_step", unit="ms", subject=_medians(replayed, model),
                baseline=_medians(ours, model), notes="a model step of a second attempt against a live one",
            ),
            Row(
                name="runs.large_result", unit="ms", subject=_medians(ours, large),
                baseline=_medians(ours, small), notes="a tool result of 1 MB against one of 1 kB",
            ),
            _memory(bench, project),
            *_plenty(bench, project),
        ]  # fmt: skip


def _repeats(bench: Bench) -> int:
    """Each starts CrewAI five times: the quick way does it once."""
    return 1 if bench.quick else bench.repeats


def _medians(taken: Sequence[Timings], what: str) -> Series:
    return Series(tuple(_median(one[what]) for one in taken))


def _flat(plain: Sequence[Timings], ours: Sequence[Timings], count: int) -> Row:
    """The last quarter of a long run against its second; CrewAI's own growth is taken off both."""
    what, quarter = f"turns:{count}", count // 4

    def added(part: slice) -> Series:
        pairs = zip(ours, plain, strict=True)
        return Series(tuple(max(_median(o[what][part]) - _median(p[what][part]), 0.01) for o, p in pairs))

    return Row(
        name=f"runs.flat.{count}", unit="ms", subject=added(slice(-quarter, None)),
        baseline=added(slice(quarter, 2 * quarter)), goal=Goal(ratio_most=1.25),
        notes=f"added to a turn (model step and tool call): last quarter of {count} against the second",
    )  # fmt: skip


def _memory(bench: Bench, project: Path) -> Row:
    """Proportional memory of all an agent app's processes, against the plain program's."""
    ours, plain, parts = [], [], {}
    for _ in range(min(_repeats(bench), 3)):
        with _idle(_argv("crew:1", "idle"), project) as pid:
            plain.append(_family(pid))
        command = _meshgate(*_argv("crew:1", "idle"))
        with _idle(command, project):
            pids = _app_pids(project)
            parts = {name: _family(pid) for name, pid in pids.items()}
            ours.append(sum(parts.values()))
    told = ", ".join(f"{name} {size:.0f}" for name, size in parts.items())
    return Row(
        name="runs.memory", unit="MB", subject=Series(tuple(ours)), baseline=Series(tuple(plain)),
        notes=f"PSS of an agent app at rest after a first kickoff ({told}); plain: the program alone",
    )  # fmt: skip


def _plenty(bench: Bench, project: Path) -> Sequence[Row]:
    """`runs list` and the begin of an attempt, with many runs in the store and with few."""
    state = open_state(project)
    configuration = json.loads((state.generated / "gateway.json").read_text())
    authority = Authority(state.spiffe_ca, mesh=MESH, domain=DOMAIN)
    with authority.channel(APP, str(configuration["listen"])) as channel:
        stub = services.RunsStub(channel)

        def started() -> str:
            run_id = f"bench-{uuid.uuid4().hex}"
            stub.StartRun(pb.StartRunRequest(run_id=run_id, input_json=b"{}"), timeout=10)
            return run_id

        def finished(run_id: str, attempt: int) -> None:
            stub.FinishRun(pb.FinishRunRequest(run_id=run_id, attempt=attempt, state="completed"), timeout=10)

        def resumed(run_id: str) -> int:
            begun = stub.StartAttempt(
                pb.StartAttemptRequest(run_id=run_id, launcher_instance=uuid.uuid4().hex), timeout=10
            )
            list(stub.ReadJournal(pb.ReadJournalRequest(run_id=run_id, attempt=begun.attempt), timeout=10))
            return int(begun.attempt)

        def listed() -> None:
            ask_once(state.control, {"op": "admin", "method": "ListRuns", "request": {"limit": 20}})

        run_id = started()
        few = {"list": _times(bench, listed), "resume": _times(bench, lambda: resumed(run_id))}
        for _ in range(bench.count(PLENTY, PLENTY_QUICK)):
            other = started()
            finished(other, resumed(other))
        many = {"list": _times(bench, listed), "resume": _times(bench, lambda: resumed(run_id))}
        finished(run_id, resumed(run_id))
    texts = {"list": "`runs list` of the newest 20", "resume": "a new attempt and its journal"}
    return [
        Row(
            name=f"runs.plenty.{name}", unit="ms", subject=many[name], baseline=few[name],
            goal=Goal(ratio_most=2.0),
            notes=f"{text}, with {bench.count(PLENTY, PLENTY_QUICK)} runs in the store, against some dozens",
        )
        for name, text in texts.items()
    ]  # fmt: skip


def _times(bench: Bench, work: Callable[[], object]) -> Series:
    taken = []
    for _ in range(bench.repeats):
        several = []
        for _ in range(bench.count(20, 3)):
            begun = time.perf_counter()
            work()
            several.append((time.perf_counter() - begun) * 1000)
        taken.append(_median(several))
    return Series(tuple(taken))


def _median(values: Sequence[float]) -> float:
    return Series(tuple(values)).median


def _argv(*arguments: object) -> list[str]:
    return [sys.executable, "bench_crew.py", *map(str, arguments)]


def _meshgate(*command: str) -> list[str]:
    return [
        str(Path(sys.executable).with_name("meshgate")), "run", "--app", APP, "--", *command,
    ]  # fmt: skip


def _timings(command: Sequence[str], project: Path) -> Timings:
    done = subprocess.run(
        command, cwd=project, env={**os.environ, **QUIET}, check=False, capture_output=True, text=True,
        timeout=LONGEST_SECONDS,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(lines) != 1:
        raise Wrong(f"{command}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return dict(json.loads(lines[0]))


@contextmanager
def _idle(command: Sequence[str], project: Path) -> Iterator[int]:
    """A program that is ready and at rest."""
    with subprocess.Popen(
        command, cwd=project, env={**os.environ, **QUIET}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        if process.stdin is None or process.stdout is None:
            raise Wrong("no pipes")
        while (line := process.stdout.readline()) != "ready\n":
            if not line:
                raise Wrong(f"{command} ended early")
        yield process.pid
        process.stdin.close()
        process.wait(LONGEST_SECONDS)


def _app_pids(project: Path) -> dict[str, int]:
    """The agent app's processes: all that `ps` shows under its identity, and its sidecar."""
    rows = ask_once(open_state(project).control, {"op": "status"})["processes"]
    sidecars = [row["pid"] for row in rows if row["name"] == f"dapr-{APP}"]
    identity = f"spiffe://{DOMAIN}/ns/{MESH}/{APP}"
    launchers = [row["pid"] for row in rows if row["spiffe_id"] == identity and row["pid"]]
    named = {f"launcher {n}": pid for n, pid in enumerate(launchers)}
    return {**{f"sidecar {n}": pid for n, pid in enumerate(sidecars)}, **named}


def _family(pid: int) -> float:
    """PSS in MB of a process and everything below it."""
    total = 0.0
    for one in _tree(pid):
        for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) / 1000
    return total


def _tree(pid: int) -> list[int]:
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *[one for child in below for one in _tree(int(child))]]


@contextmanager
def _mesh(bench: Bench) -> Iterator[Path]:
    """A mesh that is up, in a project of its own."""
    project = bench.folder / "p"
    (project / "policies").mkdir(parents=True)
    (project / "meshgate.yaml").write_text(MANIFEST)
    (project / "policies" / f"{APP}.rego").write_text(POLICY)
    for source in PROGRAMS.glob("*.py"):
        (project / source.name).write_bytes(source.read_bytes())
    with ExitStack() as stack:
        detached.start_detached(project, lambda line: print(f"  {line}", file=sys.stderr))
        stack.callback(lambda: detached.stop(open_state(project), lambda _: None))
        yield project
