"""What an agent may do on its host, tried from inside: real runs of a real mesh, as a crew and as a program.

One run of each makes every attempt and tells what came of it. The victim is another agent at work, with a
secret in its environment.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.live_mesh import LiveMesh, eventually
from meshgate_deploy.sockets import tcp_listeners

pytestmark = [pytest.mark.plane, pytest.mark.timeout(600)]

HERE = Path(__file__).parent / "isolation_desk"
SECRET = "sk-of-the-victim"
REFUSED = {"PermissionError", "FileNotFoundError", "NotADirectoryError"}
FILES = (
    "token",
    "api token",
    "ca key",
    "store",
    "payload key",
    "victim's work",
    "victim's log",
    "victim's input",
    "variables",
)
ABSTRACT = f"meshgate-test-{os.getpid()}"


@pytest.fixture(scope="module")
def model() -> Iterator[int]:
    """The port of a model, which a crew may reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(scope="module", autouse=True)
def abstract() -> Iterator[None]:
    """A socket without a path, of somebody else on this host."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{ABSTRACT}")
        server.listen()
        yield


@pytest.fixture(scope="module")
def backend() -> Iterator[int]:
    """The port of what a tool acts on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, model: int) -> Iterator[LiveMesh]:
    """The mesh, up, with the victim at work."""
    files = {path.name: path.read_text() for path in HERE.iterdir() if path.is_file()}
    files |= {
        f"policies/{app}.rego": f"package mesh.agents.{app}\n"
        for app in ("attacker", "victim", "tool", "leaver")
    }
    files[".env"] = f"VICTIM_KEY={SECRET}\nOPENAI_BASE_URL=http://127.0.0.1:{model}/v1\n"
    made = LiveMesh(tmp_path_factory.mktemp("i"), files)
    (made.root / "out").mkdir()
    try:
        made.up()
        done = made.command("runs", "start", "victim", "--run-id", "victim", "--input", '{"a": "secret"}')
        assert done.returncode == 0, done.stderr
        eventually((made.root / ".meshgate/work/victim/home/pid").exists, "the victim is at work")
        yield made
    finally:
        made.remove()


def targets(mesh: LiveMesh, model: int, backend: int) -> dict[str, Any]:
    """What the attacker is told: more than it could find out."""
    state, pids = mesh.root / ".meshgate", mesh.pids
    victim = int((state / "work/victim/home/pid").read_text())
    (own_socket,) = [path for path in (state / "run").glob("a*/s") if path.exists()]
    return {
        "files": {
            "token": str(state / "run/victim.enrol"),
            "api token": str(state / "run/victim.dapr-api"),
            "ca key": str(next((state / "ca/spiffe").glob("*key*"))),
            "store": str(state / "data/gateway.db"),
            "payload key": str(state / "data/payload.key"),
            "victim's work": str(state / "work/victim/home/pid"),
            "victim's log": str(state / "logs/victim.log"),
            "victim's input": str(next((state / "run").glob("input-*"))),
            "variables": str(mesh.root / ".env"),
        },
        "processes": {
            "victim": victim, "worker": pids["victim"], "supervisor": mesh.pid, "tool host": pids["orders"],
        },
        "sockets": {
            "victim's": str(own_socket), "control": str(state / "run/control.sock"),
            "identities": str(state / "run/workload.sock"),
            "policies": str(next((state / "run").glob("opa-*.sock"))),
        },
        "ports": {
            "daprd": int(mesh.flag("dapr-attacker", "dapr-http-port")),
            "another daprd": int(mesh.flag("dapr-victim", "dapr-grpc-port")),
            "gateway": _port(mesh, "gateway"), "back end": backend,
        },
        "model": model, "root": str(mesh.root),
    }  # fmt: skip


def _port(mesh: LiveMesh, process: str) -> int:
    return min(port for _, port in tcp_listeners(mesh.pids[process]))


@pytest.fixture(scope="module")
def crew(mesh: LiveMesh, model: int, backend: int) -> dict[str, Any]:
    """What came of every attempt of a crew."""
    given = json.dumps({**targets(mesh, model, backend), "abstract": ABSTRACT})
    done = mesh.command("runs", "start", "attacker", "--run-id", "crew", "--input", given)
    assert done.returncode == 0, done.stderr
    eventually(lambda: mesh.asked("runs", "show", "crew")["state"] in ("completed", "failed"), "it ends")
    run = mesh.asked("runs", "show", "crew")
    assert run["state"] == "completed", (mesh.root / ".meshgate/logs/attacker.log").read_text()
    return dict(json.loads(run["result"]))


@pytest.fixture(scope="module")
def program(mesh: LiveMesh, model: int, backend: int) -> dict[str, Any]:
    """What came of every attempt of a program at a terminal."""
    given = json.dumps({**targets(mesh, model, backend), "abstract": ABSTRACT})
    with mesh.running("tool", "attacks.py", given) as run:
        output, _ = run.communicate(timeout=180)
    (line,) = [line for line in output.splitlines() if line.startswith("TOLD ")] or [output]
    return dict(json.loads(line.removeprefix("TOLD ")))


@pytest.fixture(params=["crew", "program"])
def told(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What came of every attempt, of either kind."""
    return dict(request.getfixturevalue(request.param))


@pytest.mark.parametrize("what", FILES)
def test_no_file_of_another_is_read_or_changed(told, what: str) -> None:
    """The mesh's keys, tokens and store, another agent's files, the variables of others."""
    assert told["read"][what] in REFUSED | {"empty"}
    assert told["write"][what] in REFUSED | {"OSError 30", "no effect"}
    assert told["remove"][what] in REFUSED | {"OSError 30", "OSError 16"}


@pytest.mark.parametrize("what", ["victim", "worker", "supervisor", "tool host"])
def test_no_other_process_is_looked_into_or_signalled(told, what: str) -> None:
    """Environment, memory, files by /proc; ptrace; signals."""
    assert told["environ"][what] == "PermissionError"
    assert told["root of"][what] == "PermissionError"
    assert told["ptrace"][what] == "EPERM"
    assert told["signal"][what] == "PermissionError"


@pytest.mark.parametrize("what", ["victim's", "control", "identities", "policies"])
def test_no_socket_of_the_mesh_answers(told, what: str) -> None:
    """Path sockets are nothing that Landlock knows: whoever serves them looks who it is."""
    said = told["socket"][what]
    assert (
        said in REFUSED | {"nothing", "ConnectionResetError"} or "may not command" in said or "401" in said
    ), said


@pytest.mark.parametrize("what", ["daprd", "another daprd", "gateway", "back end"])
def test_a_crew_connects_to_its_model_alone(crew, what: str) -> None:
    """By the kernel, whatever the service would say; and it serves nothing itself."""
    assert crew["connect"][what] == "PermissionError"
    assert crew["connect"]["model"] == "done"
    assert crew["listen"] == "PermissionError"


def test_a_program_s_ports_are_those_that_are_written(program) -> None:
    """`ports: [443]` in the manifest."""
    assert set(program["connect"].values()) == {"PermissionError"}


def test_it_gains_nothing(told) -> None:
    """No capability, no way to one; no mount that would uncover what is covered."""
    assert told["status"]["NoNewPrivs"] == "1"
    assert {told["status"][name] for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {"0" * 16}
    assert told["core"] == [0, 0]
    assert told["umount"] == "EPERM"
    assert told["abstract"] == "PermissionError"


def test_a_crew_writes_where_it_may(crew, mesh) -> None:
    """Its own home and temporary files, and what the manifest names; not the project."""
    assert crew["writes"] == {"home": "done", "tmp": "done", "out": "done", "project": "PermissionError"}
    assert (mesh.root / "out/new").read_text() == "x"


def test_a_program_writes_the_project(program) -> None:
    """As it would without the mesh: also what was not there before."""
    assert program["writes"] == {"home": "done", "tmp": "done", "out": "done", "project": "done"}


@pytest.mark.usefixtures("crew", "program")
def test_nothing_outlives_its_run(mesh) -> None:
    """Forked twice, in a session of its own, without an environment, deaf to signals."""
    for name in ("crew", "program"):
        pid = int((mesh.root / f"out/outlives-{name}").read_text())
        assert not Path(f"/proc/{pid}").exists()


def test_nothing_outlives_a_killed_worker(mesh) -> None:
    """It becomes the supervisor's, which knows it by what it cannot take off."""
    done = mesh.command("runs", "start", "leaver", "--run-id", "leaver")
    assert done.returncode == 0, done.stderr
    mark = mesh.root / "out/outlives-leaver"
    pid = int(eventually(lambda: mark.exists() and mark.read_text(), "it has left one"))
    assert Path(f"/proc/{pid}").exists()
    os.kill(mesh.pids["leaver"], signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "it is ended")
    mesh.command("runs", "cancel", "leaver")


def test_up_refuses_where_agents_cannot_be_kept_apart(tmp_path) -> None:
    """Before anything is started, and says what to do."""
    for path in HERE.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_text(path.read_text())
    for name in ("out", "policies"):
        (tmp_path / name).mkdir()
    script = Path(__file__).parents[1] / "fakes/up_without_landlock.py"
    done = subprocess.run(
        [sys.executable, str(script), "up"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 5, done.stderr
    assert "this kernel has no Landlock" in done.stderr
    assert "isolation: none" in done.stderr
    assert "ready" not in done.stderr


def test_a_crew_that_is_refused_is_told_what_to_write(mesh) -> None:
    """In the app's log, under its own traceback."""
    given = json.dumps({"write": str(mesh.root / "report.md")})
    assert mesh.command("runs", "start", "attacker", "--run-id", "writes", "--input", given).returncode == 0
    eventually(lambda: mesh.asked("runs", "show", "writes")["state"] == "failed", "it fails")
    assert "writable: and ports: in the manifest" in (mesh.root / ".meshgate/logs/attacker.log").read_text()
    assert not (mesh.root / "report.md").exists()


def test_doctor_and_the_log_say_what_is_in_force(mesh) -> None:
    """Per app."""
    told = mesh.command("doctor").stdout
    assert "isolation of attacker" in told
    assert "isolation: Landlock ABI" in (mesh.root / ".meshgate/logs/victim.log").read_text()
