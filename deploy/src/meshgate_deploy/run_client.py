"""`meshgate run`: hands our standard streams and signals to the supervisor, and waits for the end."""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from meshgate_deploy import detached
from meshgate_deploy.control import connect, converse, reachable
from meshgate_deploy.environment import ASKED
from meshgate_deploy.errors import EXIT_OURS, DependencyUnavailable, UsageError
from meshgate_deploy.state import State, open_state

SIGNALS = {signal.SIGINT: "INT", signal.SIGTERM: "TERM", signal.SIGHUP: "HUP"}


def run_program(  # noqa: PLR0913 - the command's own options
    *,
    project: Path,
    app: str | None,
    run_id: str | None,
    command: Sequence[str],
    detach: bool,
    say: Callable[[str], None],
    replay: bool = False,
    cwd: Path | None = None,
) -> int:
    """Runs a command as an agent. Brings the mesh up for it when none is up.

    Returns:
        The program's exit status, 125 for a failure of ours.
    """
    _check_words(command)
    state = open_state(project)
    ours = not reachable(state.control)
    if ours:
        say("no mesh is up: starting one for this run")
        detached.start_detached(project, say)
        state = open_state(project)
    request = {
        "op": "run", "app": app, "run_id": run_id, "command": list(command), "cwd": str(cwd or Path.cwd()),
        "replay": replay,
        "asker": {name: os.environ[name] for name in ASKED if name in os.environ},
    }  # fmt: skip
    try:
        return _converse(state, request, say if detach else None)
    finally:
        if ours and not detach:
            detached.stop(state, say)


def _check_words(command: Sequence[str]) -> None:
    """A command is kept as the run's input, which is JSON.

    Raises:
        UsageError: bytes that are no text.
    """
    odd = [word for word in command if not word.isascii() and word != word.encode(errors="replace").decode()]
    if odd:
        raise UsageError(f"{odd[0]!r} is no UTF-8", next_step="another name for what it names")


def _converse(state: State, request: dict[str, Any], say: Callable[[str], None] | None) -> int:
    """Waits for the run's end; with `say` it is a detached one, and only its start is told."""
    streams, run_id = () if say else (0, 1, 2), request["run_id"]
    with connect(state.control) as sock, _forwarding(sock):
        for answer in converse(sock, request, streams):
            run_id = answer.get("run_id", run_id)
            if "exit" in answer:
                return int(answer["exit"])
            if say:
                sys.stdout.write(f"{answer['run_id']}\n")
                say(f"next: meshgate logs -f {answer['app']}")
                return 0
    raise DependencyUnavailable(
        "the supervisor ended during the run",
        why="" if request["replay"] else "the run goes on without its terminal when the mesh is up again",
        next_step=f"meshgate up, then meshgate runs {'replay' if request['replay'] else 'watch'} {run_id}",
    )


@contextlib.contextmanager
def _forwarding(sock: socket.socket) -> Iterator[None]:
    """Sends our signals over; a terminal's Ctrl-C reaches only us, for the program has its own session."""

    def forward(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            sock.send(json.dumps({"signal": SIGNALS[signal.Signals(number)]}).encode() + b"\n")

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["EXIT_OURS", "run_program"]
