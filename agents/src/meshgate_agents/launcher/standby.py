"""A program of an agent's app that stands ready for a task: its crew is built before anybody asks for it.

It is of no run until it is handed one: what it asks for before that ends it. Its socket and its rules are its
own from the start, so that it reaches nothing of another run, and it does one task as any other program.
"""

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from meshgate_agents.child.framing import BadFrame, Message
from meshgate_agents.child.standing import look
from meshgate_agents.launcher import colleagues, requests
from meshgate_agents.launcher.children import Child, Children, Program
from meshgate_agents.launcher.conversations import FIRST_FRAME_SECONDS, Conversations
from meshgate_agents.launcher.errors import AttemptEnded
from meshgate_agents.launcher.ready import ready
from meshgate_agents.launcher.session import Session
from meshgate_agents.launcher.settings import Settings
from meshgate_agents.launcher.vitals import Vitals

BUILT_SECONDS = 3.0  # for one that still builds its crew when the task is there; it began earlier than that
MAX_READ = 5_000  # files whose state is looked at again: some milliseconds
SEEN_PARTS = 4


class Standby:
    """One program. Safe for threads; `begin` it once, then `hand` it a task or `end` it."""

    def __init__(
        self, *, settings: Settings, program: Program, children: Children, note: Callable[[str], None]
    ) -> None:
        self._settings, self._program, self._children = settings, program, children
        self._told = colleagues.of(settings).told
        self._opened = ExitStack()
        self._child: Child | None = None
        self._known, self._asked, self._handed = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._why = ""
        self._report: tuple[Message, int] | None = None
        self._read: list[Sequence[Any]] = []
        self._session: Session | None = None
        self._given = b""
        self._vitals, self._stopped = Vitals(), threading.Event()
        self._conversations = Conversations(
            belongs=self._belongs, answer=self._answer, on_end=self._end_now, stopped=self._stopped,
            note=note, user=settings.user,
        )  # fmt: skip

    def begin(self) -> None:
        """Starts the program, which builds its crew.

        Raises:
            LauncherError: it cannot be started.
            OSError: no folder, socket or process was to be had.
        """
        socket_path = self._conversations.listen(self._settings.socket_dir)
        prepared = ready(self._program, settings=self._settings, socket_path=socket_path)
        start = self._opened.enter_context(prepared)
        self._child = self._children.start(start.program, start.env)
        self._known.set()
        threading.Thread(target=self._watch, args=(self._child,), name="standby", daemon=True).start()

    @property
    def child(self) -> Child | None:
        """Its program, once it was started."""
        return self._child

    def unfit(self) -> str:
        """Why it can be handed no task; empty when it can. Waits for one that still builds its crew."""
        if not self._asked.wait(BUILT_SECONDS):
            return f"its crew was not built within {BUILT_SECONDS:g} s"
        if not self._why and (self._child is None or not self._child.has(self._child.pid)):
            self._never("its program ended before there was a task")
        if not self._why and self._vitals.silent() is not None:
            self._never("it gave no sign of life")
        return self._why

    def changed(self) -> str:
        """A file or folder that was read while its crew was built and is another by now; empty for none."""
        return next((str(seen[0]) for seen in self._read if list(look(str(seen[0]))) != list(seen)), "")

    def hand(self, session: Session, given: bytes) -> Child:
        """Gives it a task, and to the session what it asks for from now on.

        Args:
            session: of the attempt.
            given: the task, one JSON value.

        Raises:
            AttemptEnded: there is no program.
        """
        if self._child is None:
            raise AttemptEnded("the program that stood ready was not started")
        self._given, self._session = given, session
        self._handed.set()
        return self._child

    def end(self) -> None:
        """Ends the program, unless it was handed a task: then the attempt's end is its own."""
        self._stopped.set()
        self._handed.set()
        self._conversations.close()
        if self._child is not None and self._session is None:  # else whoever was handed it ends it
            self._children.abandon(self._child)
        self._opened.close()

    def _watch(self, child: Child) -> None:
        child.until_ended()
        self._never("its program ended while its crew was built")

    def _never(self, why: str) -> None:
        """It cannot be handed a task any more. The first reason stays."""
        with self._lock:
            self._why = self._why or why
        self._asked.set()

    def _belongs(self, pid: int) -> bool:
        self._known.wait(FIRST_FRAME_SECONDS)
        return self._child is not None and self._child.has(pid)

    def _end_now(self, error: AttemptEnded) -> None:
        if self._session is not None:
            self._session.give_up(error)
            return
        self._never(str(error))
        if self._child is not None:
            self._children.kill(self._child)

    def _answer(self, request: Message, pid: int) -> Message | None:
        if self._session is not None:
            return self._session.answer(request, pid)
        operation = request.get("op")
        if operation == "alive":
            self._vitals.beat(pid)
        if operation in ("alive", "leaving"):
            return {"state": "ok"}
        if operation == "report":
            return self._reported(request, pid)
        if operation == "crashed":
            self._never(f"its crew could not be built: {requests.word(request, 'error')}")
            return {"state": "ok"}
        if operation == "task":
            return self._task(request, pid)
        if operation == "remembers":
            raise AttemptEnded("its crew has a memory, which knows what was in it when the crew was built")
        raise AttemptEnded(f"it asks to {requests.word(request, 'op')} before there is a task")

    def _reported(self, request: Message, pid: int) -> Message:
        with self._lock:
            if self._report is not None or self._child is None or pid != self._child.pid:
                raise AttemptEnded("another process of it imports CrewAI while its crew is built")
            self._report = (request, pid)
        named = Session.program_name(request, nth=0)
        return {"state": "ok", "program": named, "standby": True, **self._told}

    def _task(self, request: Message, pid: int) -> Message:
        """Waits until there is one; it has built its crew."""
        read = request.get("read")
        if self._report is None or self._report[1] != pid or not isinstance(read, list):
            raise BadFrame("a question for a task from who has not said what it is")
        if len(read) > MAX_READ:
            raise AttemptEnded(f"{len(read)} files were read while its crew was built")
        if any(not isinstance(seen, list) or len(seen) != SEEN_PARTS for seen in read):
            raise BadFrame("a question for a task that does not say what was read")
        self._read = read
        self._asked.set()
        self._handed.wait()
        if self._session is None:
            raise AttemptEnded("it is not needed any more")
        told = self._session.report(*self._report)
        return {**told, "given": json.loads(self._given)}
