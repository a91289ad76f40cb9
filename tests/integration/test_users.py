"""A real mesh where each app has a user of its own, without Landlock and with: attacked from inside.

meshgate, its packages and the interpreter are installed where every user may read them.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import readable_install
from fakes.live_mesh import LiveMesh, eventually
from meshgate_deploy.sockets import tcp_listeners

pytestmark = [
    pytest.mark.plane,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.getuid() != 0, reason="becomes another user"),
]

HERE = Path(__file__).parent
ATTACKS = ("attacks.py", "desk_tools.py", "leaves.py", "waits.py")
FRONT = HERE.parent / "fakes" / "without_landlock.py"
SECRET = "sk-of-the-victim"
REFUSED = {"PermissionError", "FileNotFoundError", "NotADirectoryError"}
KEPT = {*REFUSED, "OSError 30", "OSError 16"}
USERS = {
    "attacker": 64111, "victim": 64112, "desk": 64113, "clerk": 64114, "tool": 64115, "leaver": 64116,
    "knocker": 64117,
}  # fmt: skip


class Placed:
    """An installation that all may read, and a project."""

    def __init__(self, root: Path) -> None:
        self.python = readable_install.environment(root)
        files = {name: (HERE / "isolation_desk" / name).read_text() for name in ATTACKS}
        files |= {path.name: path.read_text() for path in (HERE / "users_desk").iterdir() if path.is_file()}
        files |= {f"policies/{app}.rego": f"package mesh.agents.{app}\n" for app in USERS}
        files["policies/desk.rego"] += '\nallow contains "agent:clerk"\n'
        files["policies/clerk.rego"] += '\nallow contains "orders.refund"\n'
        files[".env"] = f"VICTIM_KEY={SECRET}\n"
        folders = os.pathsep.join((str(self.python.parent), os.environ["PATH"]))
        env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        project = root / "p"
        project.mkdir(mode=0o755)
        self.mesh = LiveMesh(
            project, files, env=env | {"PATH": folders},
            meshgate=(str(self.python), "-m", "meshgate_deploy.cli"),
        )  # fmt: skip
        (project / ".env").chmod(0o600)
        (project / "out").mkdir()
        (project / "out").chmod(0o777)

    def refused(self, text: str, replaced: str) -> str:
        """What `up` says of the project with another text in its manifest."""
        path = self.mesh.root / "meshgate.yaml"
        before = path.read_text()
        assert before.count(text) == 1
        try:
            path.write_text(before.replace(text, replaced))
            return self.up()
        finally:
            path.write_text(before)

    def up(self) -> str:
        """What an `up` says that is refused; one that comes up is ended again."""
        argv = [str(self.python), str(FRONT), str(self.python), "-m", "meshgate_deploy.cli", "up"]
        said = []
        with subprocess.Popen(
            argv, cwd=self.mesh.root, stderr=subprocess.PIPE, text=True, env=self.mesh.env
        ) as up:
            assert up.stderr is not None
            for line in up.stderr:
                said.append(line)
                if "the mesh is up" in line:
                    up.terminate()
        assert up.returncode in (2, 5), said
        return "".join(said)


@pytest.fixture(scope="module")
def placed() -> Iterator[Placed]:
    """One for all; what `up` refuses is tried before it is up."""
    with readable_install.folder() as root:
        yield Placed(root)


@pytest.fixture(scope="module", params=["without Landlock", "with Landlock"])
def mesh(placed: Placed, request: pytest.FixtureRequest) -> Iterator[LiveMesh]:
    """The mesh, up, with the victim at work."""
    made = placed.mesh
    made.front = () if request.param == "with Landlock" else (str(placed.python), str(FRONT))
    try:
        made.up()
        done = made.command("runs", "start", "victim", "--run-id", "victim", "--input", '{"a": "secret"}')
        assert done.returncode == 0, done.stderr
        eventually((made.root / ".meshgate-apps/victim/home/pid").exists, "the victim is at work")
        yield made
    finally:
        made.remove()
        shutil.rmtree(made.root / ".meshgate-apps")
        for path in (made.root / "out").iterdir():
            path.unlink()


@pytest.mark.parametrize(
    ("text", "replaced", "said"),
    [
        (", user: 64115", "", "no user of their own have: tool"),
        (", user: 64115", ", user: 64115, ports: [443]", "programs.tool.ports cannot be kept to"),
        (", user: 64115", ", user: no-such-user", "this machine has no user 'no-such-user'"),
        (", user: 64115", ", user: 64116", "have the same user 64116"),
        ("writable: [out]", "writable: [policies]", "uid 64111 cannot write"),
    ],
)
def test_up_refuses_what_keeps_nobody_apart(placed, text: str, replaced: str, said: str) -> None:
    """In words, and before anything starts."""
    assert said in placed.refused(text, replaced)


def test_up_refuses_a_readable_env(placed) -> None:
    """With what to do."""
    path = placed.mesh.root / ".env"
    path.chmod(0o644)
    said = placed.up()
    path.chmod(0o600)
    assert "can read" in said
    assert f"chmod 600 {path}" in said


def targets(mesh: LiveMesh) -> dict[str, Any]:
    """What the attackers are told: more than they could find out."""
    state, pids = mesh.root / ".meshgate", mesh.pids
    pid = int((mesh.root / ".meshgate-apps/victim/home/pid").read_text())
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    (own_socket,) = [item.partition("=")[2] for item in variables if item.startswith("MESHGATE_SOCKET=")]
    (given,) = [item.partition("=")[2] for item in variables if item.startswith("MESHGATE_INPUT=")]
    assert Path(own_socket).is_socket()
    return {
        "files": {
            "token": str(state / "run/victim.enrol"), "api token": str(state / "run/victim.dapr-api"),
            "ca key": str(next((state / "ca/spiffe").glob("*key*"))), "store": str(state / "data/gateway.db"),
            "payload key": str(state / "data/payload.key"), "victim's log": str(state / "logs/victim.log"),
            "victim's work": str(mesh.root / ".meshgate-apps/victim/home/pid"), "victim's input": given,
            "variables": str(mesh.root / ".env"),
        },
        "processes": {
            "victim": pid, "worker": pids["victim"], "supervisor": mesh.pid, "tool host": pids["orders"],
            "gateway": pids["gateway"],
        },
        "sockets": {
            "victim's": own_socket, "control": str(state / "run/control.sock"),
            "identities": str(state / "run/workload.sock"),
            "policies": str(next((state / "run").glob("opa-*"))),
        },
        "ports": {}, "model": 9, "abstract": "", "root": str(mesh.root),
    }  # fmt: skip


@pytest.fixture(scope="module")
def crew(mesh: LiveMesh) -> dict[str, Any]:
    """What came of every attempt of a crew."""
    done = mesh.command("runs", "start", "attacker", "--run-id", "crew", "--input", json.dumps(targets(mesh)))
    assert done.returncode == 0, done.stderr
    return dict(json.loads(_ended(mesh, "crew", "attacker")["result"]))


@pytest.fixture(scope="module")
def program(mesh: LiveMesh) -> dict[str, Any]:
    """What came of every attempt of a program at a terminal."""
    return _told(mesh, "tool", "attacks.py", json.dumps(targets(mesh)))


@pytest.fixture(params=["crew", "program"])
def told(request: pytest.FixtureRequest, crew: dict[str, Any], program: dict[str, Any]) -> dict[str, Any]:
    """What came of every attempt, of either kind."""
    return {**{"crew": crew, "program": program}[request.param]}


def _told(mesh: LiveMesh, app: str, *arguments: str) -> dict[str, Any]:
    with mesh.running(app, *arguments) as run:
        output, _ = run.communicate(timeout=180)
    (line,) = [line for line in output.splitlines() if line.startswith("TOLD ")] or [output]
    return dict(json.loads(line.removeprefix("TOLD ")))


def _ended(mesh: LiveMesh, run_id: str, app: str) -> dict[str, Any]:
    over = ("completed", "failed")
    eventually(lambda: mesh.asked("runs", "show", run_id)["state"] in over, "it ends")
    run = dict(mesh.asked("runs", "show", run_id))
    assert run["state"] == "completed", (mesh.root / f".meshgate/logs/{app}.log").read_text()
    return run


def test_nothing_of_another_is_reached(told) -> None:
    """Files, environment, memory; signals, ptrace; sockets of the mesh, of OPA, and of another agent."""
    for what in ("read", "write", "remove"):
        fine = KEPT | {"empty", "no effect"}  # of a file that lies over what is hidden
        assert {name: said for name, said in told[what].items() if said not in fine} == {}
    found = dict(told["read"])
    assert found.pop("variables") in REFUSED | {"empty"}
    assert set(found.values()) <= REFUSED
    for what in ("environ", "root of", "signal"):
        assert set(told[what].values()) == {"PermissionError"}, what
    assert set(told["ptrace"].values()) == {"EPERM"}
    assert set(told["socket"].values()) <= REFUSED


def test_it_gains_nothing(told) -> None:
    """No capability, no way to one; no mount that would uncover what is covered."""
    assert told["status"]["NoNewPrivs"] == "1"
    assert {value for name, value in told["status"].items() if name.startswith("Cap")} == {"0" * 16}
    assert (told["core"], told["umount"]) == ([0, 0], "EPERM")


def test_it_writes_where_its_user_may(told) -> None:
    """Its own folders; not the project. What lies in `out` is of whoever was first."""
    found = {name: said for name, said in told["writes"].items() if name != "out"}
    assert found == {"home": "done", "tmp": "done", "project": "PermissionError"}


@pytest.mark.usefixtures("crew", "program")
def test_nothing_outlives_its_run(mesh) -> None:
    """Forked twice, in a session of its own, without an environment, deaf to signals."""
    for name in ("crew", "program"):
        mark = mesh.root / f"out/outlives-{name}"
        assert mark.stat().st_uid == USERS["attacker" if name == "crew" else "tool"]
        assert not Path(f"/proc/{int(mark.read_text())}").exists()


def test_nothing_outlives_a_killed_worker(mesh) -> None:
    """It becomes the supervisor's, which may end processes of every user."""
    done = mesh.command("runs", "start", "leaver", "--run-id", "leaver")
    assert done.returncode == 0, done.stderr
    mark = mesh.root / "out/outlives-leaver"
    pid = int(eventually(lambda: mark.exists() and mark.read_text(), "it has left one"))
    assert Path(f"/proc/{pid}").stat().st_uid == USERS["leaver"]
    os.kill(mesh.pids["leaver"], signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "it is ended")
    mesh.command("runs", "cancel", "leaver")


def test_every_port_asks_for_a_credential(mesh) -> None:
    """No user is kept from TCP: a sidecar wants a token, the gateway a certificate."""
    ports = {
        "daprd": int(mesh.flag("dapr-knocker", "dapr-http-port")),
        "another": int(mesh.flag("dapr-victim", "dapr-grpc-port")),
        "gateway": min(port for _, port in tcp_listeners(mesh.pids["gateway"])),
    }
    found = _told(mesh, "knocker", "knocks.py", json.dumps(ports))
    assert found["daprd"] == "401"
    assert found["another"] in ("UNAUTHENTICATED", "PERMISSION_DENIED")
    assert found["gateway"] in ("refused", "closed", "ConnectionResetError", "BrokenPipeError")


def test_a_crew_s_agent_calls_its_tool(mesh) -> None:
    """Crew and agent have a user each; the task, the tool and the results go their usual way."""
    for run_id in ("pays", "pays-again"):
        assert mesh.command("runs", "start", "desk", "--run-id", run_id).returncode == 0
        assert f"paid by {USERS['clerk']}" in str(_ended(mesh, run_id, "desk")["result"])
        eventually(lambda: _processes_of(USERS["clerk"]), "a program stands ready for the next task")
    assert len(mesh.records(kind="outcome", tool="orders.refund")) == 2
    log = (mesh.root / ".meshgate/logs/clerk.log").read_text()
    landlock = "no Landlock" if mesh.front else "Landlock ABI"
    assert f"uid {USERS['clerk']} of its own, {landlock}" in log


def _processes_of(uid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == uid:
                found.append(int(entry.name))
    return found


def test_sockets_and_inputs_are_the_user_s(mesh) -> None:
    """In a folder that nobody lists, and that others only pass through."""
    pid = int((mesh.root / ".meshgate-apps/victim/home/pid").read_text())
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    places = dict(item.partition("=")[::2] for item in variables)
    for name in ("MESHGATE_SOCKET", "MESHGATE_INPUT"):
        found = Path(places[name]).lstat()
        assert (found.st_uid, found.st_mode & 0o777) == (USERS["victim"], 0o600)
        folder = Path(places[name]).parent.lstat()
        assert (folder.st_uid, folder.st_mode & 0o777) == (0, 0o711)
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "CREWAI_STORAGE_DIR"):
        found = Path(places[name]).lstat()
        assert (found.st_uid, found.st_mode & 0o777) == (USERS["victim"], 0o700)


def test_doctor_says_per_app_what_is_in_force(mesh, placed) -> None:
    """Of the kernel that it is asked on."""
    argv = [*mesh.front, str(placed.python), "-m", "meshgate_deploy.cli", "doctor"]
    told = subprocess.run(
        argv, cwd=mesh.root, env=mesh.env, capture_output=True, text=True, check=False
    ).stdout
    landlock = "no Landlock" if mesh.front else "Landlock ABI"
    for app, uid in USERS.items():
        assert f"user of {app}" in told
        assert f"uid {uid}, gid {uid}" in told
    assert f"uid 64111 of its own, {landlock}" in " ".join(told.split())
