"""What a program left in a session of its own ends once its launcher or worker was killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from meshgate_agents.launcher import children
from meshgate_agents.launcher.peers import become_subreaper
from meshgate_deploy import state, strays
from meshgate_deploy.services import Service, Services

SLEEPER = "import os, sys, time; os.setsid(); open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
LEAVES = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {SLEEPER!r}, sys.argv[1]])
while not (os.path.exists(sys.argv[1]) and os.path.getsize(sys.argv[1])): time.sleep(0.01)
time.sleep(600)
"""
WATCHER = f"""
import os, sys, time
from meshgate_agents.launcher.children import Children, Program
from meshgate_agents.launcher.peers import become_subreaper
become_subreaper()
program = Program(command=(sys.executable, "-c", {LEAVES!r}, sys.argv[1]))
child = Children().start(program, {{**os.environ, "MESHGATE_SOCKET": sys.argv[2] + "/a/s"}})
open(sys.argv[1] + ".program", "w").write(str(child.pid))
time.sleep(600)
"""


def eventually(check, what: str):
    end = time.monotonic() + 60
    while not (found := check()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("end", [strays.end_adopted, strays.end_everywhere])
def test_nothing_of_a_killed_worker_works_on(tmp_path, end) -> None:
    """The kernel kills the program, the supervisor what that left; another mesh's processes stay."""
    become_subreaper()
    mark, sockets = tmp_path / "pid", tmp_path / "s"
    watcher = subprocess.Popen([sys.executable, "-c", WATCHER, str(mark), str(sockets)])
    orphan = int(eventually(lambda: mark.exists() and mark.read_text(), "it has left"))
    program = int(eventually(lambda: Path(f"{mark}.program").read_text(), "the program is known"))
    watcher.kill()
    watcher.wait()
    eventually(lambda: not lives(program), "the program went with who watched over it")
    assert lives(orphan)
    assert end(tmp_path / "other") == 0
    assert lives(orphan)
    eventually(lambda: end(sockets), "it is found")
    eventually(lambda: not lives(orphan), "it is ended")
    for pid in (program, orphan):
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            continue


def test_a_stray_without_its_variables_is_known_by_its_mark(tmp_path) -> None:
    """Also a known process has it, or one of ours has not: they stay."""
    become_subreaper()
    mark = "import ctypes, time; ctypes.CDLL(None).prctl(38, 1, 0, 0, 0); "
    sleep = "print('ready', flush=True); time.sleep(600)"
    codes = (mark + sleep, mark + sleep, "import time; " + sleep)
    left, known, plain = made = [
        subprocess.Popen([sys.executable, "-c", code], env={}, stdout=subprocess.PIPE) for code in codes
    ]
    try:
        for process in made:
            assert process.stdout is not None
            process.stdout.readline()
        assert strays.end_adopted(tmp_path, known=lambda: [known.pid]) == 1
        assert left.wait(30) == -signal.SIGKILL
        assert (known.poll(), plain.poll()) == (None, None)
    finally:
        for process in made:
            process.kill()
            process.communicate()


def test_a_copy_of_a_project_ends_nothing_of_the_original(tmp_path) -> None:
    """Also where its sockets lie elsewhere, for the length of its path: a copy has a folder of its own."""
    original, copy = tmp_path / ("o" * 100), tmp_path / ("c" * 100)
    original.mkdir()
    made = state.prepare_state(original)
    assert state.prepare_state(original) == made == state.open_state(original)
    shutil.copytree(original, copy)
    program = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env={**os.environ, "MESHGATE_SOCKET": f"{made.sockets}/a/s"},
    )
    others = None
    try:
        assert state.open_state(copy).control != made.control
        others = state.prepare_state(copy)
        assert others == state.prepare_state(copy) == state.open_state(copy)
        assert strays.end_everywhere(others.sockets) == 0
        assert program.poll() is None
        eventually(lambda: strays.end_everywhere(made.sockets), "the original ends its own")
    finally:
        program.kill()
        program.wait()
        shutil.rmtree(made.sockets)
        if others is not None and others.sockets != made.sockets:
            shutil.rmtree(others.sockets)


def test_a_program_goes_first_when_memory_is_out(tmp_path) -> None:
    """The kernel ends it, not the worker above it with every other run."""
    made = children.Children()
    program = children.Program(command=(sys.executable, "-c", "import time; time.sleep(600)"))
    child = made.start(program, dict(os.environ))
    try:
        score = Path(f"/proc/{child.pid}/oom_score_adj")
        eventually(lambda: score.read_text().strip() == "500", "it is the first to go")
        assert int(Path("/proc/self/oom_score_adj").read_text()) < 500
    finally:
        made.kill(child)
        assert child.popen.wait() == -signal.SIGKILL


def test_whoever_asks_is_not_ended(tmp_path) -> None:
    """`up` in a shell that a program left behind: what it would end is itself, so it leaves that alone."""
    asks = (
        "import sys, pathlib, meshgate_deploy.strays as s; print(s.end_everywhere(pathlib.Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", asks, str(tmp_path)], env={**os.environ, "MESHGATE_SOCKET": f"{tmp_path}/a/s"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr


def test_the_gateway_goes_after_those_who_have_a_last_word_for_it() -> None:
    """A worker that ends says so to the gateway; else `down` would count as a lost attempt."""
    made = object.__new__(Services)
    names = ["sentry", "opa", "gateway", "dapr-desk", "desk", "orders"]
    made._services = [Service(name, lambda _fresh: None) for name in names]
    told = [[service.name for service in group] for group in made._groups()]
    assert told == [["desk", "orders"], ["opa", "gateway"], ["dapr-desk"], ["sentry"]]
