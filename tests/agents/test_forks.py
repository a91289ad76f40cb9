"""Programs that are forked: what they are, who may ask for them, and what is executed all the same."""

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pytest
from fakes.program_server import admitted, program_server
from meshgate_agents.child.keeper import READY
from meshgate_agents.launcher.environment import SITE_FOLDER
from meshgate_agents.launcher.forks import Forks
from meshgate_agents.launcher.peers import descends
from meshgate_identities import attestation

HOME = tempfile.gettempdir()  # as the launchers of these tests have it
EXECUTED = "executed, not forked"
LOOK = """
import ctypes, json, os, resource, signal, sys
lines = open("/proc/self/status").read().splitlines()
status = dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)
main = sys.modules["__main__"]
attributes = ("__name__", "__file__", "__package__", "__cached__", "__doc__")
seen = {
    "argv": sys.argv, "orig": sys.orig_argv, "path": sys.path, "cwd": os.getcwd(), "python": sys.executable,
    "environ": {k: v for k, v in sorted(os.environ.items()) if k != "MESHGATE_SOCKET"},
    "main": {name: str(getattr(main, name, "-")) for name in attributes},
    "spec": getattr(main.__spec__, "name", None), "same": main.__dict__ is globals(), "flags": str(sys.flags),
    "loader": getattr(main.__loader__, "__name__", type(main.__loader__).__name__),
    "names": sorted(k for k in globals() if k.startswith("__")),
    "ignored": status["SigIgn"], "caught": hex(int(status["SigCgt"], 16) & 0x7fffffff),
    "blocked": status["SigBlk"], "name": status["Name"], "threads": status["Threads"],
    "fds": sorted(map(int, os.listdir("/proc/self/fd"))), "limit": resource.getrlimit(resource.RLIMIT_NOFILE),
    "leads its group": os.getpgrp() == os.getpid(), "leads its session": os.getsid(0) == os.getpid(),
    "umask": os.umask(0o22), "nice": os.nice(0), "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
    "oom": open("/proc/self/oom_score_adj").read(),
    "crewai": sorted(name for name in sys.modules if name.startswith("crewai")),
    "streams": [(s.name, s.encoding, s.errors, s.line_buffering, s.mode, s.newlines, s.seekable())
                for s in (sys.stdin, sys.stdout, sys.stderr)],
    "sigint": str(signal.getsignal(signal.SIGINT)), "traced": str((sys.gettrace(), sys.getprofile())),
    "hook": sys.excepthook is sys.__excepthook__, "recursion": sys.getrecursionlimit(),
}
for name, value in seen.items():
    print(name, json.dumps(value, default=str))
"""
MULTI = """
import multiprocessing, sys, threading

def double(n):
    return 2 * n

class Mine:
    def __reduce__(self):
        return (Mine, ())

if __name__ == "__main__":
    for way in ("spawn", "fork", "forkserver"):
        with multiprocessing.get_context(way).Pool(2) as pool:
            print(way, pool.map(double, range(4)))
    kept = []
    thread = threading.Thread(target=lambda: kept.append(threading.main_thread().name))
    thread.start(); thread.join(); print(kept)
    print("so far", flush=True)
"""
CREW = """
import atexit, sys, warnings
atexit.register(print, "at exit")
from crewai import Agent
import crewai, crewai.tools, crewai_tools, importlib.util
from crewai.rag.chromadb.constants import DEFAULT_STORAGE_PATH
from crewai_core.paths import db_storage_path
print(DEFAULT_STORAGE_PATH == db_storage_path(), crewai.__spec__.name, type(crewai.__spec__.loader).__name__)
print(importlib.util.find_spec("crewai").origin == crewai.__file__, Agent.__module__)
"""
PROGRAMS: dict[str, tuple[str, ...]] = {
    "a file": ("look.py", "a", "-b", "\\udcff", ""),
    "a file with a dot": ("./look.py",),
    "an absolute file": ("{tmp}/look.py", "x"),
    "a file of a folder": ("below/look.py",),
    "a link": ("link.py",),
    "a module": ("-m", "look", "x", "-m"),
    "a module of a package": ("-m", "package.look"),
    "a package": ("-m", "package"),
    "a text": ("-c", "import sys; exec(open('look.py').read())", "x"),
    "no such module": ("-m", "nowhere"),
    "no such file": ("nowhere.py",),
    "a folder": ("folder",),
    "a syntax error": ("-c", "print(1"),
    "a file with a syntax error": ("syntax.py",),
    "an uncaught exception": ("raises.py",),
    "an uncaught exception in a module": ("-m", "raises"),
    "a hook": ("-c", "import sys; sys.excepthook = lambda *a: print('hook', a[0], a[2].tb_next); 1 / 0"),
    "status": ("-c", "import sys; sys.exit(7)"),
    "status as text": ("-c", "import sys; sys.exit('no')"),
    "status at once": ("-c", "import os; os._exit(9)"),
    "a signal": ("-c", "import os, signal; os.kill(0, signal.SIGUSR1)"),
    "an abort": ("-c", "import os; os.abort()"),
    "an interrupt": ("-c", "import os, signal; os.kill(os.getpid(), signal.SIGINT); signal.pause()"),
    "a broken pipe": ("-c", "import os; r, w = os.pipe(); os.close(r); os.write(w, b'x')"),
    "at exit": ("-c", "import atexit, sys; atexit.register(print, 'bye'); print('x', end=''); sys.exit(3)"),
    "threads": ("-c", "import threading as t, time; t.Thread(target=lambda: time.sleep(.2)).start()"),
    "a thread's exception": ("-c", "import threading as t; t.Thread(target=lambda: 1 / 0).start()"),
    "input": ("-c", "print(repr(input('? ')))"),
    "several processes": ("multi.py",),
    "a subprocess": ("-c", "import subprocess, sys; subprocess.run([sys.executable, 'look.py'])"),
    "CrewAI": ("crew.py",),
    "warnings": ("-c", "import warnings; warnings.warn('w', DeprecationWarning)"),
    "a log": ("-c", "import logging; logging.warning('w'); logging.getLogger('a').info('i')"),
    "a flag": ("-O", "-c", "print(__debug__)"),
    "standard error in bytes": ("-c", "import sys; sys.stderr.buffer.write(b'\\xc3\\xa4')"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The programs."""
    for name in ("below", "package", "folder"):
        (tmp_path / name).mkdir()
    for name in ("look.py", "below/look.py", "package/look.py", "package/__main__.py", "folder/__main__.py"):
        (tmp_path / name).write_text(LOOK)
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "link.py").symlink_to(tmp_path / "below" / "look.py")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "raises.py").write_text(
        "def f():\n    return {}['x']\n\nif __name__ == '__main__':\n    f()\n"
    )
    (tmp_path / "multi.py").write_text(MULTI)
    (tmp_path / "crew.py").write_text(CREW)
    return tmp_path


def _plain(text: str) -> list[str]:
    """What a program wrote, without what differs between any two runs."""
    lines = [line for line in text.splitlines() if not line.startswith("meshgate: ")]
    return [re.sub(r"0x[0-9a-f]+|Thread-\d+", "…", line) for line in lines]


@pytest.mark.parametrize("words", PROGRAMS.values(), ids=PROGRAMS)
def test_a_forked_program_is_what_an_executed_one_is(desk, fork_server, folder, words) -> None:
    """Words, variables, paths, streams, signals, status, what it writes, how it dies: all the same."""
    seen = []
    desk.env["GIVEN"] = "ä"
    for server in (None, fork_server):
        desk.server = server
        ended = desk.run(
            sys.executable, *(word.format(tmp=folder) if "{tmp}" in word else word for word in words),
            kind="program", expects_report=False, attempts=1,
        )  # fmt: skip
        expected = server is None or words[0] in ("-O", "nowhere.py", "folder")
        assert (EXECUTED not in ended.err) == (not expected) or server is None, ended.err
        seen.append([f"status {ended.status}", *_plain(ended.out), "errors:", *_plain(ended.err)])
    assert [pair for pair in zip_longest(*seen) if pair[0] != pair[1]] == []


PROGRAM = {"kind": "program", "expects_report": False, "attempts": 1}
STAY = """
import os, signal, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        signal.pause()
    os._exit(0)
print(os.getpid(), os.getppid(), flush=True)
signal.pause()
"""


@contextlib.contextmanager
def _launched(desk, text: str, **settings) -> Iterator[subprocess.Popen[str]]:
    """A launcher with a program that stays."""
    server = desk.server
    argv = desk.argv(
        sys.executable, "-c", text, fork_servers={sys.executable: str(server.path)}, **PROGRAM, **settings
    )
    with admitted(server, argv, cwd=desk.tmp) as popen:
        try:
            yield popen
        finally:
            popen.kill()


def _told(popen: subprocess.Popen[str], lines: int) -> list[int]:
    """The pids that a program wrote."""
    assert popen.stdout is not None
    return [int(word) for _ in range(lines) for word in popen.stdout.readline().split()]


def _ends(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    ended = bool(poller.poll(10_000))
    if not ended:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    os.close(descriptor)
    return ended


def _memory(pid: int) -> bytes:
    """All that a process can write to."""
    found = bytearray()
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights = line.split()[:2]
            start, end = (int(number, 16) for number in span.split("-"))
            if rights.startswith("rw") and "[vvar" not in line:
                memory.seek(start)
                found += memory.read(end - start)
    return bytes(found)


def test_nothing_of_one_program_is_in_the_memory_of_another(desk) -> None:
    """A secret that one had is in no program of the same server, nor in the server, nor in a keeper."""
    secret = "tr0ub4dor-and-3-more"
    desk.env["CRM_TOKEN"] = secret
    first = desk.python("import os, crewai; kept = os.environ['CRM_TOKEN']; print(kept)", **PROGRAM)
    assert (first.out.strip(), EXECUTED in first.err) == (secret, False)
    del desk.env["CRM_TOKEN"]
    with _launched(desk, f"import crewai\n{STAY}") as popen:
        pids = _told(popen, 2)
        server = attestation.parent(_keeper(pids))
        for pid in (*pids, server):
            assert secret.encode() not in _memory(pid)


def _keeper(pids: list[int]) -> int:
    """Of the pids that STAY wrote, in either order."""
    return next(pid for pid in pids if Path(f"/proc/{pid}/comm").read_text() == "meshgate-keeper\n")


def test_programs_share_no_keys(desk) -> None:
    """Chance, and the key by which processes of one program know each other, are each program's own."""
    text = (
        "import multiprocessing, random, numpy, os\n"
        "print(random.random(), numpy.random.random(), multiprocessing.current_process().authkey.hex())"
    )
    drawn = [desk.python(text, **PROGRAM).out.split() for _ in range(2)]
    assert len({*drawn[0], *drawn[1]}) == 6


def test_a_forked_program_has_nothing_open_but_its_streams(desk) -> None:
    """No socket of the server or the keeper."""
    ended = desk.python("import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])", **PROGRAM)
    assert (ended.out.strip(), EXECUTED in ended.err) == ("[0, 1, 2]", False)


CONFINED = """
import os, pathlib
status = pathlib.Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("NoNewPrivs")))
print(next(line.split()[1] for line in status.splitlines() if line.startswith("CapBnd")))
try:
    print(pathlib.Path(os.environ["KEY"]).read_text())
except OSError as error:
    print(type(error).__name__)
"""


def test_a_forked_program_is_confined_as_an_executed_one_is(desk, tmp_path) -> None:
    """No privilege, and nothing of what its rules leave out; it is not run where that cannot be."""
    (tmp_path / "key").write_text("the key")
    desk.env["KEY"] = str(tmp_path / "key")
    system = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/dev")
    places = (*system, sys.prefix, sys.base_prefix, SITE_FOLDER.parents[1])
    rules = {
        "read": [*map(os.path.realpath, places)], "write": ["/dev"], "hide": [], "cover": "",
        "connect": [], "listen": False, "user": None,
    }  # fmt: skip
    isolation = {"command": [], "own": None, "other": rules, "env": {}, "folders": []}
    ended = desk.python(CONFINED, isolation=isolation, **PROGRAM)
    assert EXECUTED not in ended.err
    assert ended.out.split() == ["1", "0" * 16, "PermissionError"], ended.err


def test_who_may_ask_is_whom_the_supervisor_named(desk, tmp_path) -> None:
    """This process is refused until it is named, and what descends from it always."""
    with program_server(tmp_path) as server:
        assert not _taken(server.path)
        server.admit(attestation.process(os.getpid()))
        assert _taken(server.path)
        asker = os.fork()
        if asker == 0:
            os._exit(_taken(server.path))
        assert os.waitpid(asker, 0)[1] == 0
        another = attestation.Process(os.getpid(), 1)  # the pid of a process that ended long ago
        server.admit(another)
        assert not _taken(server.path)
        assert f"refused to fork for pid {asker}" in (tmp_path / "server.log").read_text()


def _taken(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        return connection.recv(64) == READY


def test_a_launcher_asks_the_supervisors_socket_alone(tmp_path) -> None:
    """Another process's, put in its place, is told nothing."""
    said: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "f"))
        listener.listen()
        asker = Forks({sys.executable: tmp_path / "f"}, said.append)
        given = {
            "python": sys.executable,
            "cwd": None,
            "env": {},
            "streams": (subprocess.DEVNULL, None, None),
            "descriptors": 64,
            "rules": "",
        }
        for _ in range(2):
            assert asker.start([sys.executable, "x.py"], **given) is None
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(64) == b""
    assert said == [
        f"{EXECUTED}: the socket of the fork server is of pid {os.getpid()}, not of the supervisor"
    ]


def test_a_program_belongs_to_its_run(desk) -> None:
    """It and what it starts in any session are below it, and not below its launcher."""
    with _launched(desk, STAY) as popen:
        pids = _told(popen, 2)
        keeper = _keeper(pids)
        assert all(descends(pid, keeper) for pid in pids)
        assert not descends(keeper, popen.pid)
        assert "refused" not in desk.python("import crewai", kind="crew").err


def test_all_of_it_dies_with_the_launcher(desk) -> None:
    """SIGKILL to the launcher takes program, orphans of other sessions, and keeper along."""
    with _launched(desk, STAY) as popen:
        descriptors = [os.pidfd_open(pid) for pid in _told(popen, 2)]
        popen.kill()
        assert [_ends(descriptor) for descriptor in descriptors] == [True] * 3


def test_a_program_dies_with_its_keeper(desk) -> None:
    """And its launcher sees it as killed."""
    with _launched(
        desk, "import os, signal; print(os.getpid(), os.getppid(), flush=True); signal.pause()"
    ) as popen:
        program, keeper = _told(popen, 1)
        descriptor = os.pidfd_open(program)
        os.kill(keeper, signal.SIGKILL)
        assert _ends(descriptor)
        assert "the program was ended by signal 9" in popen.communicate(timeout=30)[1]


def test_a_program_outlives_the_server(desk, tmp_path) -> None:
    """Programs go on when it is killed; the next one is executed or forked by the one that follows."""
    text = (
        "import os, time; print(os.getpid(), os.getppid(), flush=True)\n"
        "while not os.path.exists('go'): time.sleep(0.01)\n"
        "raise SystemExit(7)"
    )
    with program_server(tmp_path, HOME=HOME, OTEL_SDK_DISABLED="true") as server:
        desk.server = server
        with _launched(desk, text) as popen:
            _, keeper = _told(popen, 1)
            os.kill(attestation.parent(keeper), signal.SIGKILL)
            (tmp_path / "go").touch()
            assert popen.wait(30) == 7
        assert EXECUTED in desk.python("print(1)", **PROGRAM).err
        assert server.ready.wait(60)
        assert EXECUTED not in desk.python("print(1)", **PROGRAM).err


def test_a_forked_program_says_when_it_imports_crewai(desk) -> None:
    """CrewAI is in its memory from the start, but what counts is what the program does."""
    text = "import threading; print(threading.active_count()); import crewai; print(threading.active_count())"
    ended = desk.python(text)
    assert (ended.status, ended.out.split()) == (0, ["1", "2"])  # from then on it gives signs of life
    assert "imports CrewAI" in ended.err
    ended = desk.python("print('no crew')")
    assert ended.status == 125
    assert "no process of it imported CrewAI" in ended.err
    assert EXECUTED not in ended.err


def test_where_an_import_would_go_another_way_a_program_is_executed(desk, tmp_path) -> None:
    """A variable that an import of CrewAI reads, or a module that stands in for one of its own."""
    for name in ("OTEL_SERVICE_NAME", "HTTPS_PROXY", "OPENAI_API_VERSION", "PYTHONWARNINGS", "allow_reset"):
        desk.env = {name: "true" if name.islower() else "ignore"}
        ended = desk.python("import os, crewai; print(os.environ['HOME'])", **PROGRAM)
        assert (ended.status, ended.out.strip()) == (0, HOME), ended.err
        assert f"{EXECUTED}: {name} is not what the fork server was started with" in ended.err
    desk.env = {}
    (tmp_path / "yaml.py").write_text("mine = True\n")
    (tmp_path / "main.py").write_text("import yaml; print(yaml.mine)\n")
    ended = desk.run(sys.executable, "main.py", **PROGRAM)
    assert (ended.out, ended.status) == ("True\n", 0)
    assert f"{EXECUTED}: {tmp_path} has a module yaml, which is imported already" in ended.err


def test_an_interpreter_without_a_server_is_executed(desk) -> None:
    """Also one that is the same file in another folder: it has other packages."""
    for python in (os.path.realpath(sys.executable), "/bin/sh"):
        ended = desk.run(python, "-c", "exit", **PROGRAM)
        assert ended.status == 0
        assert f"{EXECUTED}: no fork server has the interpreter {python}" in ended.err


def test_modules_of_the_program_may_start_threads(desk, tmp_path) -> None:
    """They are imported after the fork, each time with the variables of that program."""
    (tmp_path / "busy.py").write_text(
        "import os, threading, time\nname = os.environ['WHO']\n"
        "threading.Thread(target=time.sleep, args=(600,), daemon=True, name=name).start()\n"
    )
    (tmp_path / "main.py").write_text(
        "import threading, busy\nprint([t.name for t in threading.enumerate()])\n"
    )
    for who in ("anna", "bert"):
        desk.env["WHO"] = who
        ended = desk.run(sys.executable, "main.py", **PROGRAM)
        assert (ended.out.strip(), EXECUTED in ended.err) == (f"['MainThread', '{who}']", False)


HOMES = """
import os, pathlib, tempfile, chromadb, crewai
from chromadb.telemetry.product import ProductTelemetryClient
from crewai_core.settings import DEFAULT_CONFIG_PATH
from crewai.skills import cache
names = [DEFAULT_CONFIG_PATH, cache._CACHE_ROOT, ProductTelemetryClient.USER_ID_PATH, pathlib.Path.home()]
print(*names, tempfile.gettempdir(), sep="\\n")
"""


def test_a_forked_program_has_a_home_of_its_own(desk, tmp_path) -> None:
    """What imports kept of home, cache and temporary folder is the program's, as in one that is executed."""
    mine = tmp_path / "mine"
    mine.mkdir()
    desk.env |= {"HOME": str(mine), "TMPDIR": str(mine), "PYTHONUSERBASE": f"{HOME}/.local"}
    forked = desk.python(HOMES, **PROGRAM)
    desk.server = None
    executed = desk.python(HOMES, **PROGRAM)
    assert EXECUTED not in forked.err
    assert forked.out == executed.out
    assert all(line.startswith(str(mine)) for line in forked.out.splitlines())


def test_where_a_home_cannot_be_changed_a_program_is_executed(tmp_path) -> None:
    """Kept in a list of lists it is out of reach, so that another home is a difference."""
    text = "import os\nkept = [[os.environ['HOME']]]\n"
    (tmp_path / "crewai").mkdir()
    (tmp_path / "crewai" / "__init__.py").write_text(text)
    (tmp_path / "asks.py").write_text(ELSEWHERE)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "asks.py")], capture_output=True, text=True, check=False, timeout=60,
        env={
            "PATH": os.defpath, "HOME": "/h", "CREWAI_STORAGE_DIR": str(tmp_path / "none"),
            "PYTHONPATH": os.pathsep.join((str(SITE_FOLDER), str(tmp_path))),
        },
    )  # fmt: skip
    assert done.stdout.split() == ["HOME"], done.stderr


ELSEWHERE = """
import importlib, os
importlib.import_module("_meshgate_child.install").postpone()
found = importlib.import_module("_meshgate_child.preloaded").preload(["crewai"])
print(found.differs({**dict(os.environ), "HOME": "/other", "CREWAI_STORAGE_DIR": "x"}))
"""


def test_a_server_whose_imports_start_threads_serves_nobody(tmp_path) -> None:
    """A thread would be missing in every program: the log says so, and programs are executed."""
    text = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    done = _served(tmp_path, text)
    assert done.returncode == 1
    assert "an import started threads" in done.stderr


def test_a_server_refuses_inspection_before_it_imports(tmp_path) -> None:
    """Who could look into it could change what programs are; its keepers have that from it."""
    done = _served(tmp_path, "import ctypes\nraise SystemExit(str(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)))\n")
    assert done.stderr == "0\n"


def test_a_server_that_cannot_change_the_storage_folder_serves_nobody(tmp_path) -> None:
    """Were it kept where we cannot reach, all programs would have one folder."""
    done = _served(tmp_path, "import os\nkept = [[os.environ['CREWAI_STORAGE_DIR']]]\n")
    assert (done.returncode, done.stderr[:46]) == (1, "this CrewAI keeps its storage folder in a list")


def _served(folder: Path, crewai: str) -> subprocess.CompletedProcess[str]:
    """A fork server with a CrewAI of the test's, which nobody asks."""
    (folder / "crewai").mkdir()
    (folder / "crewai" / "__init__.py").write_text(crewai)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        fd = str(theirs.fileno())
        return subprocess.run(
            [sys.executable, "-m", "meshgate_forks", fd, fd, str(folder), "crewai"],
            env={
                "PATH": os.defpath, "CREWAI_STORAGE_DIR": str(folder / "none"),
                "PYTHONPATH": os.pathsep.join((str(SITE_FOLDER), str(folder))),
            },
            pass_fds=[theirs.fileno()], capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip


BEFORE = """
import importlib, sys
importlib.import_module("_meshgate_child.install").postpone()
from crewai.tools import tool
from crewai import LLM

@tool("leak")
def leak(x: str) -> str:
    "Leaks."
    print("the body ran", flush=True)
    return x

asked = {"tool": lambda: leak.run(x="1"), "model": lambda: LLM(model="openai/gpt-4o", api_key="k").call("hi")}
asked[sys.argv[1]]()
print("came back", flush=True)
"""


@pytest.mark.parametrize("asked", ["tool", "model"])
def test_before_there_is_a_launcher_nothing_is_called(tmp_path, asked) -> None:
    """What is called in a fork server ends it, though a launcher's socket is named in its environment."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(0)
        done = subprocess.run(
            [sys.executable, "-c", BEFORE, asked],
            env={
                "PATH": os.defpath, "PYTHONPATH": str(SITE_FOLDER), "MESHGATE_SOCKET": str(path),
                "CREWAI_STORAGE_DIR": str(tmp_path), "CREWAI_DISABLE_TELEMETRY": "true",
            },
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert (done.returncode, done.stdout) == (125, "")
    assert "not connected to a launcher" in done.stderr


def _of_server(folder: Path) -> list[int]:
    """The fork server of a folder and all that was forked from it: they have its command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def test_who_waits_to_be_asked_for_ends_with_its_server(tmp_path: Path) -> None:
    """A keeper and its program are there before anybody asks, and are no strays afterwards."""
    with program_server(tmp_path):
        give_up_at = time.monotonic() + 20
        while len(waiting := _of_server(tmp_path)) != 3:
            assert time.monotonic() < give_up_at, waiting
            time.sleep(0.01)
        names = sorted(Path(f"/proc/{pid}/comm").read_text() for pid in waiting)
        assert names.count("meshgate-keeper\n") == 2
        ends = [os.pidfd_open(pid) for pid in waiting]
    ended = [_ends(end) for end in ends]  # each is looked at, so that none is left
    assert all(ended)
