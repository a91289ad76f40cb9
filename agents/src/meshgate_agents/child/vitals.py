"""Signs of life to the launcher, and the last words of a program that dies of an exception."""

import atexit
import os
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

from .channel import Channel

if TYPE_CHECKING:
    from types import TracebackType

BEAT_SECONDS = 2.0
MAX_TRACEBACK_CHARACTERS = 60_000


def begin(channel: Channel) -> None:
    """Starts both, in this process and in those it forks."""
    _start(channel)
    # Registered when CrewAI begins to be imported, so nearly the last of its kind to run: the beats end
    # with the threads, while objects may still be taken down for long.
    atexit.register(channel.ask, {"op": "leaving"})
    # Not at once: most forks execute something else, and that gives no sign of life.
    os.register_at_fork(after_in_child=lambda: _start(channel, BEAT_SECONDS))
    _tell_exceptions(channel)


def _start(channel: Channel, delay_seconds: float = 0.0) -> None:
    arguments = (channel, delay_seconds)
    threading.Thread(target=_beat, args=arguments, name="meshgate-beat", daemon=True).start()


def _beat(channel: Channel, delay_seconds: float) -> None:
    time.sleep(delay_seconds)
    while True:
        channel.ask({"op": "alive"})
        time.sleep(BEAT_SECONDS)


def _tell_exceptions(channel: Channel) -> None:
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, where: "TracebackType | None") -> None:
        if not issubclass(kind, KeyboardInterrupt):
            text = "".join(traceback.format_exception(kind, error, where))
            channel.ask(
                {
                    "op": "crashed",
                    "error": f"{kind.__module__}.{kind.__qualname__}",
                    "traceback": text[-MAX_TRACEBACK_CHARACTERS:],
                }
            )
        before(kind, error, where)

    sys.excepthook = hook
