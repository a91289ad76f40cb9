"""Runs one tool body on a thread of its own, with a deadline.

Python cannot stop a thread. Past the deadline the caller gets its answer and the body goes on;
what it gives in the end is a late outcome. The threads are daemons: a body that hangs never
keeps the process from ending.
"""

import contextvars
import json
import logging
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from meshgate_toolhost import context, results
from meshgate_toolhost.errors import ToolError, ToolRaised
from meshgate_toolhost.model import Arguments, Failure, LoadedTool, Outcome, TakenCall

MAX_MESSAGE_CHARACTERS = 500  # one line for a model

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """A verified call, ready to run.

    Attributes:
        withheld: values of secrets that must not appear in a failure's message.
    """

    call: TakenCall
    tool: LoadedTool
    arguments: Arguments
    max_result_bytes: int
    withheld: tuple[str, ...] = ()


class Execution:
    """One body under way."""

    def __init__(self, job: Job, *, on_late: Callable[[Outcome], None]) -> None:
        self._job = job
        self._on_late = on_late
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._outcome: Outcome | None = None
        self._abandoned = False

    def start(self) -> None:
        """Begins the body."""
        name = f"tool-{self._job.call.call_id[:12]}"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def wait(self, seconds: float) -> Outcome | None:
        """The outcome; None past the deadline: then `on_late` will get it."""
        self._done.wait(max(seconds, 0.0))
        with self._lock:
            self._abandoned = self._outcome is None
            return self._outcome

    @property
    def running(self) -> bool:
        """Whether the body has not come to its end."""
        return not self._done.is_set()

    def _run(self) -> None:
        outcome = contextvars.Context().run(_outcome, self._job)
        with self._lock:
            self._outcome = outcome
            late = self._abandoned
        self._done.set()
        if late:
            _log.warning("tool.late", extra={"call_id": self._job.call.call_id})
            self._on_late(outcome)


def _outcome(job: Job) -> Outcome:
    context.set_idempotency_key(job.call.idempotency_key)
    try:
        return results.encode(_value(job), limit_bytes=job.max_result_bytes)
    except ToolError as error:
        where = "".join(traceback.format_exception(error.__cause__ or error))
        extra = {"call_id": job.call.call_id, "class": error.error_class}
        _log.warning("tool.failed", extra={**extra, "traceback": redact(where, job.withheld)})
        return Failure(error.error_class, _line(redact(str(error), job.withheld)))


def _value(job: Job) -> object:
    try:
        return job.tool.run(job.arguments)
    except ToolError:
        raise
    except BaseException as error:  # SystemExit too: whatever a tool raises is its outcome
        raise ToolRaised(f"{type(error).__name__}: {error}") from error


def redact(text: str, withheld: tuple[str, ...]) -> str:
    """The text without the host's secrets. Does not find them in another encoding."""
    for secret in sorted(withheld, key=len, reverse=True):
        text = text.replace(secret, "[secret]")
    return text


def _line(text: str) -> str:
    """One line, cut to size."""
    text = " ".join(text.encode(errors="replace").decode().split())
    if len(text) > MAX_MESSAGE_CHARACTERS:
        return text[: MAX_MESSAGE_CHARACTERS - 1] + "…"
    return text


def parse_arguments(data: bytes) -> Arguments:
    """The arguments the gateway decided on.

    Raises:
        ValueError: not one JSON object; the gateway never sends that.
    """
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("arguments are no JSON object")  # noqa: TRY004 - one kind for the caller
    return value
