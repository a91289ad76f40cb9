"""A crew of JSON files: kicked off by its path, its own tools known by their files."""

import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from crewai.project.crew_loader import load_crew
from meshgate_agents.child import sitecustomize
from meshgate_agents.child.tool_identity import describe
from meshgate_deploy.refund_desk.loopback import LoopbackServer
from meshgate_deploy.refund_desk.model import ObedientModel
from meshgate_toolhost import loader

CREW = """
{
  // a comment, as the template has them
  "agents": ["researcher"],
  "tasks": [{"description": "Find {topic} in {place}.", "expected_output": "a list", "agent": "researcher"}],
  "inputs": {"topic": "trams", "place": "Basel"},
}
"""
AGENT = """
{"role": "Researcher", "goal": "g", "backstory": "b", "llm": "openai/gpt-4o-mini",
 "tools": ["custom:archive"]}
"""
ARCHIVE = """
from crewai.tools import BaseTool

class ArchiveTool(BaseTool):
    name: str = "archive"
    description: str = "Look into the archive."
    limit: int = 3

    def _run(self, text: str) -> str:
        return text
"""
CHANNEL = """
import pathlib

class Channel:
    def ask(self, request):
        pathlib.Path("told.json").write_text(request["result"])

def from_environment():
    return Channel()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """One agent, one task with placeholders, one tool of the project's own."""
    files = {
        "news/crew.jsonc": CREW,
        "news/agents/researcher.jsonc": AGENT,
        "news/tools/archive.py": ARCHIVE,
        "told/_meshgate_child/__init__.py": "",
        "told/_meshgate_child/channel.py": CHANNEL,
        "told/_meshgate_child/leaving.py": "def leave(): ...",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.fixture
def model() -> Iterator[str]:
    """Says what it was asked."""
    server = LoopbackServer(ObedientModel(lambda conversation: conversation.asked).respond)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.url
    server.shutdown()
    server.server_close()


def _kick_off(project: Path, model: str, **given: str) -> str:
    """What the crew gave, with the launcher's side played by a file."""
    ours = Path(next(iter(sitecustomize.__path__)))
    env = {
        **os.environ,
        "PYTHONPATH": str(project / "told"),
        "MESHGATE_PROJECT_ROOT": str(project),
        "OPENAI_API_KEY": "k",
        "OPENAI_BASE_URL": f"{model}/v1",
        "CREWAI_DISABLE_TELEMETRY": "true",
        "CREWAI_STORAGE_DIR": str(project / "storage"),
        **given,
    }
    command = [sys.executable, str(ours / "meshgate_kickoff.py"), "news/crew.jsonc"]
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return str(json.loads((project / "told.json").read_text())["raw"])


def test_it_is_kicked_off_with_its_own_inputs(project: Path, model: str) -> None:
    """CrewAI builds it and leaves the defaults of its placeholders to whoever starts it."""
    assert "Find trams in Basel." in _kick_off(project, model)


def test_given_inputs_go_before_its_own(project: Path, model: str) -> None:
    """What the file says fills in only what nobody gave."""
    (project / "input.json").write_text(json.dumps({"topic": "bridges"}))
    given = {"MESHGATE_INPUT": str(project / "input.json")}
    assert "Find bridges in Basel." in _kick_off(project, model, **given)


def test_its_tool_is_the_one_that_a_host_serves(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CrewAI registers such a module nowhere: both sides know it by its file, wrapped or not."""
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    crew, _ = load_crew(project / "news" / "crew.jsonc")
    (live,) = crew.agents[0].tools
    written = [{"class": "news/tools/archive.py:ArchiveTool"}]
    (served,) = loader.load_all(host="news", written=written, project_root=project).values()
    seen = describe(live, root=str(project))
    assert seen["qualname"] == "news/tools/archive.py:ArchiveTool"
    assert served.identity == seen
    original = type(live)._run
    monkeypatch.setattr(type(live), "_run", functools.update_wrapper(lambda *_: None, original))
    assert describe(live, root=str(project)) == seen
