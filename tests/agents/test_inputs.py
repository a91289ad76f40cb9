"""The files with the inputs of runs go with their processes, killed ones too."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from meshgate_agents.launcher import inputs

KILLED = """
import os, signal, sys
from pathlib import Path
from meshgate_agents.launcher import inputs
with inputs.written(Path(sys.argv[1]), b"secret"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_processs_input_is_swept(tmp_path) -> None:
    """By the next process; that of a living one stays, and so does what is no input."""
    (tmp_path / "input-of-somebody.json").touch()
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    with inputs.written(tmp_path, b"mine") as mine:
        assert len(list(tmp_path.iterdir())) == 3
        assert inputs.sweep(tmp_path) == 1
        assert {path.name for path in tmp_path.iterdir()} == {"input-of-somebody.json", mine.name}
        assert mine.stat().st_mode & 0o777 == 0o600
        again = Path(str(mine).replace(f"-{os.getpid()}-", f"-{os.getpid()}-9"))  # the pid of another process
        again.touch()
        assert inputs.sweep(tmp_path) == 1
    assert not mine.exists()
