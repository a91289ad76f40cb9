"""What a confined program may do, through the shim that starts every program: covered and not covered."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from meshgate_agents.child import confine, withheld
from meshgate_agents.child.confine import Rules
from meshgate_agents.launcher import settings
from meshgate_agents.launcher.children import ADOPT, Program
from meshgate_agents.launcher.errors import BadSettings, LauncherError
from meshgate_agents.launcher.ready import ready
from meshgate_agents.launcher.settings import Isolation
from meshgate_deploy import interpreter_paths

LOOK = """
import ctypes, errno, json, os, signal, socket, sys
def tried(attempt):
    try:
        attempt()
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]
def say(**what):
    print(json.dumps(what))
"""
READS = ("/usr", "/lib", "/lib64", "/etc", "/proc")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a mesh's folder, variables, a module, and a folder to write to."""
    for name in (".meshgate/run/a1", ".meshgate/ca", "desk", "out"):
        (tmp_path / name).mkdir(parents=True)
    for name in (".meshgate/ca/key", ".meshgate/run/a1/s", ".env", "desk/crew.py", "main.py"):
        (tmp_path / name).write_text(name)
    return tmp_path.resolve()


def rules(project: Path, **more) -> Rules:
    """As a crew's own, of this interpreter."""
    python = interpreter_paths.look(sys.executable, {"PATH": os.environ["PATH"]})
    base = Rules(
        read=tuple(
            os.path.realpath(path) for path in (*READS, *python.paths, project, f"{project}/.meshgate/run/a1")
        ),
        write=("/dev/null", f"{project}/out"),
        hide=(f"{project}/.meshgate", f"{project}/.env"),
    )
    return base._replace(**more)


def shim(given: Rules | str) -> list[str]:
    """What every program is started by."""
    text = given if isinstance(given, str) else given.as_json()
    return [sys.executable, "-I", "-S", str(ADOPT), "1024", text]


def started(given: Rules | str, code: str, *arguments: str, **options) -> "subprocess.Popen[str]":
    """A confined program."""
    argv = [*shim(given), sys.executable, "-I", "-c", LOOK + code, *arguments]
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, **options
    )


def told(given: Rules | str, code: str, *arguments: str, **options) -> dict:
    """What it says."""
    with started(given, code, *arguments, **options) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out)


FILES = """
root = sys.argv[1]
read = lambda name: tried(lambda: open(f"{root}/{name}", "rb").read(1))
say(
    env=read(".env"), key=read(".meshgate/ca/key"), own=read(".meshgate/run/a1/s"), main=read("main.py"),
    below=read("desk/crew.py"), link=read("link"), listed=tried(lambda: os.listdir(root)),
    out=tried(lambda: open(f"{root}/out/new", "w").write("x")),
    cut=tried(lambda: os.truncate(f"{root}/main.py", 0)), new=tried(lambda: open(f"{root}/new", "w")),
    away=tried(lambda: os.rename(f"{root}/.meshgate", f"{root}/moved")),
    under=tried(lambda: open(f"{root}/.meshgate/new", "w")),
    content=len(open(f"{root}/.env").read()) if read(".env") == "done" else None,
)
"""


@pytest.mark.parametrize("cover", ["", confine.ALSO])
def test_a_project_is_read_but_for_what_is_hidden(project, cover: str) -> None:
    """One by one; a link leads nowhere, what is named below a hidden folder stays."""
    (project / "link").symlink_to(project / ".meshgate/ca/key")
    found = told(rules(project, cover=cover), FILES, str(project))
    assert {found[name] for name in ("own", "main", "below", "listed", "out")} == {"done"}
    assert {found[name] for name in ("key", "link")} <= {"EACCES", "ENOENT"}
    assert found["env"] == "EACCES" or (cover and found["content"] == 0)
    assert {found[name] for name in ("cut", "new", "away", "under")} <= {"EACCES", "EROFS", "EBUSY", "EXDEV"}
    assert (project / "main.py").read_text() == "main.py"


def test_who_may_write_everything_gets_nothing_of_what_is_covered(project) -> None:
    """As programs are: new files beside what is hidden, and that is empty and stays where it is."""
    given = rules(project, write=("/",), cover=confine.INSTEAD)
    found = told(given, FILES, str(project))
    assert {found[name] for name in ("own", "main", "below", "out", "new", "cut")} == {"done"}
    assert (found["key"], found["content"]) == ("ENOENT", 0)
    assert {found[name] for name in ("away", "under")} <= {"EBUSY", "EROFS"}
    assert (project / ".env").read_text() == ".env"


def test_where_nothing_can_be_covered_it_is_left_out(project) -> None:
    """Then nothing new is made beside what is hidden: Landlock only allows."""
    given = rules(project, write=("/",), cover=confine.INSTEAD)
    code = "os.execv(sys.executable, json.loads(sys.argv[1]))"
    inner = [*shim(given), sys.executable, "-I", "-c", LOOK + FILES, str(project)]
    found = told(Rules(write=("/",)), code, json.dumps(inner))
    assert {found[name] for name in ("own", "main", "below", "out", "cut")} == {"done"}
    assert {found[name] for name in ("env", "key", "new", "away", "under")} == {"EACCES"}


def test_a_place_that_became_a_link_is_not_given(project) -> None:
    """A program that may write a folder could else give its next run any other."""
    (project / "out").rmdir()
    (project / "out").symlink_to("/etc")
    with started(rules(project), "say()") as process:
        _, err = process.communicate(timeout=60)
    assert (process.returncode, "has become a symbolic link" in err) == (125, True)


def test_nothing_runs_unconfined(project) -> None:
    """Rules that cannot be read, a kernel that knows no ports: status 125 and a sentence."""
    with started("{}", "print('RAN')") as process:
        out, _ = process.communicate(timeout=60)
    assert (process.returncode != 0, out) == (True, "")


def test_tcp_goes_to_the_named_ports_alone(project) -> None:
    """And nothing is served."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = [server.getsockname()[1] for server in (one, two)]
        code = """
connect = lambda port: tried(lambda: socket.create_connection(("127.0.0.1", int(port)), 5))
say(
    ports=[connect(port) for port in sys.argv[1:]],
    listen=tried(lambda: socket.create_server(("127.0.0.1", 0))),
)
"""
        given = rules(project, connect=(ports[0],), listen=False)
        assert told(given, code, *map(str, ports)) == {"ports": ["done", "EACCES"], "listen": "EACCES"}
        assert told(rules(project), code, *map(str, ports)) == {"ports": ["done", "done"], "listen": "done"}


def test_no_process_outside_is_reached(project) -> None:
    """Signals, abstract sockets, ptrace, /proc; among its own it may."""
    code = """
libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.argv[1])
child = os.fork()
if not child:
    signal.pause()
sock = socket.socket(socket.AF_UNIX)
traced = libc.ptrace(16, pid, None, None)
say(
    signal=tried(lambda: os.kill(pid, 0)), own=tried(lambda: os.kill(child, signal.SIGKILL)),
    ptrace=errno.errorcode[ctypes.get_errno()] if traced else "done",
    environ=tried(lambda: open(f"/proc/{pid}/environ", "rb").read(1)),
    root=tried(lambda: os.listdir(f"/proc/{pid}/root/")),
    memory=tried(lambda: open(f"/proc/{pid}/mem", "rb")), abstract=tried(lambda: sock.connect(sys.argv[2])),
)
"""
    name = f"\0meshgate-{os.getpid()}"
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(name)
            server.listen()
            code = code.replace("sys.argv[2]", repr(name))
            found = told(rules(project), code, str(other.pid))
    finally:
        other.kill()
        other.wait()
    assert found.pop("own") == "done"
    assert set(found.values()) <= {"EPERM", "EACCES"}, found


STATUS = """
lines = open("/proc/self/status").read().splitlines()
import resource
kept = dict(line.split(":\\t") for line in lines if line[:3] in ("Cap", "NoN"))
say(core=resource.getrlimit(resource.RLIMIT_CORE), **kept)
"""


@pytest.mark.parametrize("cover", ["", confine.ALSO])
def test_no_privilege_is_left_or_gained(project, cover: str) -> None:
    """Also where root runs it, whose programs get all of the bounding set back."""
    found = told(rules(project, cover=cover), STATUS)
    assert found.pop("NoNewPrivs") == "1"
    assert found.pop("core") == [0, 0]
    assert (len(found), set(found.values())) == (5, {"0" * 16})


def test_a_process_that_becomes_nothing_else_keeps_no_privilege(project) -> None:
    """It is confined where it is, as a forked program is: no exec takes anything from it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            confine.confine(rules(project))
            os.write(writer, Path("/proc/self/status").read_bytes())
            os._exit(0)
        os._exit(2)
    os.close(writer)
    with os.fdopen(reader) as status:
        kept = {line.split()[1] for line in status if line.startswith("Cap")}
    assert (os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), kept) == (0, {"0" * 16})


def test_an_ordinary_user_s_program_is_covered_too(project) -> None:
    """In a user namespace of its own, where the kernel lets it have one."""
    with tempfile.TemporaryDirectory() as folder:
        hidden = Path(folder) / "hidden"
        (hidden / "kept").mkdir(parents=True)
        (hidden / "key").write_text("key")
        for path in (Path(folder), hidden, hidden / "kept", hidden / "key"):
            os.chmod(path, 0o755)  # noqa: PTH101 - for the user that it becomes
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                if os.getuid() == 0:
                    os.setgid(65534)
                    os.setuid(65534)
                able = confine.can_cover()
                given = Rules(
                    write=("/",), read=(str(hidden / "kept"),), hide=(str(hidden),), cover=confine.INSTEAD
                )
                covered = confine.confine(given)
                seen = [path.name for path in hidden.iterdir()]
                os._exit(0 if covered == able and (seen == ["kept"] or not able) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_covered_program_dies_with_who_started_it(project) -> None:
    """The wish for that is taken away by a new user namespace, so it is told after that."""
    keeper = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(sys.argv[1:])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = shim(rules(project, cover=confine.ALSO))
    program = [sys.executable, "-c", "print('ready', flush=True); import time; time.sleep(600)"]
    with subprocess.Popen(
        [sys.executable, "-c", keeper, *command, *program], stdout=subprocess.PIPE, text=True
    ) as above:
        assert above.stdout is not None
        said = {above.stdout.readline().strip() for _ in range(2)}
        (pid,) = said - {"ready"}
        above.kill()
    end = time.monotonic() + 30
    while (stat := Path(f"/proc/{pid}/stat")).exists() and stat.read_text().rpartition(")")[2].split()[
        0
    ] != "Z":
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_config_says_how_programs_are_kept_apart(desk) -> None:
    """`none` has to be written: a file without a word on it is refused."""
    argv = desk.argv("true")
    path = Path(argv[argv.index("--config") + 1])
    assert settings.load(path).isolation is None
    config = json.loads(path.read_text())
    del config["isolation"]
    path.write_text(json.dumps(config))
    with pytest.raises(BadSettings, match="isolation"):
        settings.load(path)
    own = Rules(read=("/a",), connect=(443,), listen=False)._asdict()
    config["isolation"] = {
        "command": ["-m", "x"],
        "own": own,
        "other": Rules()._asdict(),
        "env": {},
        "folders": [],
    }
    path.write_text(json.dumps(config))
    loaded = settings.load(path).isolation
    assert loaded == Isolation(
        command=("-m", "x"),
        own=Rules(read=("/a",), connect=(443,), listen=False),
        other=Rules(),
        env={},
        folders=(),
    )


def test_variables_that_are_withheld_are_as_good_as_none(project, monkeypatch) -> None:
    """Libraries that CrewAI imports read `.env` by python-dotenv, and would end the import."""
    import dotenv.main as module

    monkeypatch.setattr(module.DotEnv, "_get_stream", module.DotEnv._get_stream)
    withheld.intercept(module)
    (project / ".env").write_text("A=1\n")
    assert module.dotenv_values(project / ".env") == {"A": "1"}
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            confine.confine(Rules(read=("/",), hide=(str(project / ".env"),)))
            os._exit(0 if module.dotenv_values(project / ".env") == {} else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_an_app_has_one_user(desk) -> None:
    """Its sockets and inputs are that one's, whatever it runs."""
    path = desk.config("launcher.json")
    config = json.loads(path.read_text())
    rules = {"own": Rules(user=(64131, 64131))._asdict(), "other": Rules(user=(64132, 64132))._asdict()}
    config["isolation"] = {"command": [], "env": {}, "folders": [], **rules}
    path.write_text(json.dumps(config))
    with pytest.raises(BadSettings, match="one user, not two"):
        settings.load(path)
    config["isolation"]["own"] = rules["other"]
    path.write_text(json.dumps(config))
    loaded = settings.load(path)
    assert loaded.user == (64132, 64132)
    program = Program(command=("x",), env={"MESHGATE_RUNNER": "/nowhere"})
    with (
        pytest.raises(LauncherError, match="DurableRunner"),
        ready(program, settings=loaded, socket_path=Path("/nowhere/s")),
    ):
        pass
