"""One delegation of a split crew, against raw Dapr doing as much.

Subject: from the caller's program asking for `agent:clerk` until it has the answer, in a mesh that `meshgate
up` brought up. In between lie the policy, the synced transactions, Dapr's delivery, a program of its own for
the task, CrewAI's work in it with one model call (answered at once, on loopback), and the journal.

Baseline: a cross-app activity that starts a local workflow with one activity that does nothing, and waits for
it; on a plane of its own of the same kind, whose sidecars have plain workers (`servers.raw_plane`). Child
workflows across apps never return under access policies, so that is how it is done raw.

The caller rests between two tasks, as it does while a model works, so that a program of the agent stands
ready for each; `delegation.fresh` is without a rest: each task begins a program of its own.

What CrewAI does for the task is in the first and not in the second. So it is measured apart, as the same
crew run plainly in one process, and taken off: `delegation.added` is what is compared with raw Dapr.
`delegation.whole` hides nothing: a delegation against raw Dapr plus the plain task. Not pinned.
"""

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from measure import Goal, Row, Series
from meshgate_deploy import detached
from meshgate_deploy.control import ask_once
from meshgate_deploy.refund_desk.loopback import Answer, LoopbackServer, Request
from meshgate_deploy.state import open_state

from rows import Bench

BENCHMARKS = Path(__file__).resolve().parents[1]
CREW, AGENT = "desk", "clerk"
LONGEST_SECONDS = 180.0
POLL_SECONDS = 0.1
TASKS, RAW_CALLS, WARM = (8, 2), (20, 3), 2
ADDED = Goal(ratio_most=1.25, most=35.0)
FILES = {
    "meshgate.yaml": f"""\
apiVersion: meshgate/v1
mesh: delegation
trustDomain: delegation.example
crews:
  {CREW}:
    crew: bench_split:crew
    env: [OPENAI_API_KEY, OPENAI_BASE_URL, OPENAI_MODEL_NAME, BENCH_TASKS]
    agents:
      {AGENT}: {{role: Clerk}}
""",
    f"policies/{CREW}.rego": f'package mesh.agents.{CREW}\n\nallow contains "agent:{AGENT}"\n',
    f"policies/{AGENT}.rego": f"package mesh.agents.{AGENT}\n",
}
ANSWER = "Thought: I now can give a great answer\nFinal Answer: done"
QUIET = {
    "CREWAI_DISABLE_TELEMETRY": "true", "CREWAI_TRACING_ENABLED": "false", "OTEL_SDK_DISABLED": "true",
}  # fmt: skip

Told = Sequence[Mapping[str, Any]]


class Wrong(Exception):
    """Something did not end as it must: its speed means nothing."""


class Model:
    """Answers whatever it is asked at once; a task that is done and was to hold waits until it is let go."""

    def __init__(self) -> None:
        self.held, self.let_go = threading.Event(), threading.Event()
        self.let_go.set()

    def respond(self, request: Request) -> Answer:
        """An OpenAI chat completion."""
        if request.path.endswith("/hold"):
            self.held.set()
            self.let_go.wait(LONGEST_SECONDS)
            return 200, {}
        message = {"role": "assistant", "content": ANSWER}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return 200, {
            "id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice],
            "usage": usage,
        }  # fmt: skip


def measure(bench: Bench) -> Sequence[Row]:
    """What a delegation adds, and all of it."""
    bench.cores.free()
    with split_mesh(bench) as mesh, _raw(bench) as raw:
        bench.say("delegation: both planes are up")
        mesh.delegations()  # the first ones import and connect
        for _ in range(WARM):
            raw()
        taken = [_repeat(bench, mesh, raw) for _ in range(bench.repeats)]
    series = {name: Series(tuple(one[name] for one in taken)) for name in taken[0]}
    return _rows(series)


def _repeat(bench: Bench, mesh: "Mesh", raw: Callable[[], float]) -> Mapping[str, float]:
    """All parts once, one after the other: medians of milliseconds."""
    plain = [1000 * (one["ended"] - one["begun"]) for one in mesh.plainly()]
    bare = [raw() for _ in range(bench.count(*RAW_CALLS))]
    rested = mesh.delegations("rest")[1:]  # for the first of a run none may stand ready
    parts = {name: _median(1000 * part(*pair) for pair in rested) for name, part in PARTS.items()}
    pairs = mesh.delegations("done")
    fresh = {name: _median(1000 * part(*pair) for pair in pairs) for name, part in FRESH.items()}
    whole = parts["whole"]
    first, warm = plain[0], _median(plain[1:])
    return {
        **parts, **fresh, "first": first, "plain": warm, "raw": _median(bare), "added": whole - warm,
        "like": _median(bare) + warm,
    }  # fmt: skip


# Of what the caller's and the callee's program told of one delegation.
PARTS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], float]] = {
    "whole": lambda asked, _done: asked["ended"] - asked["begun"],
    "begin": lambda asked, done: done["begun"] - asked["begun"],
    "task": lambda _asked, done: done["ended"] - done["begun"],
    "end": lambda asked, done: asked["ended"] - done["ended"],
}


# The same where the program is a fresh one.
FRESH: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], float]] = {
    "fresh": lambda asked, _done: asked["ended"] - asked["begun"],
    "import": lambda asked, done: done["module"] - asked["begun"],
    "build": lambda _asked, done: done["begun"] - done["module"],
}


def _rows(series: Mapping[str, Series]) -> Sequence[Row]:
    ms = {name: f"{one.median:.1f}" for name, one in series.items()}
    parts = (
        f"until its program begins the task {ms['begin']}, the task {ms['task']}, from there to the answer "
        f"{ms['end']}"
    )
    return [
        Row(
            name="delegation.added", unit="ms", subject=series["added"], baseline=series["raw"], goal=ADDED,
            notes=f"a delegation ({ms['whole']}) less the same task plainly, warm ({ms['plain']}), against a "
            "cross-app activity that waits for a local workflow",
        ),
        Row(
            name="delegation.whole", unit="ms", subject=series["whole"], baseline=series["like"],
            notes=f"a delegation against raw Dapr ({ms['raw']}) plus the plain task ({ms['plain']}): {parts}",
        ),
        Row(
            name="delegation.fresh", unit="ms", subject=series["fresh"], baseline=series["like"],
            notes="the same for a program of its own, against the same: until that imports the crew's module "
            f"{ms['import']}, until it has built the crew {ms['build']}",
        ),
        Row(
            name="delegation.task", unit="ms", subject=series["task"], baseline=series["plain"],
            notes=f"CrewAI's own work in the callee's program, its model step journaled, against the "
            f"same plainly and warm; the first task of a plain process {ms['first']}",
        ),
    ]  # fmt: skip


class Mesh:
    """A mesh of a split crew that is up."""

    def __init__(self, project: Path, tasks: int, environ: Mapping[str, str], model: Model) -> None:
        self.project, self.model = project, model
        self._tasks, self.environ = tasks, environ
        self._runs = 0

    def delegations(self, what: str = "done") -> Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """One run of the crew: of each task what the caller's program told of it, and what the callee's."""
        before = {app: len(self._told(app)) for app in (CREW, AGENT)}
        self.finish(self.start(what))
        asked, done = (self._told(app)[before[app] :] for app in (CREW, AGENT))
        if not len(asked) == len(done) == self._tasks:
            raise Wrong(f"{len(asked)} tasks given, {len(done)} done, of {self._tasks}")
        return list(zip(asked, done, strict=True))

    def plainly(self) -> Told:
        """The same crew in one process, without meshgate."""
        done = subprocess.run(
            [sys.executable, "bench_split.py"], cwd=self.project, check=False, capture_output=True, text=True,
            env={**os.environ, **QUIET, **self.environ}, timeout=LONGEST_SECONDS,
        )  # fmt: skip
        told = _lines(done.stdout)
        if done.returncode or len(told) != self._tasks:
            raise Wrong(f"plainly: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return told

    def start(self, what: str) -> str:
        """Orders a run; its id."""
        self._runs += 1
        run_id = f"bench-{self._runs}"
        given = base64.b64encode(json.dumps({"what": what}).encode()).decode()
        order = {"app": CREW, "run_id": run_id, "input_json": given}
        self._admin("StartRun", order)
        return run_id

    def finish(self, run_id: str) -> None:
        """Waits for its end."""
        end = time.monotonic() + LONGEST_SECONDS
        while (state := self._state(run_id)) != "completed":
            if state in ("failed", "cancelled") or time.monotonic() > end:
                logs = [open_state(self.project).log(app) for app in (CREW, AGENT)]
                raise Wrong(f"{run_id} is {state}:\n" + "\n".join(log.read_text()[-2000:] for log in logs))
            time.sleep(POLL_SECONDS)

    def _state(self, run_id: str) -> str:
        return str(self._admin("ShowRun", {"run_id": run_id, "row_only": True})["run"]["state"])

    def _admin(self, method: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        order = {"op": "admin", "method": method, "request": dict(request)}
        return ask_once(open_state(self.project).control, order)

    def _told(self, app: str) -> Told:
        log = open_state(self.project).log(app)
        return _lines(log.read_text()) if log.exists() else []


def _lines(text: str) -> Told:
    return [json.loads(line) for line in text.splitlines() if line.startswith('{"bench"')]


@contextmanager
def split_mesh(bench: Bench) -> Iterator[Mesh]:
    """A split crew's mesh, in a project of its own, with its model."""
    project, model = bench.folder / "p", Model()
    tasks = bench.count(*TASKS)
    with _served(model) as url:
        environ = {
            "OPENAI_API_KEY": "k", "OPENAI_BASE_URL": f"{url}/v1", "OPENAI_MODEL_NAME": "gpt-4o-mini",
            "BENCH_TASKS": str(tasks),
        }  # fmt: skip
        texts = {**FILES, ".env": "".join(f"{name}={value}\n" for name, value in environ.items())}
        for name, text in texts.items():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            (project / name).write_text(text)
        program = BENCHMARKS / "programs" / "bench_split.py"
        (project / program.name).write_bytes(program.read_bytes())
        with ExitStack() as stack:
            stack.callback(lambda: detached.stop(open_state(project), lambda _: None))
            detached.start_detached(project, lambda line: print(f"  {line}", file=sys.stderr))
            yield Mesh(project, tasks, environ, model)


@contextmanager
def _served(model: Model) -> Iterator[str]:
    server = LoopbackServer(model.respond)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.url
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def _raw(bench: Bench) -> Iterator[Callable[[], float]]:
    """A call that gives the milliseconds of one raw delegation."""
    command = [sys.executable, "-m", "servers.raw_plane", "--project", str(bench.folder / "r")]
    with (bench.folder / "raw.log").open("w") as log, subprocess.Popen(
        command, cwd=BENCHMARKS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
    ) as popen:  # fmt: skip
        to, back = popen.stdin, popen.stdout
        if to is None or back is None or back.readline() != "ready\n":
            raise Wrong(f"the raw plane did not start: {(bench.folder / 'raw.log').read_text()[-2000:]}")

        def call() -> float:
            to.write("go\n")
            to.flush()
            return float(back.readline())

        yield call
        to.close()
        popen.wait(LONGEST_SECONDS)


def _median(values: Any) -> float:
    return Series(tuple(values)).median
