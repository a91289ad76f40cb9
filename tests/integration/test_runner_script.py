"""A plain script with a DurableRunner on a real mesh: started once more, killed, its result handed out."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.plane, pytest.mark.timeout(600)]

SCRIPTS = Path(__file__).resolve().parents[1] / "agents" / "project"
MESHGATE = Path(sys.executable).with_name("meshgate")
MANIFEST = """
    apiVersion: meshgate/v1
    mesh: scripts
    trustDomain: scripts.example
    programs:
      desk: {run: [python, runner.py], env: [MARKS, DIE_AT_REPLY], attempts: 2}
    toolhosts:
      orders: {tools: [desk_tools:refund, {tool: "desk_tools:lookup"}], env: [MARKS]}
"""
POLICY = """
    package mesh.agents.desk

    allow contains "orders.refund"

    allow contains "orders.lookup"
"""


class Project:
    """The scripts of the agents' tests, with a mesh around them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "policies").mkdir()
        (root / "marks").mkdir()
        for name in ("desk_tools.py", "durable.py", "scripted.py", "runner.py"):
            shutil.copy(SCRIPTS / name, root)
        (root / "meshgate.yaml").write_text(textwrap.dedent(MANIFEST).lstrip())
        (root / "policies" / "desk.rego").write_text(textwrap.dedent(POLICY).lstrip())
        test = "package mesh.tests.desk\n\ntest_it if 1 == 1\n"
        (root / "policies" / "desk_test.rego").write_text(test)
        quiet = {"CREWAI_DISABLE_TELEMETRY": "true", "OTEL_SDK_DISABLED": "true"}
        self.env = {**os.environ, **quiet, "MARKS": str(root / "marks"), "DIE_AT_REPLY": "1"}

    def meshgate(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return self._run(str(MESHGATE), *arguments)

    def script(self, shape: str, **env: str) -> "subprocess.CompletedProcess[str]":
        outer = {"DIE_AT_REPLY": "", **env}  # the outer process has no model to speak to
        return self._run(sys.executable, "runner.py", shape, **outer)

    def _run(self, *command: str, **env: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command,
            cwd=self.root,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )

    @property
    def effects(self) -> list[str]:
        """What the tools' own bodies left behind."""
        return sorted(path.name.partition("-")[0] for path in (self.root / "marks").iterdir())

    def runs(self) -> list[dict]:
        return json.loads(self.meshgate("runs", "list", "-o", "json").stdout)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The project, its mesh up."""
    made = Project(tmp_path_factory.mktemp("scripts"))
    up = made.meshgate("up", "-d")
    assert up.returncode == 0, up.stderr
    yield made
    assert made.meshgate("down").returncode == 0


def test_a_killed_inner_process_gives_its_result_to_the_outer_one(project: Project) -> None:
    """SIGKILL between two steps: two attempts, one result, one effect each; lines after `run` run once."""
    done = project.script("one", WHEN="noon", RUN_ID="noon")
    assert done.returncode == 0, done.stderr
    assert (done.stdout.count("BEFORE outer"), done.stdout.count("BEFORE inner")) == (1, 2)
    assert done.stdout.count("AFTER") == 1
    assert "AFTER outer CrewOutput all paid 45" in done.stdout
    assert "TASKS [('Clerk', True)]" in done.stdout
    assert project.effects == ["lookup", "refund"]
    told = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("EVENT")]
    assert [line[0] for line in told].count("step_replayed") == 2
    ends = [line for line in told if not line[0].startswith("step")]
    assert ends == [
        ["attempt_started", "1"],
        ["attempt_ended", "1"],
        ["attempt_started", "2"],
        ["attempt_ended", "2"],
        ["run_ended", "0", "completed"],
    ]


def test_the_id_of_a_completed_run_gives_its_result(project: Project) -> None:
    """Nothing runs again; with other inputs it is refused before anything begins."""
    again = project.script("one", WHEN="noon", RUN_ID="noon")
    assert again.returncode == 0, again.stderr
    assert "AFTER outer CrewOutput all paid 45" in again.stdout
    assert "BEFORE inner" not in again.stdout
    other = project.script("one", WHEN="midnight", RUN_ID="noon")
    assert other.returncode == 1
    assert "run noon was started with other inputs" in other.stderr
    assert "BEFORE inner" not in other.stdout
    assert project.effects == ["lookup", "refund"]
    assert len(project.runs()) == 1


def test_two_runs_of_one_script(project: Project) -> None:
    """The second inner process gets the first one's recorded result and runs only its own."""
    done = project.script("two")
    assert done.returncode == 0, done.stderr
    assert "BETWEEN outer all paid" in done.stdout
    assert "BETWEEN inner all paid" in done.stdout
    assert "AFTER outer LiteAgentOutput and that" in done.stdout
    assert "AFTER inner" not in done.stdout
    assert project.effects == ["lookup", "lookup", "refund", "refund", "refund"]
    shown = project.meshgate("runs", "show", project.runs()[0]["run_id"], "--steps")
    assert "input" in shown.stdout
    assert "result" in shown.stdout


def test_a_fork_of_the_second_run_plays_the_second_call(project: Project) -> None:
    """No outer process tells it what came before; the first crew is not run again."""
    second = next(run["run_id"] for run in project.runs() if run["state"] == "completed")
    before = len(project.effects)
    forked = project.meshgate("runs", "fork", second, "--from-step", "1", "--run-id", "forked", "--yes")
    assert forked.returncode == 0, forked.stderr
    project.meshgate("runs", "watch", "forked")
    shown = json.loads(project.meshgate("runs", "show", "forked", "--steps", "-o", "json").stdout)
    assert shown["state"] == "completed", shown
    assert [step["what"] for step in shown["steps"] if step["kind"] == "tool"] == ["orders.refund"]
    result = next(step["output"] for step in shown["steps"] if step["kind"] == "result")
    assert json.loads(result)["value"]["raw"] == "and that"
    assert len(project.effects) == before + 1


def test_what_the_crew_raises_is_raised_in_the_outer_process(project: Project) -> None:
    """One exception type with the inner traceback, after the run's attempts."""
    done = project.script("raising")
    assert "CAUGHT outer RunFailed True" in done.stdout
    assert "CAUGHT inner" not in done.stdout
    assert project.runs()[0]["state"] == "failed"
