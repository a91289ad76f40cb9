"""What a worker says of its programs is believed as far as those processes are there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from meshgate_deploy import announced
from meshgate_identities import attestation


def written(folder: Path, *rows: object) -> Path:
    path = folder / "desk.ready"
    path.write_text(json.dumps({"runs": rows}))
    return path


def test_runs_and_programs_are_read(tmp_path) -> None:
    """A run that waits for its turn or rests has no program."""
    own = attestation.process(os.getpid())
    path = written(
        tmp_path,
        {"run_id": "plays", "attempt": 2, "pid": own.pid, "started": own.start_ticks},
        {"run_id": "rests", "attempt": 1},
        {"run_id": "waits"},
    )
    assert announced.row(path) == {
        "runs": [
            {"run_id": "plays", "attempt": 2},
            {"run_id": "rests", "attempt": 1},
            {"run_id": "waits", "attempt": None},
        ],
        "programs": [{"run_id": "plays", "attempt": 2, "pid": own.pid}],
    }


def test_a_process_that_has_the_pid_now_is_not_the_program(tmp_path) -> None:
    """The worker was killed, its last word stays, and the kernel gave the number to another."""
    own = attestation.process(os.getpid())
    path = written(tmp_path, {"run_id": "r", "attempt": 1, "pid": own.pid, "started": own.start_ticks - 1})
    assert announced.row(path) == {"runs": [{"run_id": "r", "attempt": 1}], "programs": []}


def test_a_program_that_only_waits_to_be_reaped_has_ended(tmp_path) -> None:
    """It holds no memory and does nothing."""
    with subprocess.Popen([sys.executable, "-c", ""]) as program:
        started = attestation.process(program.pid).start_ticks
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        path = written(tmp_path, {"run_id": "r", "attempt": 1, "pid": program.pid, "started": started})
        assert announced.row(path)["programs"] == []


@pytest.mark.parametrize("text", [None, "", "[]", '{"runs": ["r"]}', '{"runs": [{"run_id": "r", "pid": 1}]}'])
def test_a_file_that_says_nothing_useful_is_no_failure(tmp_path, text) -> None:
    """None, half of one, or one of another version."""
    path = tmp_path / "desk.ready"
    if text is not None:
        path.write_text(text)
    assert announced.row(path) == {"runs": [], "programs": []}
