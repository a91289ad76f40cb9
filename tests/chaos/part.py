"""One part: a mesh is brought up, a list of kills is made, and the verdict is taken from the files alone."""

import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.lanes import Lane, Plan, Say
from chaos.pairs import POSTGRESQL, SQLITE, Pair
from chaos.split_lane import SplitLane
from chaos.split_phases import SplitStage
from chaos.watch import Checker
from fakes.postgres_server import postgres_server
from integration.fault_mesh import MESHGATE, Mesh, eventually

HERE = Path(__file__).parent
DESK = HERE / "desk"
JUDGE_SECONDS = 60
ALL_RECORDS = "10000000"


class Tethered(Mesh):
    """A mesh that goes down when whoever drives it is gone, however that ended."""

    up = (sys.executable, "-m", "meshgate_deploy.demo_mesh", ".")


@dataclass
class Part:
    """What came of it.

    Attributes:
        verdict: as `verdict.py` printed it.
        kills: the checker's notes of the kills.
        missed: kills that did not reach their phase at the first try.
        verified: whether the gateway's own chain of records is whole.
        store: what the mesh kept its store in.
        interrupted: a Ctrl-C came; the runs under way ended, the other kills were not made.
    """

    verdict: dict[str, Any]
    kills: list[dict[str, Any]]
    missed: list[str]
    seconds: float
    verified: bool
    store: str
    interrupted: bool


@contextmanager
def staged(root: Path, desk: Path = DESK, *, store: str = SQLITE) -> Iterator[SplitStage]:
    """A mesh that is up, with its checker, and with a server of its own for its store if it needs one."""
    with ExitStack() as running:
        checker = running.enter_context(Checker(root))
        server = running.enter_context(postgres_server()) if store == POSTGRESQL else None
        url = server.url(server.database()) if server else ""
        env = f"CHECKER_URL={checker.url}\nMODEL_BASE_URL={checker.url}\n"
        mesh = Tethered.start(root, desk, env=env, store=url)
        running.callback(mesh.close)
        yield SplitStage(mesh, checker, server)


def play(
    root: Path, pairs: list[Pair], *, turn: int, say: Say, desk: Path = DESK, store: str = SQLITE
) -> Part:
    """Makes the kills and judges. A KeyboardInterrupt lets what is under way end; a second one does not."""
    begun, interrupted = time.monotonic(), False
    with staged(root, desk, store=store) as stage:
        working, plans = _lanes(stage, pairs, turn=turn, say=say, names=root.name[-6:].strip("-_").lower())
        for lane in working:
            lane.start()
        try:
            _join(working)
        except KeyboardInterrupt:
            interrupted = True
            say("no further kills; waiting for the runs under way to end (Ctrl-C again gives this part up)")
            for plan in plans:
                plan.clear()
            try:
                _join(working)
            except KeyboardInterrupt:
                stage.checker.stopped.set()
                _join(working)
                raise
        failures = [lane.failure for lane in working if lane.failure is not None]
        if failures:
            raise failures[0]
        verified = export(stage, root / "records.jsonl")
    verdict = judged(root / "effects.jsonl", root / "records.jsonl")
    lines = [json.loads(line) for line in (root / "effects.jsonl").read_text().splitlines()]
    kills = [line for line in lines if line["e"] == "kill"]
    missed = [why for plan in plans for why in plan.missed]
    return Part(verdict, kills, missed, time.monotonic() - begun, verified, store, interrupted)


def _lanes(
    stage: SplitStage, pairs: list[Pair], *, turn: int, say: Say, names: str
) -> tuple[list[Lane], list[Plan]]:
    """One lane for what is shared, two for what is an app's own, one for the crew that is split."""
    split = Plan(deque(pair for pair in pairs if pair.split), turn)
    shared = Plan(deque(pair for pair in pairs if pair.shared and not pair.split), turn)
    own = Plan(deque(pair for pair in pairs if not pair.shared and not pair.split), turn)
    made = [
        SplitLane(stage, split, say, names),
        Lane(stage, shared, "desk-mesh", "mesh", say, names),
        Lane(stage, own, "desk-one", "own", say, names),
        Lane(stage, own, "desk-two", "own", say, names),
    ]
    return made, [shared, own, split]


def _join(working: list[Any]) -> None:
    while any(lane.is_alive() for lane in working):
        time.sleep(0.1)


def export(stage: SplitStage, path: Path) -> bool:
    """The audit records as any auditor gets them; whether their chain verifies."""

    def query() -> bool:
        with path.open("w") as file:
            asked = [MESHGATE, "audit", "query", "--limit", ALL_RECORDS, "-o", "jsonl"]
            done = subprocess.run(
                asked, cwd=stage.mesh.root, stdout=file, stderr=subprocess.PIPE, check=False
            )
        return done.returncode == 0

    eventually(query, "the records are exported")
    return bool(stage.mesh.ask("VerifyRecords")["verified"])


def judged(log: Path, records: Path) -> dict[str, Any]:
    """The verdict of a process that sees two files and nothing else."""
    done = subprocess.run(
        [sys.executable, "-I", str(HERE / "verdict.py"), "--log", str(log), "--records", str(records)],
        capture_output=True, text=True, check=False, timeout=JUDGE_SECONDS,
    )  # fmt: skip
    if not done.stdout:
        raise RuntimeError(done.stderr)
    return dict(json.loads(done.stdout))


@contextmanager
def folder() -> Iterator[Path]:
    """A short path of its own: sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="mgc-", ignore_cleanup_errors=True) as made:
        yield Path(made)
