"""A replay: the program runs once more on nothing but the journal of a run, and makes no step.

No model is asked, no tool is called, nothing is written at the gateway. What the program does
outside of models and tools it does again: files that it writes, lines that it prints.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

from meshgate_agents.launcher import colleagues, orders
from meshgate_agents.launcher.announcing import Announcement
from meshgate_agents.launcher.calling import Attempt
from meshgate_agents.launcher.children import Children, Program
from meshgate_agents.launcher.errors import BadSettings, Differs
from meshgate_agents.launcher.gateway import Gateway, until_available
from meshgate_agents.launcher.ready import ready
from meshgate_agents.launcher.saying import say
from meshgate_agents.launcher.session import Session
from meshgate_agents.launcher.settings import Settings
from meshgate_agents.launcher.supervise import FAILED, Ending, Supervisor
from meshgate_agents.launcher.tools import ToolMap

T = TypeVar("T")

DIFFERENT = 1


class Replay:
    """One program on the journal of one run."""

    def __init__(
        self,
        *,
        settings: Settings,
        gateway: Gateway,
        program: Program,
        children: Children,
        announcement: Announcement | None = None,
    ) -> None:
        self._settings, self._gateway = settings, gateway
        self._announcement = announcement or Announcement()
        self._program, self._children = program, children

    def run(self) -> int:
        """Runs the program to its end or to the first difference.

        Returns:
            0 when it asked for exactly the recorded steps, 1 when not, 125 for a failure of ours.

        Raises:
            LauncherError: the journal could not be read, or the program was not started.
        """
        run_id = self._settings.run_id
        if not run_id:
            raise BadSettings("a replay names its run")
        known = self._asked(lambda: self._gateway.read_run(run_id))
        program = orders.program(known.input_json, self._program)
        entries = self._asked(lambda: self._gateway.journal(run_id=run_id, attempt=0))
        say(f"replay of run {run_id}: {len(entries)} recorded steps; nothing is asked, called or written")
        supervisor = Supervisor(self._children)
        session = Session(
            gateway=self._gateway,
            tools=ToolMap(entries=self._settings.tools),
            colleagues=colleagues.of(self._settings),
            attempt=Attempt(run_id, 0),
            journal=entries,
            live_steps=False,
            unavailable_seconds=self._settings.step_deadline_seconds,
            on_end=supervisor.end,
            note=say,
            user=self._settings.user,
        )
        try:
            socket_path = session.listen(self._settings.socket_dir)
            prepared = ready(program, settings=self._settings, socket_path=socket_path)
            announced = self._announcement.program(Attempt(run_id, 0), session.serve_only)
            with supervisor.signals(), prepared as start, announced as begun:
                ending = supervisor.run(start.by(self._children), on_start=begun)
        finally:
            session.close()
        return _told(run_id, session, ending)

    def _asked(self, ask: Callable[[], T]) -> T:
        seconds = self._settings.step_deadline_seconds
        return until_available(ask, seconds=seconds, stopped=threading.Event())


def _told(run_id: str, session: Session, ending: Ending) -> int:
    if isinstance(ending.fatal, Differs):
        say(f"replay of run {run_id}: after {session.steps} equal steps the first difference: {ending.fatal}")
        if session.expected:
            say(f"recorded is step {session.expected} instead: meshgate runs show {run_id} --steps")
        else:
            say("the record ends there: all its steps were asked for")
        return DIFFERENT
    if ending.fatal is not None or ending.cancelled:
        say(f"replay of run {run_id}: not finished: {ending.fatal or 'cancelled'}")
        return FAILED
    if session.unasked:
        say(f"replay of run {run_id}: ended with status {ending.status}; {session.unasked} recorded steps "
            "were not asked for")  # fmt: skip
        return DIFFERENT
    say(f"replay of run {run_id}: equal, all {session.steps} steps; status {ending.status}")
    return 0
