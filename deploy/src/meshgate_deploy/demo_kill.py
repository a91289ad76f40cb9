"""The demo's accident: the process of the agent `triage` is killed while tool call 6 is under way.

The call is held from outside: the ticket that it reads is a named pipe, so the read waits until
somebody writes, and a reader at the pipe says that the call has begun. Nothing in the product
knows of it.
"""

import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshgate_deploy.control import ask_once
from meshgate_deploy.state import State

HELD_TICKET = 4  # the fifth: listing is call 1, so reading it is call 6
POLL_SECONDS = 0.01
REJOIN_SECONDS = 90.0  # a restarted agent may import CrewAI anew; the tool may take 120 s
VICTIM = "triage"

Say = Callable[[str], None]


@dataclass(slots=True)
class Accident:
    """What happened.

    Attributes:
        run_id: of the task that the agent was at work on, a run of its own.
        killed_at: Unix seconds of the kill; 0 when the call was never reached.
        attempts: how many the run needed.
        replayed: finished steps that the last attempt took over from those before it.
        live: steps that the last attempt made itself.
        recovery_seconds: from the kill to the first step that the next attempt finished.
    """

    run_id: str = ""
    killed_at: float = 0.0
    attempts: int = 1
    replayed: int = 0
    live: int = 0
    recovery_seconds: float = 0.0
    _text: str = field(default="", repr=False)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "id": self.run_id,
            "attempts": self.attempts,
            "replayed_steps": self.replayed,
            "live_steps": self.live,
            "recovery_seconds": round(self.recovery_seconds, 2),
        }


@contextlib.contextmanager
def held(ticket: Path) -> Iterator[str]:
    """Puts a named pipe in a ticket's place; gives its text."""
    text = ticket.read_text()
    ticket.unlink()
    os.mkfifo(ticket, 0o600)
    try:
        yield text
    finally:
        _restore(ticket, text)


@contextlib.contextmanager
def accident(state: State, run_id: str, tickets: Sequence[Path], say: Say) -> Iterator[Accident]:
    """While it lasts, the agent's process dies once, in tool call 6."""
    happened, over = Accident(), threading.Event()
    ticket = tickets[HELD_TICKET]
    with held(ticket) as text:
        thread = threading.Thread(target=_play, args=(state, run_id, ticket, text, happened, over, say))
        thread.start()
        try:
            yield happened
        finally:
            over.set()
            thread.join()
    if happened.run_id:
        _measure(state, happened.run_id, happened)


def _play(  # noqa: PLR0913, PLR0917 - a thread's arguments
    state: State, run_id: str, ticket: Path, text: str, happened: Accident, over: threading.Event, say: Say
) -> None:
    pipe = _reader_comes(ticket, over)
    if pipe is None:
        return
    try:
        happened.run_id = _task(state, run_id)
        victim = _program(state, happened.run_id)
        if victim is not None:
            happened.killed_at = time.time()
            os.kill(victim, signal.SIGKILL)
            say(f"tool call 6 is under way: killed {VICTIM}'s process (pid {victim}) with SIGKILL")
            _await_second(state, happened.run_id, over)
        os.write(pipe, text.encode())
    finally:
        os.close(pipe)
    _restore(ticket, text)


def _reader_comes(ticket: Path, over: threading.Event) -> int | None:
    """The pipe's writing end, once somebody reads at the other."""
    while not over.wait(POLL_SECONDS):
        try:
            return os.open(ticket, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads yet
                return None
    return None


def _task(state: State, run_id: str) -> str:
    """The run of the task that the crew's run gave to the agent."""
    query = {"op": "admin", "method": "ListRuns", "request": {"limit": 20}}
    rows = ask_once(state.control, query)["runs"]
    (found,) = [
        row["run_id"]
        for row in rows
        if row["parent_run"] == run_id and row["app"].rpartition("/")[2] == VICTIM
    ]
    return str(found)


def _program(state: State, run_id: str) -> int | None:
    """The process that is at work on a run."""
    rows = ask_once(state.control, {"op": "status"})["processes"]
    programs = [program for row in rows for program in row.get("programs", ())]
    return next((program["pid"] for program in programs if program["run_id"] == run_id), None)


def _await_second(state: State, run_id: str, over: threading.Event) -> None:
    """Until the next attempt has asked for the same call, and joined it."""
    give_up_at = time.monotonic() + REJOIN_SECONDS
    while not over.wait(POLL_SECONDS * 5) and time.monotonic() < give_up_at:
        found = _shown(state, run_id)
        if any(row["state"] == "sent" and int(row["attempt"]) > 1 for row in found["steps"]):
            return


def _measure(state: State, run_id: str, happened: Accident) -> None:
    found = _shown(state, run_id)
    happened.attempts = int(found["run"]["attempt"])
    made = [int(row["attempt"]) for row in found["steps"]]
    happened.live = sum(attempt == happened.attempts for attempt in made)
    happened.replayed = len(made) - happened.live
    if happened.killed_at:
        happened.recovery_seconds = max(0.0, _first_step(state, run_id, happened) - happened.killed_at)


def _first_step(state: State, run_id: str, happened: Accident) -> float:
    """When the last attempt got the answer of its first live step."""
    import base64
    import json
    from datetime import datetime

    query = {"op": "admin", "method": "QueryRecords", "request": {"limit": 10_000, "kind": "outcome"}}
    for encoded in ask_once(state.control, query)["records_json"]:
        record = json.loads(base64.b64decode(encoded))
        at = datetime.fromisoformat(record["time"]).timestamp()
        if record["run_id"] == run_id and at > happened.killed_at:
            return at
    return happened.killed_at


def _shown(state: State, run_id: str) -> dict[str, Any]:
    return ask_once(state.control, {"op": "admin", "method": "ShowRun", "request": {"run_id": run_id}})


def _restore(ticket: Path, text: str) -> None:
    made = ticket.with_suffix(".new")
    made.write_text(text)
    made.replace(ticket)
