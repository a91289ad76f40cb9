"""Starts real launchers with real children against a fake gateway."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fakes.fake_gateway import FakeGateway, serving
from fakes.program_server import admitted, program_server
from meshgate_deploy.program_servers import ProgramServer

PROJECT = Path(__file__).parent / "project"
HOME = tempfile.gettempdir()  # one for all: CrewAI looks there when it is imported, and keeps nothing there
UNSAFE_LAUNCHER = Path(__file__).resolve().parents[1] / "fakes" / "unsafe_launcher.py"
DESCRIBE = """
import json, desk_tools
from meshgate_agents.child.tool_identity import describe
print(json.dumps([{"tool": id, "identity": dict(describe(tool))} for id, tool in desk_tools.LISTED.items()]))
"""


@dataclass
class Ended:
    """A launcher that has ended."""

    status: int
    out: str
    err: str
    marks: list[str]

    @property
    def routes(self) -> dict[str, tuple[str, str]]:
        lines = [json.loads(line[6:]) for line in self.out.splitlines() if line.startswith("ROUTE ")]
        return {name: (first, second) for name, first, second in lines}


@dataclass
class Desk:
    """One project folder and the ways to run something in it under the launcher."""

    tmp: Path
    gateway: FakeGateway
    tools: list[dict[str, Any]]
    env: dict[str, str] = field(default_factory=dict)
    patience_seconds: float = 150
    server: ProgramServer | None = None  # from which programs are forked; without one they are executed

    def argv(self, *command: str, **settings: Any) -> list[str]:
        path = self.config("launcher.json", **settings)
        return [sys.executable, str(UNSAFE_LAUNCHER), "--config", str(path), "--", *command]

    def config(self, name: str, **settings: Any) -> Path:
        """A launcher's config file."""
        marks = self.tmp / "marks"
        marks.mkdir(exist_ok=True)
        sockets = self.tmp / "s"
        sockets.mkdir(mode=0o700, exist_ok=True)
        config = {
            "app": "desk",
            "kind": "crew",
            "mesh": "test",
            "trust_domain": "test.example",
            "workload_api": "/nowhere",
            "gateway": {"target": f"127.0.0.1:{self.gateway.port}", "server_name": "unused"},
            "project_root": str(self.tmp),
            "socket_dir": str(sockets),
            "tools": self.tools,
            "expects_report": True,
            "env": {
                "PATH": os.environ["PATH"],
                "HOME": HOME,
                "MARKS": str(marks),
                "PYTHONPATH": str(PROJECT),
                "OTEL_SDK_DISABLED": "true",
                **self.env,
            },
            "run_id": None,
            "step_deadline_seconds": 60,
            "isolation": None,
            **settings,
        }
        path = self.tmp / name
        path.write_text(json.dumps(config))
        return path

    def run(self, *command: str, **settings: Any) -> Ended:
        if self.server is not None:
            settings["fork_servers"] = {sys.executable: str(self.server.path)}
        with admitted(self.server, self.argv(*command, **settings), cwd=self.tmp) as popen:
            try:
                out, err = popen.communicate(timeout=self.patience_seconds)
            except BaseException:
                popen.kill()
                raise
        return Ended(popen.returncode, out, err, self.marks())

    def script(self, name: str, **settings: Any) -> Ended:
        return self.run(sys.executable, str(PROJECT / name), **settings)

    def python(self, text: str, **settings: Any) -> Ended:
        return self.run(sys.executable, "-c", text, **settings)

    def marks(self) -> list[str]:
        return sorted(path.name.rsplit("-", 1)[0] for path in (self.tmp / "marks").iterdir())


@pytest.fixture(scope="session")
def listed_tools() -> list[dict[str, Any]]:
    """The launcher's tool entries for the project's listed tools."""
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE],
        env={**os.environ, "PYTHONPATH": str(PROJECT), "CREWAI_DISABLE_TELEMETRY": "true"},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProgramServer]:
    """From which the programs of most tests are forked: an import of CrewAI takes seconds."""
    with program_server(tmp_path_factory.mktemp("f"), HOME=HOME, OTEL_SDK_DISABLED="true") as server:
        yield server


@pytest.fixture
def desk(tmp_path: Path, listed_tools: list[dict[str, Any]], fork_server: ProgramServer) -> Iterator[Desk]:
    """A desk with a gateway that says yes to everything."""
    with serving(FakeGateway()) as gateway:
        yield Desk(tmp_path, gateway, listed_tools, server=fork_server)


@pytest.fixture(scope="module")
def make_desk(
    tmp_path_factory: pytest.TempPathFactory, listed_tools: list[dict[str, Any]], fork_server: ProgramServer
) -> Iterator[Callable[[FakeGateway], Desk]]:
    """Desks that live as long as the module, for programs that many tests look at."""
    with_exit: list[Any] = []

    def make(gateway: FakeGateway) -> Desk:
        server = serving(gateway)
        server.__enter__()
        with_exit.append(server)
        return Desk(tmp_path_factory.mktemp("desk"), gateway, listed_tools, server=fork_server)

    yield make
    for server in with_exit:
        server.__exit__(None, None, None)
