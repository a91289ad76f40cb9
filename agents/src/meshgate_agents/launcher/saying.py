"""Lines for people on standard error, or at a terminal that a run was lent."""

import os
import select
from contextlib import suppress

SAY_MS = 200


def say(text: str) -> None:
    """One line for people, in one write."""
    os.write(2, _line(text))


def say_soon(text: str, *, to: int) -> None:
    """The same elsewhere, unless who reads there has gone, or stands still: nobody waits for that."""
    poller = select.poll()
    poller.register(to, select.POLLOUT)
    with suppress(OSError):
        if poller.poll(SAY_MS):
            os.write(to, _line(text)[-select.PIPE_BUF :])  # a pipe that can be written to has room for it


def _line(text: str) -> bytes:
    return f"meshgate: {text}\n".encode("utf-8", "replace")
