"""Watches one run's program: forwards signals, ends it, and leaves no process behind."""

import contextlib
import os
import queue
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from meshgate_agents.launcher.children import Child, Children
from meshgate_agents.launcher.errors import AttemptEnded, Stopping

GRACE_SECONDS = 10.0  # from a forwarded signal to SIGKILL
AFTER_SECONDS = 0.05  # from a program's last word to a look at what it left behind
TICK_SECONDS = 0.2  # how often a grace is looked at
FAILED = 125  # exit status of a failure of ours, as env(1) and docker(1) use it
_ENDED, _LEFT = 0, -1  # no signal has these numbers
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Ending:
    """How the child ended.

    Attributes:
        status: its exit status; 128 + n after signal n.
        signal: the signal that ended it, or 0.
        cancelled: a signal that we forwarded, or Ctrl-C at the terminal, came before.
        fatal: why we ended it, or None.
    """

    status: int
    signal: int
    cancelled: bool
    fatal: AttemptEnded | None


class Supervisor:
    """Runs a program to its end, as often as it is asked, from one thread.

    `signals` is for the main thread of a process that plays one run.
    """

    def __init__(self, children: Children) -> None:
        self._children = children
        self._events: queue.SimpleQueue[AttemptEnded | int] = queue.SimpleQueue()
        self._turning = threading.Lock()
        self._cancelled = False
        self._fatal: AttemptEnded | None = None
        self._stopping: Stopping | None = None

    def end(self, reason: AttemptEnded) -> None:
        """Ends the child; from any thread. The first reason stays."""
        self._events.put(reason)

    def left(self) -> None:
        """The child has come to its end, with status 0, but for what the kernel does; from any thread."""
        self._events.put(_LEFT)

    def stop(self, reason: Stopping) -> None:
        """Ends the child that is there now, and lets none begin; from any thread."""
        self._stopping = reason
        self._events.put(reason)

    def signal(self, number: int) -> None:
        """Hands a signal on to the child that is there, or to the next; from any thread."""
        with self._turning:  # never into a queue that nobody reads any more
            self._events.put(number)

    def rest(self, seconds: float) -> bool:
        """Waits between two attempts; True when a signal asks to give up.

        Raises:
            Stopping: `stop` was called.
        """
        give_up_at = time.monotonic() + seconds
        while not self._cancelled and (left := give_up_at - time.monotonic()) > 0:
            if self._stopping is not None:
                raise self._stopping
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=left)
                self._cancelled = _is_signal(event)
        return self._cancelled

    def expect(self) -> None:
        """Whatever ends a child is from here on meant for the next one; a signal that came before is too."""
        with self._turning:
            with contextlib.suppress(queue.Empty):
                while True:
                    self._hear(self._events.get_nowait())
            self._events, self._fatal = queue.SimpleQueue(), None

    def run(self, start: Callable[[], Child], *, on_start: Callable[[Child], None]) -> Ending:
        """Starts a program and waits for its end; one that is to end already is not started.

        Args:
            start: starts it.
            on_start: told of the program at once: only from then on somebody can belong to it.

        Raises:
            LauncherError: it cannot be started.
        """
        if self._stopping is not None:
            raise self._stopping
        self._hear_what_came_before()
        if self._fatal is not None or self._cancelled:
            return Ending(FAILED, 0, cancelled=self._cancelled, fatal=self._fatal)
        child = start()
        try:
            on_start(child)
            threading.Thread(target=self._watch, args=(child, self._events), daemon=True).start()
            with _foreground(child.pid):
                status = self._wait(child)
        except BaseException:
            self._children.abandon(child)  # nobody would wait for it any more
            raise
        return Ending(
            status=128 - status if status < 0 else status,
            signal=max(0, -status),
            cancelled=self._cancelled or status == -signal.SIGINT,
            fatal=self._stopping or self._fatal,
        )

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """While it lasts, signals go to the child, or end the rest between two attempts."""

        def note(number: int, _frame: FrameType | None) -> None:
            self._events.put(number)

        before = {number: signal.signal(number, note) for number in FORWARDED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @staticmethod
    def _watch(child: Child, events: "queue.SimpleQueue[AttemptEnded | int]") -> None:
        """Wakes the waiting thread when the child has ended, which that thread then reaps."""
        child.until_ended()
        events.put(_ENDED)

    def _wait(self, child: Child) -> int:
        kill_at: float | None = None
        ended = False
        while True:
            status = self._children.reap(child)
            if status is not None:
                if not ended:
                    self._hear_what_came_before()
                self._children.sweep()
                return status
            late = kill_at is not None and time.monotonic() > kill_at
            if self._stopping is not None or self._fatal is not None or late:
                self._children.kill(child)
            try:
                event = self._events.get(timeout=TICK_SECONDS)
            except queue.Empty:
                continue
            if event == _LEFT and self._fatal is None and kill_at is None:
                # That sweeps too, and not while whoever gave the task waits for this process to say so.
                later = threading.Timer(AFTER_SECONDS, self._children.abandon, args=(child,))
                later.daemon = True
                later.start()
                return 0
            ended = ended or event == _ENDED
            self._hear(event)
            if isinstance(event, AttemptEnded):
                self._children.kill(child)
            elif _is_signal(event):
                kill_at = kill_at or time.monotonic() + GRACE_SECONDS
                _signal_group(child.pid, event)

    def _hear_what_came_before(self) -> None:
        """What was said until the child's end is why it ends, also if it was reaped before that was told."""
        with contextlib.suppress(queue.Empty):
            while (event := self._events.get_nowait()) != _ENDED:
                self._hear(event)

    def _hear(self, event: AttemptEnded | int) -> None:
        if isinstance(event, AttemptEnded):
            self._fatal = self._fatal or event
        elif _is_signal(event):
            self._cancelled = True


def _is_signal(event: AttemptEnded | int) -> bool:
    return isinstance(event, int) and event > 0


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


@contextlib.contextmanager
def _foreground(group: int) -> Iterator[None]:
    """Gives the terminal, where there is one, to the child's group and takes it back."""
    try:
        terminal = sys.stdin.fileno()
        ours = os.tcgetpgrp(terminal)
    except (OSError, ValueError, AttributeError):
        yield
        return
    if ours != os.getpgrp():  # a background job keeps its place
        yield
        return
    _give_terminal(terminal, group)
    _signal_group(group, signal.SIGCONT)  # it may have been stopped for reading too early
    try:
        yield
    finally:
        _give_terminal(terminal, ours)


def _give_terminal(terminal: int, group: int) -> None:
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        with contextlib.suppress(OSError, termios.error):
            os.tcsetpgrp(terminal, group)
    finally:
        signal.signal(signal.SIGTTOU, before)
