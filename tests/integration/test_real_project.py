"""CrewAI's own scaffold with a stock file tool, unchanged, from `scan` to `down` on a real mesh."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import crewai_project
from fakes.leftovers import processes_naming
from meshgate_deploy import manifest
from meshgate_deploy.refund_desk.loopback import LoopbackServer
from meshgate_deploy.refund_desk.model import Call, Conversation, ObedientModel

pytestmark = [pytest.mark.plane, pytest.mark.timeout(900)]

NAME = "my_news"
APP = f"spiffe://my-news.example/ns/my-news/{NAME.replace('_', '-')}"
KNOWN = "knowledge/user_preference.txt"
KEY = "sk-nobody-may-read-this"
UV = shutil.which("uv") or os.environ.get("UV", "")


def _choose(conversation: Conversation) -> Call | str:
    """Reads a file that the crew is for, and one that it is not; whoever has no tool writes all down."""
    reader = conversation.reader()
    if reader is None:
        return f"# Report\n{conversation.asked}"
    found = []
    for path in (KNOWN, ".env"):
        call = Call(reader, {"file_path": path})
        result = conversation.result(call)
        if result is None:
            return call
        found.append(f"{path}: {result}")
    return "\n".join(found)


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    """A model on a loopback port."""
    server = LoopbackServer(ObedientModel(_choose).respond)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.url
    server.shutdown()
    server.server_close()


def _meshgate(project: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "UV_"))}
    inherited.pop("MODEL", None)
    return subprocess.run(
        [sys.executable, "-m", "meshgate_deploy.cli", *arguments],
        cwd=project,
        env={**inherited, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def _done(project: Path, *arguments: str, **env: str) -> str:
    done = _meshgate(project, *arguments, **env)
    assert done.returncode == 0, (arguments, done.stdout[-4000:], done.stderr[-4000:])
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, model: str) -> Path:
    """The scaffold with a stock tool and the user's `.env`, scanned."""
    made = crewai_project.create(tmp_path_factory.mktemp("real"), NAME)
    crewai_project.give_researcher(made, "FileReadTool()")
    (made / ".env").write_text(f"MODEL=gpt-4o-mini\nOPENAI_API_KEY={KEY}\nOPENAI_BASE_URL={model}/v1\n")
    crewai_project.environment(made, made.parent / "env")
    _done(made, "scan", "--isolate", "crew")
    return made


@pytest.mark.parametrize("how", [("up",), ("up", "-d"), ("run", "--", "true")])
def test_ctrl_c_while_it_comes_up_leaves_nothing(project: Path, how: tuple[str, ...]) -> None:
    """In the foreground and in the background, and where `run` started it: 130, or 125 for `run`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "meshgate_deploy.cli", *how],
        cwd=project,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "sentry: ready" in line:
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == (125 if how[0] == "run" else 130), said
    assert "meshgate: the start was cancelled\n" in said
    assert "  next: meshgate up\n" in said
    assert processes_naming(project / ".meshgate") == []


@pytest.fixture(scope="module")
def mesh(project: Path) -> Iterator[Path]:
    """The project's mesh, up."""
    _done(project, "up", "-d")
    yield project
    _done(project, "down")


def test_scan_wrote_what_the_mesh_needs(project: Path) -> None:
    """The tool is on a host and granted; the model's key goes to the crew and to no host."""
    made = manifest.load(project / "meshgate.yaml")
    assert made.crews["my-news"].crew == "my_news.crew:MyNews"
    assert list(made.crews["my-news"].agents) == ["researcher", "reporting_analyst"]
    assert (made.crews["my-news"].secrets, made.toolhosts["files"].secrets) == (("OPENAI_API_KEY",), ())
    assert made.tools["files.file_read"].effect == "read"
    policy = (project / "policies" / "my-news.rego").read_text()
    grants = [line for line in policy.splitlines() if line.startswith("allow contains")]
    assert grants == ['allow contains "files.file_read" if not _out_of_reach(["file_path"])']


def test_what_scan_wrote_passes_its_own_checks(project: Path) -> None:
    """Strict compilation finds nothing, and the written tests pass."""
    assert json.loads(_done(project, "policy", "check", "-o", "json")) == []
    _done(project, "policy", "test")
    _done(project, "doctor")


def _records(project: Path, *filters: str) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in _done(project, "audit", "query", "-o", "jsonl", "--limit", "1000", *filters).splitlines()
    ]


@pytest.mark.parametrize("way", ["its run function", "crewai run"])
def test_the_unchanged_entry_point_goes_through_the_gateway(mesh: Path, way: str) -> None:
    """One read is decided, taken, done; the one of the secrets is refused; the crew ends with its report."""
    environment = mesh.parent / "env"
    report = mesh / "report.md"
    report.unlink(missing_ok=True)
    seen = len(_records(mesh))
    if way == "crewai run":
        # Said in the shell that asks, after `up`: the run goes by them all the same.
        path = os.pathsep.join([str(Path(UV).parent), os.environ["PATH"]])
        uv = {"UV_PROJECT_ENVIRONMENT": str(environment), "UV_NO_SYNC": "1", "UV_OFFLINE": "1", "PATH": path}
        _done(mesh, "run", "--", str(crewai_project.CREWAI), "run", **uv)
    else:
        command = f"from {NAME}.main import run; run()"
        path = os.pathsep.join([str(environment / "bin"), os.environ["PATH"]])
        _done(mesh, "run", "--", "python", "-c", command, PATH=path)
    text = report.read_text()
    assert "User name is John Doe." in text
    assert ".env: denied [D-" in text
    assert KEY not in text
    assert not (mesh / ".venv").exists()

    new = _records(mesh)[seen:]
    calls = [(r["kind"], r.get("allow", r.get("state"))) for r in new if r.get("tool") == "files.file_read"]
    assert calls == [("decision", True), ("take", None), ("outcome", "done"), ("decision", False)]
    decisions = [record for record in new if record["kind"] == "decision"]
    assert {record["caller"] for record in decisions} == {APP}
    assert [record["reasons"] for record in decisions] == [[], ["tool_not_granted"]]
    ends = [r["state"] for r in new if r.get("event") == "run_finished"]
    assert ends == ["completed"]
    verified = json.loads(_done(mesh, "audit", "verify", "-o", "json"))
    assert (verified["verified"], int(verified["records"])) == (True, seen + len(new))


def test_its_worker_writes_the_report(mesh: Path) -> None:
    """Where `scan` said that its tasks write; everything else of the crew's is closed."""
    report = mesh / "report.md"
    report.unlink(missing_ok=True)
    given = json.dumps({"topic": "AI LLMs", "current_year": "2026"})
    _done(mesh, "runs", "start", "my-news", "--run-id", "by-worker", "--input", given)
    _done(mesh, "runs", "watch", "by-worker")
    shown = json.loads(_done(mesh, "runs", "show", "by-worker", "-o", "json"))
    assert shown["state"] == "completed", (mesh / ".meshgate/logs/my-news.log").read_text()[-4000:]
    assert "User name is John Doe." in report.read_text()
    assert KEY not in report.read_text()


def test_every_process_is_shown_with_who_it_is(mesh: Path) -> None:
    """`ps` names each process's SPIFFE ID; a healthy mesh has a clean doctor's report."""
    told = json.loads(_done(mesh, "ps", "-o", "json"))
    shown = {row["name"]: row["spiffe_id"] for row in told["processes"]}
    assert shown["gateway"] == "spiffe://my-news.example/ns/my-news/gateway"
    assert shown["files"] == "spiffe://my-news.example/ns/my-news/files"
    assert shown["dapr-files"] == "spiffe://public/ns/my-news/files"
    assert shown["placement"] == "spiffe://dapr.my-news.example/ns/dapr-system/dapr-placement"
    assert [name for name, spiffe_id in shown.items() if spiffe_id is None] == ["opa"]
    assert shown["gateway"] in _done(mesh, "ps")
    _done(mesh, "doctor", "--strict")


def test_down_leaves_nothing(mesh: Path) -> None:
    """No process names the project any more, and a second `down` is no error."""
    assert processes_naming(mesh / ".meshgate")
    _done(mesh, "down")
    assert processes_naming(mesh / ".meshgate") == []
    assert _meshgate(mesh, "ps").returncode == 5
    assert "not up" in _meshgate(mesh, "down").stderr
