"""Programs with a user of their own, through what starts every program, with and without Landlock.

Without it the kernel refuses by comparing users alone. One app's program attacks another's, which is at work,
and what is root's.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import readable_install
from fakes.live_mesh import eventually
from meshgate_agents.child import confine
from meshgate_agents.child.confine import NotConfined, Rules
from meshgate_agents.child.framing import receive, send
from meshgate_agents.launcher import inputs, places
from meshgate_agents.launcher.children import ADOPT, Children, Program
from meshgate_agents.launcher.conversations import Conversations
from meshgate_agents.launcher.errors import LauncherError

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")

OWN, OTHER = (64101, 64101), (64102, 64102)
WITHOUT_LANDLOCK = Path(__file__).parents[1] / "fakes" / "without_landlock.py"
LANDLOCK = pytest.mark.parametrize("landlock", [True, False], ids=["with Landlock", "without"])
LOOK = """
import ctypes, errno, json, os, signal, socket, sys
def tried(attempt):
    try:
        attempt()
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]
def say(**what):
    print(json.dumps(what), flush=True)
"""


class Machine:
    """Folders that every user may pass, and an interpreter that every user may run."""

    def __init__(self, root: Path) -> None:
        self.root, self.python = root, readable_install.python(root)
        self.project, self.apps = root / "project", root / "project/.meshgate-apps"
        for folder, mode in (
            (self.project, 0o755), (self.apps, 0o711), (self.sockets, 0o711), (self.state / "run", 0o700),
            (self.state / "ca", 0o700), (self.state / "data", 0o700), (self.state, 0o700),
            (root / "backend", 0o700),
        ):  # fmt: skip
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(mode)
        for path in (*self.secrets.values(),):
            path.write_text("secret")
            path.chmod(0o600)
        for user in (OWN, OTHER):
            self.folder(user).parent.mkdir(mode=0o711)
            places.make(self.folder(user), user)

    @property
    def state(self) -> Path:
        return self.project / ".meshgate"

    @property
    def sockets(self) -> Path:
        return self.root / "sockets"

    @property
    def secrets(self) -> dict[str, Path]:
        """What is the mesh's."""
        names = {"token": "run/a.enrol", "ca key": "ca/key", "store": "data/gateway.db"}
        return {what: self.state / name for what, name in names.items()} | {".env": self.project / ".env"}

    def folder(self, user: tuple[int, int]) -> Path:
        """An app's own."""
        return self.apps / f"app-{user[0]}" / "home"

    def rules(self, user: tuple[int, int] | None = OWN, **more: Any) -> Rules:
        """Of a program that may write everything that its user may."""
        hide = (str(self.state), str(self.project / ".env"))
        made = Rules(write=("/",), hide=hide, cover=confine.INSTEAD, user=user)
        return made._replace(**more)

    def started(self, rules: Rules, code: str, *arguments: str, landlock: bool, **options: Any) -> Any:
        """A program of an app."""
        front = () if landlock else (sys.executable, str(WITHOUT_LANDLOCK))
        adopted = (sys.executable, "-I", "-S", str(ADOPT), "1024", rules.as_json())
        argv = [*front, *adopted, str(self.python), "-I", "-c", LOOK + code, *arguments]
        return subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
            cwd=self.project, **options,
        )  # fmt: skip

    def told(
        self, rules: Rules, code: str, *arguments: str, landlock: bool, **options: Any
    ) -> dict[str, Any]:
        """What it says."""
        with self.started(rules, code, *arguments, landlock=landlock, **options) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return dict(json.loads(out))


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """One for all."""
    with readable_install.folder() as root:
        yield Machine(root)


STATUS = """
lines = open("/proc/self/status").read().splitlines()
status = dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)
say(
    uids=status["Uid"].split(), gids=status["Gid"].split(), groups=status["Groups"].split(),
    caps=sorted({value for name, value in status.items() if name.startswith("Cap")}),
    gains=status["NoNewPrivs"], back=tried(lambda: os.setuid(0)), group=tried(lambda: os.setgid(0)),
    groups_back=tried(lambda: os.setgroups([0])),
    own=[tried(lambda: open(f"/proc/self/{name}").read(1)) for name in ("environ", "maps")],
)
"""


@LANDLOCK
def test_a_program_is_another_user_and_nothing_else(machine, landlock: bool) -> None:
    """All its uids, gids and groups; no capability, no way back."""
    found = machine.told(machine.rules(), STATUS, landlock=landlock, extra_groups=[64190])
    assert (found.pop("uids"), found.pop("gids"), found.pop("groups")) == (["64101"] * 4, ["64101"] * 4, [])
    assert (found.pop("caps"), found.pop("gains"), found.pop("own")) == (["0" * 16], "1", ["done", "done"])
    assert set(found.values()) == {"EPERM"}


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"user": None}, "no Landlock, and the program no user of its own"),
        ({"connect": (443,)}, "knows no TCP ports"),
        ({"listen": False}, "knows no TCP ports"),
        ({"user": (0, 64101)}, "keeps a program apart from nobody"),
        ({"user": (64101, 0)}, "keeps a program apart from nobody"),
    ],
)
def test_without_landlock_nothing_runs_that_is_not_kept_apart(machine, more, why: str) -> None:
    """Status 125 and a sentence: no user, ports, a user or a group that is root's."""
    with machine.started(machine.rules(**more), "print('RAN')", landlock=False) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, why in err) == (125, "", True), err


def test_who_has_the_user_already_is_not_kept_apart_by_it(machine) -> None:
    """The process above would be open to the program; and an ordinary user becomes nobody else."""
    for becomes, why in ((OWN, "apart from nobody"), (OTHER, "Operation not permitted")):
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                confine.become(*OWN)
                try:
                    confine.become(*becomes)
                except NotConfined as error:
                    os._exit(0 if why in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


WAITS = """
open(sys.argv[1] + "/secret", "w").write("secret")
os.chmod(sys.argv[1] + "/secret", 0o644)
say(pid=os.getpid())
signal.pause()
"""
ATTACK = """
told = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
def ptrace(pid):
    if libc.ptrace(16, pid, None, None):
        raise OSError(ctypes.get_errno(), "")
def memory(pid):
    import struct
    word = ctypes.create_string_buffer(8)
    class Span(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))
    span = Span(ctypes.cast(word, ctypes.c_void_p), 8)
    if libc.process_vm_readv(pid, ctypes.byref(span), 1, ctypes.byref(span), 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "")
def connect(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(path)
        sock.sendall(b"\\0\\0\\0\\x0c" + b'{"op":"hear"}'[:12])
        if not sock.recv(64):
            raise OSError(errno.ECONNRESET, "")
each = lambda attempt, given: {what: tried(lambda: attempt(one)) for what, one in given.items()}
files, pids = told["files"], told["pids"]
say(
    read=each(lambda path: open(path, "rb").read(1), files),
    write=each(lambda path: open(path, "ab"), files),
    mode=each(lambda path: os.chmod(path, 0o777), files),
    away=each(lambda path: os.rename(path, path + "-"), files),
    listed=each(os.listdir, told["folders"]),
    link=each(lambda path: os.symlink("/etc", path + "/link"), told["folders"]),
    moved=each(lambda path: os.rename(path, path + "-"), told["folders"]),
    environ=each(lambda pid: open(f"/proc/{pid}/environ", "rb").read(1), pids),
    memory=each(memory, pids), mem=each(lambda pid: open(f"/proc/{pid}/mem", "rb"), pids),
    descriptors=each(lambda pid: os.listdir(f"/proc/{pid}/fd"), pids),
    root=each(lambda pid: os.listdir(f"/proc/{pid}/root/"), pids),
    signal=each(lambda pid: os.kill(pid, 0), pids), ptrace=each(ptrace, pids),
    kill=each(lambda pid: os.kill(pid, signal.SIGKILL), pids),
    sockets=each(connect, told["sockets"]),
    own={"home": tried(lambda: open(told["home"] + "/new", "w")), "tty": tried(lambda: open("/dev/null"))},
)
"""
REFUSED = {"EACCES", "EPERM", "ENOENT", "EROFS", "EBUSY", "EXDEV", "ENOTDIR", "EINVAL"}


class Served:
    """The socket of a run of the other app."""

    def __init__(self, machine: Machine, belongs: Callable[[int], bool], user: tuple[int, int]) -> None:
        self.notes: list[str] = []
        self.stopped = threading.Event()
        self.conversations = Conversations(
            belongs=belongs, answer=lambda *_: {"state": "ok"}, on_end=lambda _: None, stopped=self.stopped,
            note=self.notes.append, user=user,
        )  # fmt: skip
        self.path = self.conversations.listen(machine.sockets)

    def close(self) -> None:
        self.stopped.set()
        self.conversations.close()


@contextlib.contextmanager
def served(machine: Machine, belongs: Callable[[int], bool], user: tuple[int, int]) -> Iterator[Served]:
    """One, served."""
    made = Served(machine, belongs, user)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def at_work(machine: Machine, *, landlock: bool) -> Iterator[int]:
    """The other app's program, with a secret in its environment and one in its home; its pid."""
    env = {"VICTIM_KEY": "secret", "PATH": os.environ["PATH"]}
    home = str(machine.folder(OTHER))
    with machine.started(machine.rules(OTHER), WAITS, home, landlock=landlock, env=env) as victim:
        try:
            yield json.loads(victim.stdout.readline())["pid"]
        finally:
            victim.kill()


@LANDLOCK
def test_nothing_of_another_app_or_of_the_mesh_is_reached(machine, landlock: bool) -> None:
    """Files, environment, memory, sockets, input, token, CA key, store; signals, ptrace."""
    with (
        at_work(machine, landlock=landlock) as victim,
        served(machine, lambda _: True, OTHER) as other,
        inputs.written(machine.sockets, b"secret", OTHER) as given,
        socket.socket(socket.AF_UNIX) as opa, socket.socket(socket.AF_UNIX) as back_end,
    ):  # fmt: skip
        for server, path in ((opa, machine.state / "run/opa"), (back_end, machine.root / "backend/s")):
            server.bind(str(path))
            server.listen()
            path.chmod(0o777)  # the folder alone refuses
        files = {**machine.secrets, "victim's": machine.folder(OTHER) / "secret", "input": given}
        told = {
            "files": {what: str(path) for what, path in files.items()},
            "folders": {
                "state": str(machine.state), "victim's": str(machine.folder(OTHER)),
                "sockets": str(machine.sockets), "run's": str(other.path.parent), "apps": str(machine.apps),
                "app's": str(machine.folder(OWN).parent),
            },
            "pids": {"victim": victim, "supervisor": os.getpid()},
            "sockets": {
                "victim's": str(other.path), "opa": str(machine.state / "run/opa"),
                "back end": str(machine.root / "backend/s"),
            },
            "home": str(machine.folder(OWN)),
        }  # fmt: skip
        found = machine.told(machine.rules(), ATTACK, json.dumps(told), landlock=landlock)
        for path in (machine.state / "run/opa", machine.root / "backend/s"):
            path.unlink()
        assert Path(f"/proc/{victim}").exists()
        assert (given.read_bytes(), other.notes) == (b"secret", [])
    assert set(found.pop("own").values()) == {"done"}
    if not landlock:  # who may list a folder that holds nothing of others
        assert set(found["listed"].values()) == {"EACCES"}
    covered = found["read"].pop(".env")  # an empty file lies over it, where the kernel lets us lay one
    assert covered in {"done", "EACCES"}
    found["write"].pop(".env")
    for what, results in found.items():
        assert set(results.values()) <= REFUSED, (what, results)
    assert (machine.project / ".env").read_text() == "secret"


SPEAKS = """
import struct
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(20)
def ask():
    sock.connect(sys.argv[1])
    sock.sendall(struct.pack(">I", 2) + b"{}")
    if not sock.recv(64):
        raise OSError(errno.ECONNRESET, "")
say(asked=tried(ask))
"""


@LANDLOCK
def test_a_socket_serves_the_app_s_user_alone(machine, landlock: bool) -> None:
    """Its own program is answered; another app's does not get there, and is refused where it does."""
    with served(machine, lambda _: True, OWN) as made:
        path, rules = str(made.path), machine.rules(read=(str(made.path.parent),))
        assert machine.told(rules, SPEAKS, path, landlock=landlock) == {"asked": "done"}
        forged = rules._replace(user=OTHER)
        assert machine.told(forged, SPEAKS, path, landlock=landlock) == {"asked": "EACCES"}
        made.path.chmod(0o777)
        said = machine.told(forged, SPEAKS, path, landlock=landlock)["asked"]
        assert said in ("ECONNRESET", "EPIPE")
        assert [note for note in made.notes if "has uid 64102, not 64101" in note]
        with socket.socket(socket.AF_UNIX) as ours:  # as root: no program of this app is
            ours.settimeout(20)
            ours.connect(path)
            with contextlib.suppress(ConnectionError):
                send(ours, {"op": "alive"})
                assert receive(ours) is None
        assert [note for note in made.notes if "has uid 0, not 64101" in note]


def test_the_user_alone_does_not_make_a_program_of_this_run(machine) -> None:
    """Another run of the same app: it may connect, and is not admitted."""
    with served(machine, lambda _: False, OWN) as made:
        rules = machine.rules(read=(str(made.path.parent),))
        said = machine.told(rules, SPEAKS, str(made.path), landlock=False)["asked"]
        assert (said in ("ECONNRESET", "EPIPE"), "no process of this run" in made.notes[0]) == (True, True)


def test_a_program_dies_with_who_started_it(machine) -> None:
    """The wish for that does not outlive the change of its user, so it is told after that."""
    keeper = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(sys.argv[1:])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    adopted = [sys.executable, "-I", "-S", str(ADOPT), "1024", machine.rules().as_json()]
    program = [str(machine.python), "-c", "print('ready', flush=True); import time; time.sleep(600)"]
    argv = [sys.executable, str(WITHOUT_LANDLOCK), sys.executable, "-c", keeper, *adopted, *program]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=machine.project) as above:
        assert above.stdout is not None
        (pid,) = {above.stdout.readline().strip() for _ in range(2)} - {"ready"}
        above.kill()
    eventually(lambda: _ended(int(pid)), "it has died")


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


WITH = """
import ctypes, os, sys
for number in set(range(64)) - {0, 5, 6, 7}:
    ctypes.CDLL(None).prctl(24, number, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
PLACES = """
import pathlib, socket, sys
from meshgate_agents.launcher import places
folder = pathlib.Path(sys.argv[1])
for _ in range(2):
    places.make(folder / "home", (64101, 64101))
with socket.socket(socket.AF_UNIX) as one:
    one.bind(str(folder / "s"))
    places.give(folder / "s", (64101, 64101))
"""


@LANDLOCK
def test_the_capabilities_that_the_docs_name_are_enough(machine, tmp_path, landlock: bool) -> None:
    """CHOWN, KILL, SETGID, SETUID: no right to mount, and a user namespace is no way to another user."""
    with_few = [sys.executable, "-c", WITH]
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", *OWN)  # by an app that has opened it to others since
    subprocess.run([*with_few, sys.executable, "-c", PLACES, str(tmp_path)], check=True, timeout=60)
    found = [(path.stat().st_uid, path.stat().st_mode & 0o777) for path in sorted(tmp_path.iterdir())]
    assert found == [(64101, 0o700), (64101, 0o600)]
    front = [] if landlock else [sys.executable, str(WITHOUT_LANDLOCK)]
    adopted = [sys.executable, "-I", "-S", str(ADOPT), "1024", machine.rules().as_json()]
    program = [
        str(machine.python),
        "-I",
        "-c",
        LOOK + "say(uid=os.getuid(), read=tried(lambda: open(sys.argv[1])))",
    ]
    secret = str(machine.secrets["token"])
    done = subprocess.run(
        [*with_few, *front, *adopted, *program, secret],
        capture_output=True, text=True, check=False, cwd=machine.project, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, '{"uid": 64101, "read": "EACCES"}\n'), done.stderr


def test_no_library_of_the_program_s_is_loaded_by_us(machine, tmp_path) -> None:
    """The dynamic loader of what is still root's process does not hear of them; the program's does."""
    code = "import os; print(os.getuid(), os.environ['LD_DEBUG'], os.environ['GCONV_PATH'])"
    program = Program(
        command=(str(machine.python), "-I", "-c", code), cwd=machine.project,
        rules=machine.rules().as_json(), streams=(subprocess.DEVNULL, *([_new(tmp_path / "out")] * 2)),
    )  # fmt: skip
    children = Children()
    env = {"LD_DEBUG": "files", "GCONV_PATH": "/nowhere", "PATH": os.defpath}
    child = children.start(program, env)
    status = eventually(lambda: children.reap(child) is not None and (child.popen.returncode,), "it ends")
    said = (tmp_path / "out").read_text()
    assert (status, "64101 files /nowhere" in said) == ((0,), True), said
    loading = {line.split(":")[0].strip() for line in said.splitlines() if "calling init" in line}
    started = [line for line in said.splitlines() if "initialize program" in line]
    assert len(loading) == len(started) == 1, started  # the program alone
    assert str(machine.python) in started[0]


def _new(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)


def test_what_is_given_to_a_user_is_a_folder_in_one_of_ours(machine, tmp_path) -> None:
    """We may change every file: no link of a program's leads us to another."""
    own = tmp_path / "app"
    own.mkdir(mode=0o711)
    (own / "link").symlink_to("/etc")
    with pytest.raises(LauncherError, match="cannot be given"):
        places.make(own / "link", OWN)
    assert Path("/etc").stat().st_uid == 0
    places.make(own / "home", OWN)
    (own / "home").chmod(0o755)
    places.make(own / "home", OWN)
    found = (own / "home").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (*OWN, 0o700)
    with pytest.raises(LauncherError, match="is of uid 64101, and is to be of 64102"):
        places.make(own / "home", OTHER)
    with pytest.raises(LauncherError, match="is not ours alone"):
        places.make(own / "home" / "below", OWN)
    own.chmod(0o777)
    with pytest.raises(LauncherError, match="is not ours alone"):
        places.make(own / "more", OWN)
