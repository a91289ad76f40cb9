"""A run at a terminal waits for a gateway that is away, and says so; without a terminal it gives up."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
import time

import pytest

SECONDS = 60


@pytest.fixture
def begin(desk):
    """Starts a launcher whose messages go to a terminal; ends it."""
    started = []

    def start():
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            desk.argv(sys.executable, "-c", "pass", kind="program", expects_report=False, run_id="r",
                      step_deadline_seconds=0.5),
            cwd=desk.tmp, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        told: list[bytes] = []
        threading.Thread(target=_read, args=(ours, told), daemon=True).start()
        started.append(process)
        return process, lambda: b"".join(told).decode()

    yield start
    for process in started:
        process.kill()
        process.wait()


def _read(terminal: int, told: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # the other end is closed
        while data := os.read(terminal, 4096):
            told.append(data)


def eventually(check, what: str) -> None:
    end = time.monotonic() + SECONDS
    while not check():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_a_gateway_that_comes_back_is_waited_for(desk, begin) -> None:
    """However long: the message says what it waits for, and the run is played."""
    desk.gateway.away_at_the_start.set()
    process, told = begin()
    eventually(lambda: told().count("waiting for the gateway") >= 2, "it says so, again and again")
    desk.gateway.away_at_the_start.clear()
    assert process.wait(SECONDS) == 0
    assert [state for state, _ in desk.gateway.finished] == ["completed"]


def test_a_person_who_waits_no_longer_leaves_the_run(desk, begin) -> None:
    """Ctrl-C is heard, and what to do with the run is said."""
    desk.gateway.away_at_the_start.set()
    process, told = begin()
    eventually(lambda: "waiting for the gateway" in told(), "it waits")
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 125
    eventually(lambda: "meshgate run --run-id r" in told(), "how to go on")
    assert desk.gateway.finished == []


def test_without_a_terminal_it_gives_up(desk) -> None:
    """A script is told by the status, after the patience of a step; the run is left."""
    desk.gateway.away_at_the_start.set()
    ended = desk.run(sys.executable, "-c", "pass", kind="program", step_deadline_seconds=0.5)
    assert ended.status == 125
    assert "the gateway gave no answer" in ended.err
    assert desk.gateway.finished == []
