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
