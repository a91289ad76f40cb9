"""The end of an agent's program: all that an interpreter does at its own, but for taking memory apart."""

import gzip
import subprocess
import sys
from pathlib import Path

BUSY = """
import atexit, gzip, sys, threading, time
from meshgate_agents.child.leaving import leave

class Said:
    def __del__(self):
        print("taken apart")

said = Said()
atexit.register(print, "registered first")
atexit.register(lambda: 1 / 0)
text, data, packed = open("text", "w"), open("data", "wb"), gzip.open("packed", "wt")
text.write("written"), data.write(b"written"), packed.write("written")
threading.Thread(target=lambda: (time.sleep(0.2), print("a thread"))).start()
sys.stdout.write("no end of line")
leave()
"""
FULL = """
import sys
from meshgate_agents.child.leaving import leave
sys.stdout = open("/dev/full", "w")
print("lost")
leave()
"""


def _run(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", text], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


def test_threads_registered_functions_and_files_come_to_their_end(tmp_path: Path) -> None:
    """In the interpreter's order; one that fails is told of and changes nothing."""
    done = _run(BUSY, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "no end of linea thread\nregistered first\n"
    assert "ZeroDivisionError" in done.stderr
    assert (tmp_path / "text").read_text() == (tmp_path / "data").read_text() == "written"
    assert gzip.decompress((tmp_path / "packed").read_bytes()) == b"written"


def test_words_that_cannot_be_written_are_no_success(tmp_path: Path) -> None:
    """The status is the interpreter's own for that."""
    assert _run(FULL, tmp_path).returncode == 120


LEFT = """
import crewai, os, time
from _meshgate_child import leaving
os._exit = lambda _status: time.sleep(600)
leaving.leave()
"""
ANOTHER = """
import crewai, os
from _meshgate_child.channel import from_environment
pid = os.fork()
if not pid:
    from_environment().ask({"op": "left"})
    os._exit(0)
other = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
raise SystemExit(3 if other == 0 else 4)
"""
TOLD_LATE = """
import crewai, os, signal, time
from _meshgate_child.channel import from_environment
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(from_environment().ask({"op": "left"})))
os.kill(os.getppid(), signal.SIGTERM)
while not told:  # it may come before it is waited for
    time.sleep(0.02)
raise SystemExit(5)
"""


def test_nobody_waits_for_a_program_that_has_left(desk) -> None:
    """All that is left of it is the kernel's work; what does not end is killed."""
    ended = desk.python(LEFT)
    assert (ended.status, desk.gateway.finished) == (0, [("completed", "exit status 0")])


def test_only_the_program_itself_can_have_left(desk) -> None:
    """A process that it started, as a wrapper does, ends nothing by that."""
    ended = desk.python(ANOTHER)
    assert (ended.status, desk.gateway.finished) == (3, [("failed", "exit status 3")]), ended.err


def test_who_was_told_to_end_has_not_left(desk) -> None:
    """A signal came first: the run is cancelled, whatever the program says then."""
    desk.server = None  # so that the launcher is its parent
    ended = desk.python(TOLD_LATE)
    assert (ended.status, desk.gateway.finished) == (
        5,
        [("cancelled", "cancelled by a signal, exit status 5")],
    ), ended.err
