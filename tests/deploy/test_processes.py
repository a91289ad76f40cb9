"""Processes are started, watched and ended by pid and start time, and none is left."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from meshgate_deploy.processes import Child, Command, Processes, alive, clean_leftovers, kill_session, tail
from meshgate_identities import attestation

# Starts a grandchild that ignores SIGTERM and leaves the process group, not the session.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
p = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
print(p.pid, flush=True)
time.sleep(600)
"""
SUPERVISOR = """
import pathlib, sys, time
from meshgate_deploy.processes import Command, Processes
folder = pathlib.Path(sys.argv[1])
processes = Processes(record=folder / "processes.json")
argv = [sys.executable, "-c", sys.argv[2]]
processes.start(Command(name="victim", argv=argv, env={}, cwd=folder, log=folder / "log"))
print("started", flush=True)
time.sleep(600)
"""


def _until(condition, seconds=10.0):
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


@pytest.fixture
def processes(tmp_path):
    """A manager whose processes are all gone after the test."""
    made = Processes(record=tmp_path / "processes.json")
    yield made
    made.close()


def _command(folder, code, **more) -> Command:
    return Command(
        name="it", argv=[sys.executable, "-c", code], env={"A": "1"}, cwd=folder, log=folder / "log", **more
    )


def _grandchild(child: Child) -> attestation.Process:
    _until(lambda: tail(child.command.log).endswith("\n"))
    return attestation.process(int(tail(child.command.log)))


def test_a_process_gets_exactly_its_environment_and_a_session(processes, tmp_path):
    """Nothing of ours leaks in; it leads a session of its own; its status is told."""
    child = processes.start(
        _command(tmp_path, "import os; print(sorted(os.environ), os.getsid(0)); raise SystemExit(3)")
    )
    assert child.wait(10) == 3
    assert tail(tmp_path / "log").split("] ") == ["['A', 'LC_CTYPE'", f"{child.pid}\n"]
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_stop_ends_a_stubborn_process_with_its_whole_session(processes, tmp_path):
    """SIGTERM is ignored, a grandchild moved to another group: both are gone after the grace."""
    child = processes.start(_command(tmp_path, STUBBORN, grace_seconds=0.1))
    below = _grandchild(child)
    child.stop()
    assert not child.running
    _until(lambda: not alive(below))


def test_a_crashed_supervisor_takes_its_processes_along_or_leaves_a_record(tmp_path):
    """The kernel kills what the supervisor started; what those left is found by the record."""
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path), STUBBORN], stdout=subprocess.PIPE
    )
    assert supervisor.stdout.readline() == b"started\n"
    (row,) = json.loads((tmp_path / "processes.json").read_bytes())
    victim = attestation.Process(row["pid"], row["start_ticks"])
    _until(lambda: tail(tmp_path / "log").endswith("\n"))
    below = attestation.process(int(tail(tmp_path / "log")))
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    _until(lambda: not alive(victim))
    assert alive(below)
    assert clean_leftovers(tmp_path / "processes.json") == ["victim"]
    _until(lambda: not alive(below))
    assert clean_leftovers(tmp_path / "processes.json") == []


def test_a_reused_pid_is_left_alone():
    """A recorded pid that now belongs to a process with another start time is nobody of ours."""
    stranger = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
    )
    try:
        real = attestation.process(stranger.pid)
        assert not kill_session(attestation.Process(real.pid, real.start_ticks - 100))
        assert stranger.poll() is None
    finally:
        os.kill(stranger.pid, signal.SIGKILL)
        stranger.wait()


def test_tail_starts_at_a_line(tmp_path):
    """A cut line is not shown."""
    (tmp_path / "log").write_text("a" * 10 + "\nbb\n")
    assert tail(tmp_path / "log", size=5) == "bb\n"
    assert tail(tmp_path / "none") == ""
