"""Whole programs with a user of their own, under a real launcher: executed and forked, without Landlock.

meshgate and its packages are installed for this where every user may read them.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes import readable_install
from fakes.fake_gateway import FakeGateway, serving
from fakes.live_mesh import eventually
from fakes.program_server import admitted, program_server
from meshgate_agents.child.confine import INSTEAD, Rules
from meshgate_deploy.program_servers import ProgramServer

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")

FAKES = Path(__file__).parents[1] / "fakes"
PROJECT = Path(__file__).parent / "project"
USER = (64103, 64103)
FRONT = (sys.executable, str(FAKES / "without_landlock.py"))


@dataclass
class Place:
    """Where everybody may read.

    Attributes:
        server: from which programs are forked, by the same interpreter.
    """

    root: Path
    python: Path
    server: ProgramServer

    @property
    def app(self) -> Path:
        return self.root / "project" / ".meshgate-apps" / "desk"


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """An installation, a project, and the folders of an app."""
    with readable_install.folder() as root:
        python = readable_install.environment(root)
        site = next(root.glob("venv/lib/*/site-packages")) / "meshgate_agents/child/sitecustomize"
        shutil.copytree(PROJECT, root / "project")
        for folder in (root / "project/.meshgate-apps", root / "project/.meshgate-apps/desk", root / "s"):
            folder.mkdir()
            folder.chmod(0o711)
        (root / "f").mkdir(mode=0o700)
        env = {"HOME": str(root / "f"), "OTEL_SDK_DISABLED": "true"}
        with program_server(root / "f", python=str(python), site=site, front=FRONT, **env) as server:
            yield Place(root, python, server)


PROGRAM = """
import json, os, signal, sys, time
from desk_tools import refund

def tried(attempt):
    try:
        attempt()
        return "done"
    except OSError as error:
        return type(error).__name__

above = []
pid = os.getppid()
while pid > 1 and len(above) < 2:
    above.append(pid)
    pid = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
home = os.environ["HOME"]
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.environ.clear()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with open(home + "/part", "w") as file:
            file.write(str(os.getpid()))
        os.rename(home + "/part", home + "/outlives")
        time.sleep(600)
    os._exit(0)
os.wait()
while not os.path.exists(home + "/outlives"):
    time.sleep(0.01)
print("TOLD", json.dumps({
    "got": refund.run(order="1"), "uids": os.getresuid(), "gids": os.getresgid(), "groups": os.getgroups(),
    "outlives": int(open(home + "/outlives").read()),
    "signal": [tried(lambda: os.kill(pid, signal.SIGKILL)) for pid in above],
    "environ": [tried(lambda: open(f"/proc/{pid}/environ", "rb").read()) for pid in above],
    "sockets": tried(lambda: os.listdir(os.path.dirname(os.path.dirname(os.environ["MESHGATE_SOCKET"])))),
    "socket": tried(lambda: os.unlink(os.environ["MESHGATE_SOCKET"])),
    "beside": tried(lambda: os.symlink("/etc", os.path.dirname(os.environ["MESHGATE_SOCKET"]) + "/x")),
    "storage": os.environ["CREWAI_STORAGE_DIR"], "dumpable": tried(lambda: open("/proc/self/environ").read()),
}), flush=True)
"""


@pytest.mark.parametrize("forked", [False, True], ids=["executed", "forked"])
def test_a_program_with_a_user_of_its_own_calls_its_tools(place, listed_tools, tmp_path, forked) -> None:
    """And reaches nothing of who started it; what it leaves behind is killed by who is not its user."""
    work = {"HOME": "home", "TMPDIR": "tmp", "XDG_CACHE_HOME": "cache", "CREWAI_STORAGE_DIR": "crewai"}
    folders = {name: place.app / folder for name, folder in work.items()}
    rules = Rules(write=("/",), cover=INSTEAD, user=USER)._asdict()
    isolation = {
        "command": [], "own": None, "other": rules,
        "env": {
            **{name: str(folder) for name, folder in folders.items()},
            "PYTHONUSERBASE": str(place.root / "f/.local"),  # where the supervisor's user has packages
        },
        "folders": list(map(str, folders.values())),
    }  # fmt: skip
    shutil.rmtree(place.app / "home", ignore_errors=True)
    with serving(FakeGateway()) as gateway:
        ended, err = _run(place, gateway, listed_tools, tmp_path, forked=forked, isolation=isolation)
    (line,) = [line for line in ended.splitlines() if line.startswith("TOLD ")] or [err]
    told = json.loads(line.removeprefix("TOLD "))
    assert ("executed, not forked" in err, "uid 64103 of its own, no Landlock" in err) == (False, True), err
    assert (told["uids"], told["gids"], told["groups"]) == ([64103] * 3, [64103] * 3, [])
    assert (told["storage"], told["dumpable"]) == (str(place.app / "crewai"), "done")
    refused = (*told["signal"], *told["environ"], told["sockets"], told["socket"], told["beside"])
    assert set(refused) == {"PermissionError"}
    assert [seen.tool for seen in gateway.seen] == ["desk.refund"], told["got"]
    eventually(lambda: not Path(f"/proc/{told['outlives']}").exists(), "nothing outlives it")
    assert (place.app / "home").stat().st_uid == USER[0]


def _run(
    place: Place, gateway: Any, tools: Any, tmp_path: Path, *, forked: bool, isolation: Any
) -> tuple[str, str]:
    config = tmp_path / "launcher.json"
    given = {
        "app": "desk", "kind": "program", "mesh": "test", "trust_domain": "test.example",
        "workload_api": "/nowhere", "isolation": isolation,
        "gateway": {"target": f"127.0.0.1:{gateway.port}", "server_name": "unused"},
        "project_root": str(place.root / "project"), "socket_dir": str(place.root / "s"), "tools": tools,
        "expects_report": True, "attempts": 1, "run_id": None, "step_deadline_seconds": 60,
        "env": {
            "PATH": os.environ["PATH"], "PYTHONPATH": str(place.root / "project"),
            "OTEL_SDK_DISABLED": "true", "MARKS": "/nowhere",
        },
        "fork_servers": {str(place.python): str(place.server.path)} if forked else {},
    }  # fmt: skip
    config.write_text(json.dumps(given))
    launcher = (str(place.python), str(FAKES / "unsafe_launcher.py"), "--config", str(config), "--")
    command = (*FRONT, *launcher, str(place.python), "-c", PROGRAM)
    with admitted(place.server if forked else None, command, cwd=place.root / "project") as popen:
        out, err = popen.communicate(timeout=150)
    return out, err
