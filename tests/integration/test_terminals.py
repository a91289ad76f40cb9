"""Runs at a terminal: workers play them, with the terminal's own streams, whatever dies meanwhile."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dapr.conf import settings as dapr_settings
from dapr.ext.workflow import DaprWorkflowClient, WorkflowState
from integration import fault_mesh
from integration.fault_mesh import MESHGATE, Mesh
from meshgate_deploy.control import ask as ask_supervisor
from meshgate_deploy.errors import UsageError

pytestmark = [pytest.mark.plane, pytest.mark.timeout(600)]

DESK = Path(__file__).parent / "driver_desk"
SECONDS = 300
TALKS = "import sys; print('TOLD', input(), sys.stdin.isatty(), sys.stdout.isatty(), flush=True)"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory) -> Iterator[Mesh]:
    """One mesh for all, whose program may have two runs at once."""
    desk = tmp_path_factory.mktemp("desk")
    shutil.copytree(DESK, desk, dirs_exist_ok=True)
    manifest = (desk / "meshgate.yaml").read_text()
    assert manifest.count("tools: [desk_own:keep]") == 1
    text = manifest.replace("tools: [desk_own:keep]", "tools: [desk_own:keep], runsAtOnce: 2")
    (desk / "meshgate.yaml").write_text(text)
    made = Mesh.start(tmp_path_factory.mktemp("t"), desk)
    yield made
    made.close()


def eventually(check: Callable[[], Any], what: str) -> Any:
    """Polls until `check` gives something true, and returns it."""
    return fault_mesh.eventually(check, what, seconds=SECONDS)


class Asked:
    """`meshgate run` with files for its output."""

    def __init__(self, mesh: Mesh, run_id: str, *words: str) -> None:
        self._mesh, self.run_id = mesh, run_id
        self._out, self._err = mesh.root / f"{run_id}.out", mesh.root / f"{run_id}.err"
        with self._out.open("a") as out, self._err.open("a") as err:
            self.popen = subprocess.Popen(
                [MESHGATE, "run", "--app", "nightly", "--run-id", run_id, "--", *words],
                cwd=mesh.root, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip

    @property
    def out(self) -> list[str]:
        """What its program printed."""
        return self._out.read_text().splitlines()

    @property
    def err(self) -> str:
        """What it was told."""
        return self._err.read_text()

    @property
    def run(self) -> dict[str, Any]:
        """Its row."""
        return dict(self._mesh.ask("ShowRun", run_id=self.run_id, row_only=True)["run"])

    def ended(self) -> int:
        """Its exit status."""
        return self.popen.wait(SECONDS)


@pytest.fixture
def ask(mesh) -> Iterator[Callable[..., Asked]]:
    """Asks for runs of the program, and ends those who still wait."""
    made: list[Asked] = []

    def begin(run_id: str, *words: str, command: tuple[str, ...] = ("python", "nightly.py")) -> Asked:
        made.append(Asked(mesh, run_id, *command, *words))
        return made[-1]

    yield begin
    for one in made:
        one.popen.terminate()
        one.popen.wait(SECONDS)


def test_a_program_has_the_terminal_itself(mesh) -> None:
    """It reads what is typed, and sees a terminal on both sides."""
    ours, theirs = pty.openpty()
    try:
        words = [MESHGATE, "run", "--app", "nightly", "--run-id", "typed", "--", sys.executable, "-c", TALKS]
        popen = subprocess.Popen(words, cwd=mesh.root, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        os.write(ours, b"hello\n")
        said = b""
        with contextlib.suppress(OSError):  # EIO: the other side was closed
            while part := os.read(ours, 4096):
                said += part
        assert popen.wait(SECONDS) == 0, said.decode()
        assert b"TOLD hello True True" in said
    finally:
        os.close(ours)


def workflow(mesh: Mesh, run_id: str) -> WorkflowState:
    """What Dapr has of the run, once that has ended."""
    config = json.loads((mesh.state.generated / "nightly.json").read_text())["dapr"]
    dapr_settings.DAPR_API_TOKEN = Path(config["api_token_file"]).read_text()
    client = DaprWorkflowClient(host="127.0.0.1", port=str(config["grpc_port"]))
    try:
        ended = client.wait_for_workflow_completion(run_id, timeout_in_seconds=SECONDS)
    finally:
        dapr_settings.DAPR_API_TOKEN = None
    assert ended is not None
    return ended


def test_its_worker_plays_it_as_a_workflow(mesh, ask) -> None:
    """Under the run's own id, as every other run of the app; what is told goes to the terminal alone."""
    asked = ask("workflow", "pay:o-workflow")
    assert asked.ended() == 0, asked.err
    assert asked.out == ["GOT pay o-workflow paid", "KEPT", "END pay:o-workflow"]
    instance = workflow(mesh, "workflow")
    assert (instance.name, instance.runtime_status.name) == ("run", "COMPLETED")
    assert json.loads(instance.serialized_output) == {"state": "completed"}
    worker = mesh.state.log("nightly").read_text()
    assert "run workflow, attempt 1" not in worker  # that is told at the terminal
    assert "run workflow, attempt 1" in asked.err


def test_the_next_worker_goes_on_at_the_same_terminal(mesh, ask) -> None:
    """SIGKILL in the second call: the first is answered from the journal, and both are told in one place."""
    with mesh.held("o-worker-2"):
        asked = ask("worker", "pay:o-worker-1", "pay:o-worker-2")
        eventually(lambda: mesh.effects("o-worker-2"), "its second call is under way")
        mesh.kill("nightly")
        eventually(lambda: asked.run["attempt"] == "2", "another attempt has begun")
    assert asked.ended() == 0, asked.err
    first, second = "GOT pay o-worker-1 paid", "GOT pay o-worker-2 paid"
    assert asked.out == [first, first, second, "KEPT", "END pay:o-worker-1 pay:o-worker-2"]
    assert [len(mesh.effects(f"o-worker-{number}")) for number in (1, 2)] == [1, 1]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_it(mesh, ask, number, status) -> None:
    """The program gets it, and the run is over."""
    order = f"o-signal-{status}"
    with mesh.held(order):
        asked = ask(f"signal-{status}", f"pay:{order}")
        eventually(lambda: mesh.effects(order), "its call is under way")
        asked.popen.send_signal(number)
        assert asked.ended() == status, asked.err
    assert (asked.run["state"], asked.run["attempt"]) == ("cancelled", "1")


def test_a_terminal_that_goes_away_cancels_it(mesh, ask) -> None:
    """A closed window: nobody reads what it prints."""
    with mesh.held("o-gone"):
        asked = ask("gone", "pay:o-gone")
        eventually(lambda: mesh.effects("o-gone"), "its call is under way")
        asked.popen.kill()
        eventually(lambda: asked.run["state"] == "cancelled", "it is cancelled")


def test_one_id_has_one_terminal(mesh, ask) -> None:
    """The second is refused, and the first goes on."""
    with mesh.held("o-twice"):
        asked = ask("twice", "pay:o-twice")
        eventually(lambda: mesh.effects("o-twice"), "its call is under way")
        other = ask("twice", "pay:o-twice")
        assert other.ended() == 125
        assert "run twice is under way" in other.err
    assert asked.ended() == 0, asked.err
    over = ask("twice", "pay:o-twice")
    assert over.ended() == 125
    assert "run twice is over: completed" in over.err
    assert len(mesh.effects("o-twice")) == 1


def test_a_run_that_waits_for_its_turn_says_so(mesh, ask) -> None:
    """Two are played at once; the third waits, and Ctrl-C ends it before it began."""
    with mesh.held("o-turn-1"), mesh.held("o-turn-2"):
        played = [ask(f"turn-{number}", f"pay:o-turn-{number}") for number in (1, 2)]
        eventually(lambda: mesh.effects("o-turn-1") and mesh.effects("o-turn-2"), "both are played")
        third = ask("turn-3", "pay:o-turn-3")
        eventually(lambda: "run turn-3 waits for its turn" in third.err, "it says so")
        third.popen.send_signal(signal.SIGINT)
        assert third.ended() != 0
        assert (third.run["state"], third.run["attempt"]) == ("cancelled", "0")
    assert [one.ended() for one in played] == [0, 0]
    assert mesh.effects("o-turn-3") == []


def test_without_its_terminal_a_run_goes_on(mesh, ask) -> None:
    """The supervisor is killed, and the terminal with it: the next one's worker plays the run to its end.

    Who asks for it once more with the same command waits for its end.
    """
    words = ("pay:o-lost-1", "wait:lost", "pay:o-lost-2")
    with mesh.held("lost"):
        asked = ask("lost", *words)
        eventually(lambda: "GOT pay o-lost-1 paid" in asked.out, "it waits between two calls")
        mesh.again(signal.SIGKILL)
        assert asked.ended() == 125
        assert "meshgate runs watch lost" in asked.err
        eventually(lambda: int(asked.run["attempt"]) > 1, "its worker goes on with it")
        again = ask("lost", *words)
        eventually(lambda: "run lost is played without this terminal" in again.err, "it says so")
    assert again.ended() == 0, again.err
    assert asked.run["state"] == "completed"
    assert re.search(r"^GOT pay o-lost-2 paid$", mesh.state.log("nightly").read_text(), re.MULTILINE)
    assert [len(mesh.effects(f"o-lost-{number}")) for number in (1, 2)] == [1, 1]


def test_who_only_follows_a_run_does_not_end_it(mesh, ask) -> None:
    """Ctrl-C of one whose terminal the run never had: it goes on."""
    words = ("pay:o-followed-1", "wait:followed", "pay:o-followed-2")
    with mesh.held("followed"):
        asked = ask("followed", *words)
        eventually(lambda: "GOT pay o-followed-1 paid" in asked.out, "it waits between two calls")
        mesh.again(signal.SIGKILL)
        eventually(lambda: int(asked.run["attempt"]) > 1, "its worker goes on with it")
        follower = ask("followed", *words)
        eventually(lambda: "without this terminal" in follower.err, "it follows")
        follower.popen.send_signal(signal.SIGINT)
        assert follower.ended() == 130
        assert "run followed goes on: meshgate runs watch followed" in follower.err
    eventually(lambda: asked.run["state"] == "completed", "it is completed")
    assert [len(mesh.effects(f"o-followed-{number}")) for number in (1, 2)] == [1, 1]


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_has_three_streams_or_none(mesh, count) -> None:
    """Anything between is refused, and not taken for a detached run."""
    request = {"op": "run", "app": "nightly", "run_id": f"streams-{count}", "command": ["true"], "cwd": "/"}
    with pytest.raises(UsageError, match=f"{count} streams for a run"):
        list(ask_supervisor(mesh.state.control, request, descriptors=(0, 1)[:count]))
    assert f"streams-{count}" not in [row["run_id"] for row in mesh.ask("ListRuns", limit=1000)["runs"]]
