"""Starts the child, forwards signals, reaps, and leaves no process behind."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from meshgate_agents.launcher.errors import AttemptEnded, LauncherError
from meshgate_agents.launcher.peers import descendants

GRACE_SECONDS = 10.0  # from a forwarded signal to SIGKILL
KILL_SECONDS = 5.0  # a killed process that is still there after this is stuck in the kernel
TICK_SECONDS = 0.2  # how often adopted orphans are reaped
_ENDED = 0  # no signal has this number
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
    """Runs a command to its end, as often as it is asked. Use from the main thread, inside `signals`."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[AttemptEnded | int] = queue.SimpleQueue()
        self._cancelled = False
        self._fatal: AttemptEnded | None = None

    def end(self, reason: AttemptEnded) -> None:
        """Ends the child; from any thread. The first reason stays."""
        self._events.put(reason)

    def rest(self, seconds: float) -> bool:
        """Waits between two attempts; True when a signal asks to give up."""
        give_up_at = time.monotonic() + seconds
        while not self._cancelled and (left := give_up_at - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=left)
                self._cancelled = isinstance(event, int) and event != _ENDED
        return self._cancelled

    def run(self, *, command: Sequence[str], env: Mapping[str, str]) -> Ending:
        """Starts the command in a process group of its own and waits for its end.

        Raises:
            LauncherError: it cannot be started.
        """
        self._events, self._fatal = queue.SimpleQueue(), None
        child = _spawn(command, env)
        threading.Thread(target=self._watch, args=(child.pid, self._events), daemon=True).start()
        with _foreground(child.pid):
            status = self._wait(child)
        kill_descendants()
        return Ending(
            status=128 - status if status < 0 else status,
            signal=max(0, -status),
            cancelled=self._cancelled or status == -signal.SIGINT,
            fatal=self._fatal,
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
    def _watch(pid: int, events: "queue.SimpleQueue[AttemptEnded | int]") -> None:
        """Wakes the waiting thread when the child has ended, which that thread then reaps."""
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        events.put(_ENDED)

    def _wait(self, child: "subprocess.Popen[bytes]") -> int:
        kill_at: float | None = None
        ended = False
        while True:
            status = _reaped(child)
            if status is not None:
                if not ended:
                    self._hear_what_came_before()
                return status
            if kill_at is not None and time.monotonic() > kill_at:
                _signal_group(child.pid, signal.SIGKILL)
            try:
                event = self._events.get(timeout=TICK_SECONDS)
            except queue.Empty:
                continue
            if event == _ENDED:
                ended = True
                continue
            if isinstance(event, AttemptEnded):
                self._fatal = self._fatal or event
                _signal_group(child.pid, signal.SIGKILL)
            else:
                self._cancelled = True
                kill_at = kill_at or time.monotonic() + GRACE_SECONDS
                _signal_group(child.pid, event)

    def _hear_what_came_before(self) -> None:
        """The child was reaped before its end was told: what was said until then is why it ended."""
        with contextlib.suppress(queue.Empty):
            while (event := self._events.get_nowait()) != _ENDED:
                if isinstance(event, AttemptEnded):
                    self._fatal = self._fatal or event
                else:
                    self._cancelled = True


def _spawn(command: Sequence[str], env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(list(command), env=dict(env), process_group=0)
    except OSError as error:
        raise LauncherError(f"cannot start {command[0]!r}: {error.strerror}") from error


def _reaped(child: "subprocess.Popen[bytes]") -> int | None:
    """Collects every ended child and adopted orphan; the status of the child when it is among them.

    Returns:
        The exit status, negative after a signal, or None while it runs.
    """
    while True:
        try:
            pid, raw = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return child.returncode
        if pid == 0:
            return child.returncode
        if pid == child.pid:
            child.returncode = os.waitstatus_to_exitcode(raw)


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


def kill_descendants() -> None:
    """Kills every process below this one, those that left the group or session too."""
    give_up_at = time.monotonic() + KILL_SECONDS
    while time.monotonic() < give_up_at:
        left = descendants(os.getpid())
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap_orphans()
        if not left:
            return
        time.sleep(0.01)


def _reap_orphans() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
