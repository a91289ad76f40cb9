"""Fork servers: what they make is as if it had been executed, and a mesh does not depend on them."""

import ctypes
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from meshgate_deploy import processes, server_rows
from meshgate_deploy.environment import Environment
from meshgate_deploy.forking import Forked, ForkServer, ForkServerGone
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.preloaded import Preloaded
from meshgate_deploy.processes import Command, Processes
from meshgate_deploy.state import prepare_state

PR_SET_CHILD_SUBREAPER = 36
PROBE = """
import ctypes, json, os, random, signal, sys

def main():
    status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
    told = {
        "pid": os.getpid(), "session": os.getsid(0), "parent": os.getppid(), "words": sys.argv[1:],
        "environ": dict(os.environ), "cwd": os.getcwd(), "threads": status["Threads"],
        "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), "ignored": status["SigIgn"],
        "caught": status["SigCgt"], "blocked": status["SigBlk"],
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "recorded": str(os.getpid()) in open("processes.json").read(),
        "drawn": [random.random(), *[numpy.random.random() for numpy in [sys.modules.get("numpy")] if numpy]],
    }
    print(json.dumps(told), flush=True)
    print("to stderr", file=sys.stderr, flush=True)
    if sys.argv[1:] == ["stay"]:
        signal.pause()
    return int(sys.argv[1]) if sys.argv[1:] else 0

if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Processes]:
    """Processes of this one, which is a subreaper meanwhile."""
    processes.become_subreaper()
    made = Processes(record=tmp_path / "processes.json")
    yield made
    made.close()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


Make = Callable[..., ForkServer]


@pytest.fixture
def server(running: Processes, tmp_path: Path) -> Iterator[Make]:
    """Makes fork servers of modules that lie in the test's folder."""
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "__init__.py").touch()
    (tmp_path / "probe" / "__main__.py").write_text(PROBE)
    made = []

    def make(*modules: str) -> ForkServer:
        def start(descriptor: int) -> Callable[[], None]:
            argv = (sys.executable, "-u", "-m", "meshgate_deploy.fork_server", str(descriptor), str(tmp_path))
            child = running.start(
                Command(
                    name="server", argv=(*argv, *(modules or ("probe.__main__",))), cwd=tmp_path,
                    env={"PYTHONPATH": str(tmp_path), "PATH": os.defpath}, log=tmp_path / "server.log",
                    descriptors=(descriptor,),
                )
            )  # fmt: skip
            return child.stop

        one = ForkServer(modules, start, threading.Event())
        one.open()
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


def _command(tmp_path: Path, fork: ForkServer | None, *words: str, **more: object) -> Command:
    return Command(
        name="a-probe", argv=(sys.executable, "-u", "-m", "probe", *words), cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "SEEN": "yes", "LC_ALL": "C.UTF-8"}, log=tmp_path / "log",
        fork=None if fork is None else (fork, ("probe", *words)), **more,
    )  # fmt: skip


def _told(tmp_path: Path) -> dict:
    first, second = (tmp_path / "log").read_text().splitlines()[-2:]
    assert second == "to stderr"
    return json.loads(first)


def test_a_forked_process_is_what_an_executed_one_is(running, server, tmp_path) -> None:
    """Session, parent, words, variables, folder, streams, descriptors, signals and status are the same."""
    seen = []
    for fork in (server(), None):
        child = running.start(_command(tmp_path, fork, "7", user_code=True))
        assert child.wait(20) == 7
        assert isinstance(child.popen, Forked) == (fork is not None)
        told = _told(tmp_path)
        assert (told.pop("pid"), told.pop("session")) == (child.pid, child.pid)
        told.pop("drawn")
        assert told.pop("recorded") or fork is None  # an executed one is written down while it begins
        seen.append(told)
    assert seen[0] == seen[1]
    assert (seen[0]["parent"], seen[0]["threads"], seen[0]["dumpable"]) == (os.getpid(), "1", 1)
    assert seen[0]["environ"]["SEEN"] == "yes"


def test_a_process_of_ours_refuses_inspection_from_its_first_moment(running, server, tmp_path) -> None:
    """The server does too, before it imports: who could look into it could change what others become."""
    (tmp_path / "spy.py").write_text(
        "import ctypes, pathlib\n"
        "pathlib.Path(__file__).with_name('spied').write_text(str(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)))\n"
    )
    child = running.start(_command(tmp_path, server("probe.__main__", "spy")))
    assert child.wait(20) == 0
    assert isinstance(child.popen, Forked)
    assert (_told(tmp_path)["dumpable"], (tmp_path / "spied").read_text()) == (0, "0")


def test_nothing_of_one_process_is_in_the_memory_of_the_next(running, server, tmp_path) -> None:
    """A secret that one is given is in no process that the same server makes later, nor in the server."""
    fork = server("probe.__main__")
    secret, many = "tr0ub4dor-and-3-more", {f"VARIABLE_{number}": "x" * 40 for number in range(40)}
    first = _command(tmp_path, fork)
    first = dataclasses.replace(first, env={**first.env, **many, "CRM_TOKEN": secret})
    assert running.start(first).wait(20) == 0
    assert _told(tmp_path)["environ"]["CRM_TOKEN"] == secret
    held = running.start(_command(tmp_path, fork, "stay"))
    try:
        _until_it_stays(tmp_path)
        for pid in (held.pid, *_named(tmp_path, "fork_server")):
            assert secret.encode() not in _memory(pid)
    finally:
        held.stop()


def _until_it_stays(tmp_path: Path) -> None:
    """Until the last process has said that it stays."""
    give_up_at = time.monotonic() + 20
    while (tmp_path / "log").read_text().count("to stderr") < 2:
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def _memory(pid: int) -> bytes:
    """All that a process can write to."""
    found = bytearray()
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights = line.split()[:2]
            start, end = (int(number, 16) for number in span.split("-"))
            if rights.startswith("rw"):
                memory.seek(start)
                found += memory.read(end - start)
    return bytes(found)


def test_chance_is_not_inherited(running, server, tmp_path) -> None:
    """Two processes of one server draw different numbers, from NumPy's generator too."""
    fork = server("probe.__main__", "numpy.random")
    drawn = []
    for _ in range(2):
        assert running.start(_command(tmp_path, fork)).wait(20) == 0
        drawn.append(_told(tmp_path)["drawn"])
    assert len({*drawn[0], *drawn[1]}) == 4


def test_nothing_begins_before_the_supervisor_knows_it(running, server, tmp_path) -> None:
    """Without the word at the gate the new process ends, and its module has not run."""
    fork = server()
    gate, say_go = os.pipe()
    nothing = os.open(os.devnull, os.O_RDWR)
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    pid = fork.fork({"argv": ["probe"]}, (nothing, log, log), gate)
    for descriptor in (gate, say_go, nothing, log):
        os.close(descriptor)
    assert Forked(pid).wait() == 125
    assert (tmp_path / "log").read_text() == ""


def test_it_dies_with_the_supervisor(tmp_path) -> None:
    """A supervisor that is killed takes what was forked for it along, by the signal that it named."""
    script = tmp_path / "supervisor.py"
    script.write_text(SUPERVISOR)
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "__init__.py").touch()
    (tmp_path / "probe" / "__main__.py").write_text(PROBE)
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as outer:
        assert outer.stdout is not None
        pids = [int(word) for word in outer.stdout.readline().split()]
        descriptors = [os.pidfd_open(pid) for pid in pids]
        outer.kill()
    assert [_ended(descriptor) for descriptor in descriptors] == [True, True]


def _ended(descriptor: int) -> bool:
    """Whether a process ends by itself; none is left."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    ended = bool(poller.poll(10_000))
    if not ended:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    os.close(descriptor)
    return ended


SUPERVISOR = """
import os, signal, sys, threading, time
from pathlib import Path
from meshgate_deploy import processes, server_rows
from meshgate_deploy.forking import ForkServer
from meshgate_deploy.processes import Command, Processes

folder = Path(sys.argv[1])
processes.become_subreaper()
running = Processes(record=folder / "processes.json")

def start(descriptor):
    argv = (sys.executable, "-m", "meshgate_deploy.fork_server", str(descriptor), str(folder))
    env = {"PYTHONPATH": str(folder), "PATH": os.defpath}
    command = Command(name="s", argv=(*argv, "probe.__main__"), cwd=folder, env=env,
                      log=folder / "server.log", descriptors=(descriptor,))
    return running.start(command).stop

server = ForkServer((), start, threading.Event())
server.open()
child = running.start(Command(name="p", argv=("false",), cwd=folder, env={}, log=folder / "log",
                              fork=(server, ("probe", "stay")), death_signal=signal.SIGTERM))
while "to stderr" not in (folder / "log").read_text():
    time.sleep(0.01)
print(child.pid, *[pid for pid in running.pids if pid != child.pid], flush=True)
signal.pause()
"""


def test_without_its_server_a_process_is_executed(running, server, tmp_path) -> None:
    """Killed: the start succeeds all the same, and the next one is forked again."""
    fork = server()
    assert isinstance(running.start(_command(tmp_path, fork)).popen, Forked)
    for pid in _named(tmp_path, "fork_server"):
        os.kill(pid, signal.SIGKILL)
    second = running.start(_command(tmp_path, fork, "3"))
    assert not isinstance(second.popen, Forked)
    assert second.wait(20) == 3
    third = running.start(_command(tmp_path, fork, "4"))
    assert isinstance(third.popen, Forked)
    assert third.wait(20) == 4


def test_a_server_that_cannot_fork_safely_makes_nothing(running, server, tmp_path) -> None:
    """A thread that an import left would be missing in every process: they are executed, the log says why."""
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    child = running.start(_command(tmp_path, server("probe.__main__", "threaded"), "5"))
    assert not isinstance(child.popen, Forked)
    assert child.wait(20) == 5
    assert "an import started threads" in (tmp_path / "server.log").read_text()


def test_nobody_waits_for_imports_that_nobody_wants_any_more(running, server, tmp_path) -> None:
    """A start that is cancelled meanwhile does not wait for the server."""
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    fork = server("slow")
    fork.cancelled.set()
    nothing = os.open(os.devnull, os.O_RDWR)
    with pytest.raises(ForkServerGone):
        fork.fork({}, (nothing, nothing, nothing), nothing)
    os.close(nothing)


MANIFEST = {
    "apiVersion": "meshgate/v1", "mesh": "m", "trustDomain": "m.example",
    "programs": {"desk": {"run": ["python", "desk.py"]}},
    "toolhosts": {
        "python": {"tools": ["tools:refund"]}, "server": {"mcp": {"command": ["mcp-server-time"]}},
        "loud": {"tools": ["tools:refund"], "env": ["CREWAI_STORAGE_DIR"]},
    },
}  # fmt: skip


def test_who_is_forked_from_which_server(running, tmp_path) -> None:
    """CrewAI is in the processes of hosts that need it, in no other; what imports read must be as it was."""
    shell = {"PATH": os.defpath, "CREWAI_STORAGE_DIR": str(tmp_path), "LANG": "C.UTF-8"}
    environment = Environment(project=tmp_path, environ=shell)
    manifest = Manifest.model_validate(MANIFEST)
    preloaded = Preloaded(
        manifest=manifest, state=prepare_state(tmp_path), processes=running, environment=environment,
        cancelled=threading.Event(),
    )  # fmt: skip
    argv = ("python", "-I", "-u", "-m", "meshgate_x", "--config", "c")
    taken = {
        app: preloaded.fork(app, argv, environment.for_host(manifest, app))
        for app in ("gateway", "desk", "python", "server", "loud")
    }
    assert taken.pop("loud") is None
    assert {tuple(words) for _, words in taken.values()} == {("meshgate_x", "--config", "c")}
    assert {app: "crewai.tools" in server.modules for app, (server, _) in taken.items()} == {
        "gateway": False, "desk": False, "python": True, "server": False,
    }  # fmt: skip
    assert preloaded.fork("gateway", argv, {**environment.base(), "SSL_CERT_FILE": "/else"}) is None


def _named(folder: Path, word: str) -> list[int]:
    """Servers of a folder, by their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if word in words and str(folder) in words:
            found.append(int(entry.parent.name))
    return found


def test_what_ps_shows_of_a_fork_server_is_how_it_is(server: Make, running: Processes) -> None:
    """While it imports, ready before anybody asked it, killed unnoticed, started again, closed."""
    one = server()

    def row() -> dict[str, Any]:
        return server_rows.row("server", one, running, about="forks probes")

    assert row()["state"] in ("starting", "ready")
    _until(lambda: row()["state"] == "ready")
    shown = row()
    assert (shown["restarts"], shown["detail"], shown["up_seconds"] >= 0) == (0, "forks probes", True)
    assert (
        Path(f"/proc/{shown['pid']}/cmdline").read_bytes().split(b"\0")[3] == b"meshgate_deploy.fork_server"
    )
    os.kill(shown["pid"], signal.SIGKILL)
    _until(lambda: row()["state"] == "ended")
    assert row()["pid"] is None
    with pytest.raises(ForkServerGone):
        one.fork({}, (0, 1, 2), 0)
    _until(lambda: row()["state"] == "ready")
    assert row()["restarts"] == 1
    one.close()
    assert row()["state"] == "stopped"


def _until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
