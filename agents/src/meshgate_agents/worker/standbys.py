"""The program that stands ready for an agent's next task: when one is begun, taken, and given up."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from meshgate_agents.launcher.children import Children, Program
from meshgate_agents.launcher.errors import FAULTS, LauncherError
from meshgate_agents.launcher.settings import Settings
from meshgate_agents.launcher.standby import Standby

REST_SECONDS = 1.0  # after a task began: it has the processor, and takes longer with any real model
LONGEST_SECONDS = (
    300.0  # for what was read or fetched while its crew was built, and cannot be looked at again
)
MAX_FAULTS = 3  # in a row; then each next one is begun after a pause, as what failed may pass or be mended
PAUSE_SECONDS = 60.0  # the first; each is twice as long as the one before
MAX_DOUBLINGS = 6  # an hour, and four minutes


class Standbys:
    """At most one at a time, and none before a first task: an app that is not used costs nothing.

    Safe for threads.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        program: Program,
        children: Children,
        note: Callable[[str], None],
        on_change: Callable[[Standby | None], None] = lambda _: None,
    ) -> None:
        self._settings, self._program, self._children = settings, program, children
        self._note, self._on_change = note, on_change
        self._lock = threading.Lock()
        self._one: Standby | None = None
        self._timer: threading.Timer | None = None
        self._beginning = False
        self._faults, self._not_before = 0, 0.0
        self._over = not settings.standby

    def take(self, program: Program) -> Standby | None:
        """The one that is there, for a task that is there now; another is begun while that is done.

        None where the program of the task is to be another one, or is given no task.
        """
        if program.given is None or replace(program, given=None, env=program.env or None) != self._program:
            return None
        one = self._leave(None)
        fit = one is not None and self._is_fit(one)
        self._ask_for_next()
        return one if fit else None

    def end(self) -> None:
        """Ends the one that is there, and begins none any more."""
        with self._lock:
            self._over = True
        one = self._leave(None)
        if one is not None:
            one.end()

    def _leave(self, only: Standby | None) -> Standby | None:
        """Takes the one that is there, or only that one."""
        with self._lock:
            one = self._one
            if only is not None and one is not only:
                return None
            self._one = None
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None
            self._on_change(None)
        return one

    def _ask_for_next(self) -> None:
        """It is due after a rest, and after a pause where several were vain."""
        with self._lock:
            if self._over or self._one is not None:
                return  # one was begun while the last was looked at
            if self._timer is not None:
                self._timer.cancel()
            left = self._not_before - time.monotonic()
            self._timer = self._later(max(REST_SECONDS, left), self._begin)

    def _later(self, seconds: float, work: Callable[[], None]) -> threading.Timer:
        timer = threading.Timer(seconds, work)
        timer.daemon = True
        timer.start()
        return timer

    def _is_fit(self, one: Standby) -> bool:
        why = one.unfit()
        changed = "" if why else one.changed()
        if not why and not changed:
            with self._lock:
                self._faults, self._not_before = 0, 0.0
            return True
        one.end()
        if changed:
            self._note(f"{changed} has changed since the crew was built: it is built anew")
        else:
            self._fault(why)
        return False

    def _fault(self, why: str) -> None:
        with self._lock:
            self._faults += 1
            past = self._faults - MAX_FAULTS
            if past < 0:
                return
            pause = PAUSE_SECONDS * 2 ** min(past, MAX_DOUBLINGS)
            self._not_before = time.monotonic() + pause
        self._note(f"no program stands ready in the next {pause:g} s: {why}")

    def _begin(self) -> None:
        with self._lock:
            if self._over or self._beginning or self._one is not None:
                return  # a task that came meanwhile has asked for another: one is enough
            self._beginning = True
        try:
            self._begin_one()
        finally:
            with self._lock:
                self._beginning = False

    def _begin_one(self) -> None:
        one = Standby(
            settings=self._settings, program=self._program, children=self._children, note=self._note
        )
        try:
            one.begin()
        except (LauncherError, *FAULTS) as error:
            one.end()
            self._fault(str(error))
            return
        with self._lock:
            over = self._over
            if not over:
                self._one = one
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = self._later(LONGEST_SECONDS, lambda: self._expire(one))
                self._on_change(one)
        if over:
            one.end()

    def _expire(self, one: Standby) -> None:
        if self._leave(one) is not None:
            one.end()
