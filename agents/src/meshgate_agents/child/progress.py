"""Tells whoever wants to know, in this process, what becomes of the steps. Says nothing of their content."""

import threading
from collections.abc import Callable
from typing import Any

Observer = Callable[[dict[str, Any]], None]


class _Watched:
    def __init__(self) -> None:
        self.attempt = 0
        self.observer: Observer | None = None
        self.lock = threading.Lock()


_watched = _Watched()


def begun(attempt: int) -> None:
    """The launcher named the attempt that this process works on."""
    _watched.attempt = attempt


def observe(observer: Observer) -> None:
    """From now on `observer` is told, from whichever thread makes a step."""
    _watched.observer = observer
    _tell({"event": "attempt_started"})


def step(*, kind: str, what: str, replayed: bool) -> None:
    """A step has its answer."""
    _tell({"event": "step_replayed" if replayed else "step_finished", "kind": kind, "what": what})


def _tell(event: dict[str, Any]) -> None:
    observer = _watched.observer
    if observer is not None:
        with _watched.lock:
            observer({**event, "attempt": _watched.attempt})
