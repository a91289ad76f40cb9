"""`meshgate demo`: two agents, each an app of its own, work; an injected ticket misleads them, policy holds.

Stages the example with data drawn from a seed, brings a whole mesh up for it, runs its unchanged
`main.py`, and holds the payment service's book against what the seed says must be in it.
"""

import base64
import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from meshgate_audit import chain

from meshgate_deploy import demo_report
from meshgate_deploy.control import ask, ask_once, reachable
from meshgate_deploy.demo_kill import Accident, accident
from meshgate_deploy.demo_report import Report
from meshgate_deploy.errors import DependencyUnavailable, MeshError, UsageError
from meshgate_deploy.refund_desk import payments, stage
from meshgate_deploy.refund_desk import seed as seeds
from meshgate_deploy.refund_desk.stage import Stage
from meshgate_deploy.state import State, open_state

UP_SECONDS = 1800  # the first start builds the binaries
DOWN_SECONDS = 60
RUN_ID = "refund-desk"
POLL_SECONDS = 0.05
PAGE = 500
MAX_SEED = 2**32

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Demo:
    """A demo that ran: what it found, and where it lies."""

    report: Report
    stage: Stage
    answer: str

    @property
    def book(self) -> list[seeds.Payment]:
        """The payment service's book."""
        return payments.read_book(self.stage.book)


def demo(*, seed: int | None = None, without: Collection[str] = (), say: Say) -> Demo:
    """Runs the whole story once.

    Args:
        seed: what to draw; a new one when None.
        without: tools whose grants are taken out of the policy first.
        say: gets each line of progress.

    Raises:
        UsageError: `without` names a tool that the policy does not grant.
        DependencyUnavailable: a part did not come up.
    """
    begun = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="meshgate-demo-"))
    number = secrets.randbelow(MAX_SEED) if seed is None else seed
    say(f"seed {number}: the project is copied to {folder / 'project'}")
    with _orderly_end(), _staged(folder, number) as staged:
        for tool in without:
            remove_grant(staged.project / "policies", tool)
        say(
            "the model is "
            + ("yours: OPENAI_BASE_URL" if stage.users_model() else "a loopback one that obeys")
        )
        with _mesh(staged, say) as state:
            apps = ask_once(state.control, {"op": "status"})["apps"]
            say("running: python main.py")
            with _accident(state, staged, say) as happened:
                status, answer = _run(state, staged, say)
            records, problem = _records(state)
        report = _report(staged, records, problem, status, apps, without, happened, time.monotonic() - begun)
    if status != 0:
        say(answer)
    return Demo(report, staged, answer)


def remove_grant(policies: Path, tool: str) -> None:
    """Takes the rules that grant a tool out of a folder of policies.

    Raises:
        UsageError: there is none.
    """
    grant = re.compile(rf'^allow contains "{re.escape(tool)}"', re.MULTILINE)
    found = False
    for policy in policies.glob("*.rego"):
        blocks = policy.read_text().split("\n\n")
        kept = [block for block in blocks if not grant.search(block)]
        if len(kept) < len(blocks):
            found = True
            policy.write_text("\n\n".join(kept).rstrip() + "\n")
    if not found:
        raise UsageError(
            f"the demo's policies grant no {tool!r}", next_step="one of: " + ", ".join(seeds.TOOLS)
        )


@contextlib.contextmanager
def _staged(folder: Path, number: int) -> Iterator[Stage]:
    try:
        with stage.staged(folder, seed=number) as staged:
            yield staged
    except stage.ServiceFailed as error:
        raise DependencyUnavailable("a service of the demo did not come up", why=str(error)) from error


@contextlib.contextmanager
def _orderly_end() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C does, so that everything started is ended."""

    def unwind(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _mesh(staged: Stage, say: Say) -> Iterator[State]:
    """Brings the mesh up and takes it down again."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "MODEL"))}
    # The agents' `python` is the first on the mesh's PATH; ours has CrewAI.
    kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "meshgate_deploy.demo_mesh", str(staged.project)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**kept, **staged.env},
        start_new_session=True,  # a terminal's Ctrl-C is ours; the mesh ends with our end of its input
    )
    last: list[str] = []
    reader = threading.Thread(target=_follow, args=(process, say, last), daemon=True)
    reader.start()
    try:
        yield _ready(process, staged.project, reader, last)
    finally:
        if process.stdin:
            process.stdin.close()
        try:
            process.wait(timeout=DOWN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(timeout=POLL_SECONDS)


def _follow(process: "subprocess.Popen[bytes]", say: Say, last: list[str]) -> None:
    for line in process.stderr or ():
        text = line.decode(errors="replace").rstrip()
        last[:] = [*last[-20:], text]
        say(text)


def _ready(
    process: "subprocess.Popen[bytes]", project: Path, reader: threading.Thread, last: list[str]
) -> State:
    give_up_at = time.monotonic() + UP_SECONDS
    while process.poll() is None and time.monotonic() < give_up_at:
        state = open_state(project)
        if reachable(state.control):
            with contextlib.suppress(MeshError, OSError):
                if ask_once(state.control, {"op": "status"})["ready"]:
                    return state
        time.sleep(POLL_SECONDS)
    reader.join(timeout=1)
    raise DependencyUnavailable(
        "the demo's mesh did not come up",
        why="\n".join(last),
        next_step=f"the logs in {project}/.meshgate/logs",
    )


@contextlib.contextmanager
def _accident(state: State, staged: Stage, say: Say) -> Iterator[Accident]:
    """An agent's process is killed once; not with a user's own model, whose sixth call nobody knows."""
    tickets = sorted(staged.project / ticket.path for ticket in staged.story.tickets)
    if stage.users_model():
        yield Accident()
        return
    with accident(state, RUN_ID, tickets, say) as happened:
        yield happened


def _run(state: State, staged: Stage, say: Say) -> tuple[int, str]:
    """Runs the project's entry point as the crew's app; gives its status and what it printed."""
    log = staged.project / ".meshgate" / "logs" / "demo-run.log"
    answer = log.with_suffix(".out")
    request = {
        "op": "run",
        "app": "desk",
        "run_id": RUN_ID,
        "command": [sys.executable, "main.py"],
        "cwd": str(staged.project),
        "asker": {},
    }
    with open(os.devnull, "rb") as nothing, answer.open("wb") as out, log.open("wb") as err:  # noqa: PTH123
        for message in ask(
            state.control, request, descriptors=(nothing.fileno(), out.fileno(), err.fileno())
        ):
            if "exit" in message:
                _tell(log.read_text(errors="replace"), say)
                text = answer.read_text(errors="replace")
                status = int(message["exit"])
                return status, text if status == 0 else text + log.read_text(errors="replace")[-4000:]
    raise DependencyUnavailable("the demo's mesh ended during the run", next_step=f"the logs in {log.parent}")


def _tell(log: str, say: Say) -> None:
    """What the launcher said of the run's attempts."""
    for line in log.splitlines():
        if line.startswith("meshgate: ") and any(word in line for word in ("attempt", "signal")):
            say(line.removeprefix("meshgate: "))


def _records(state: State) -> tuple[list[dict[str, Any]], str]:
    """Every record, and what is wrong with them: checked here and by the gateway."""
    lines: list[bytes] = []
    after, full = 0, True
    while full:
        query = {"after_seq": after, "limit": PAGE}
        page = ask_once(state.control, {"op": "admin", "method": "QueryRecords", "request": query})
        found = [base64.b64decode(encoded) for encoded in page["records_json"]]
        lines += found
        after, full = int(page["last_seq"]), len(found) == PAGE
    theirs = ask_once(state.control, {"op": "admin", "method": "VerifyRecords"})
    problem = chain.verify(lines).problem or str(theirs["problem"])
    if not problem and int(theirs["records"]) < len(lines):
        problem = f"the gateway verified {theirs['records']} records of {len(lines)}"
    return [json.loads(line) for line in lines], problem


def _report(  # noqa: PLR0913, PLR0917 (what a run of the story gave)
    staged: Stage,
    records: list[dict[str, Any]],
    problem: str,
    status: int,
    apps: list[Mapping[str, str]],
    without: Collection[str],
    happened: Accident,
    seconds: float,
) -> Report:
    rows = demo_report.rows(records)
    book = payments.read_book(staged.book)
    if stage.users_model():
        # What a real model does is its own affair: the book must hold what the records say was done.
        done = demo_report.refunds_done(rows)
        effects = demo_report.Effects(done, len(book), max(0, len(book) - done), max(0, done - len(book)))
    else:
        grants = [tool for tool in seeds.TOOLS if tool not in without]
        effects = demo_report.effects(book, seeds.expected(staged.story, grants=grants).book)
    return Report(
        seconds=seconds,
        exit_status=status,
        apps=tuple(apps),
        rows=rows,
        effects=effects,
        records=len(records),
        problem=problem,
        run=happened.as_dict(),
    )
