"""A supervisor in the background: started, waited for, stopped."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from meshgate_identities import attestation

from meshgate_deploy import processes
from meshgate_deploy.control import ask_once, connect, converse, reachable
from meshgate_deploy.errors import Cancelled, DependencyUnavailable, MeshError, UsageError
from meshgate_deploy.state import State, open_state, prepare_state

POLL_SECONDS = 0.05
STOP_SECONDS = 60.0


def start_detached(project: Path, say: Callable[[str], None]) -> None:
    """Starts `meshgate up` in a session of its own and shows its progress until it is ready.

    Raises:
        MeshError: it ended before; its own message was shown.
        Cancelled: Ctrl-C; what was started has ended.
    """
    state = prepare_state(project)
    if reachable(state.control):
        raise DependencyUnavailable("the mesh is up already", next_step="meshgate ps, or meshgate down")
    log = state.log("supervisor")
    mark = log.stat().st_size if log.exists() else 0
    argv = [sys.executable, "-u", "-P", "-m", "meshgate_deploy.cli", "up", "--project", str(state.project)]
    with log.open("ab") as output:
        log.chmod(0o600)
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=state.project,
            start_new_session=True,
        )
    try:
        _follow(child, state, mark, say)
    except KeyboardInterrupt:
        child.terminate()  # it has a session of its own, so the terminal's Ctrl-C did not reach it
        child.wait()
        raise Cancelled("the start was cancelled", next_step="meshgate up") from None


def _follow(child: "subprocess.Popen[bytes]", state: State, mark: int, say: Callable[[str], None]) -> None:
    """Shows what a starting supervisor logs until it is ready."""
    log = state.log("supervisor")
    with log.open("rb") as lines:
        lines.seek(mark)
        while True:
            ended = child.poll() is not None
            while line := lines.readline():
                say(line.decode("utf-8", "replace").rstrip())
            if ended:
                error: MeshError = UsageError(
                    "the mesh did not come up", next_step="meshgate logs supervisor"
                )
                error.exit_code = child.returncode or 1
                raise error
            if _ready(state):
                return
            time.sleep(POLL_SECONDS)


def stop(state: State, say: Callable[[str], None]) -> None:
    """Asks the supervisor to end and waits until it is gone; cleans up after one that crashed.

    Raises:
        DependencyUnavailable: it does not end.
    """
    if not reachable(state.control):
        left = processes.clean_leftovers(state.run / "processes.json")
        if left:
            say("the supervisor was gone; ended what it left: " + ", ".join(left))
        else:
            say("the mesh is not up: nothing to take down")
        return
    with connect(state.control) as sock:
        supervisor = attestation.peer(sock).process
        answer = next(converse(sock, {"op": "down"}, ()))
    give_up_at = time.monotonic() + STOP_SECONDS
    while processes.alive(supervisor):
        if time.monotonic() > give_up_at:
            raise DependencyUnavailable(
                f"the supervisor, pid {answer['pid']}, did not end within {STOP_SECONDS:g} s",
                next_step="meshgate ps",
            )
        time.sleep(POLL_SECONDS)
    say("the mesh is down")


def _ready(state: State) -> bool:
    path = open_state(state.project).control
    if not reachable(path):
        return False
    try:
        return bool(ask_once(path, {"op": "status"})["ready"])
    except (MeshError, OSError):
        return False
