"""What the processes of one run ask for: answered from its journal, or stamped with run and attempt."""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from meshgate_agents.child.framing import BadFrame, Message
from meshgate_agents.launcher import requests
from meshgate_agents.launcher.calling import Attempt, Away, Calls
from meshgate_agents.launcher.children import Child
from meshgate_agents.launcher.colleagues import DECLINED, Colleagues
from meshgate_agents.launcher.conversations import (
    FIRST_FRAME_SECONDS,
    PAUSED_POLL_SECONDS,
    Conversations,
)
from meshgate_agents.launcher.errors import AttemptEnded, Differs, RunFull
from meshgate_agents.launcher.gateway import Answer, Entry, Gateway, Step, until_available
from meshgate_agents.launcher.own_tools import OwnTools
from meshgate_agents.launcher.places import User
from meshgate_agents.launcher.recorded import Recorded
from meshgate_agents.launcher.tools import Refusal, ToolMap
from meshgate_agents.launcher.turns import Turns
from meshgate_agents.launcher.vitals import Vitals

T = TypeVar("T")

MAX_STEP_BYTES = (
    3_145_728  # the gateway's own bound, which a test compares: a larger message is not even read
)
MAX_RESULT_BYTES = 1_048_576  # as much as a run's input
MAX_MILLISECONDS = 2**31 - 1


class Session:
    """Serves the children of one attempt, a thread per connection.

    A step that an earlier attempt finished is answered from the journal; every other one goes live.
    `on_end` is called with the reason when the attempt cannot go on; the asking child gets no
    answer then, because no answer of ours may become text for a model.
    """

    def __init__(  # noqa: PLR0913 - keyword-only, each a collaborator
        self,
        *,
        gateway: Gateway,
        tools: ToolMap,
        attempt: Attempt,
        colleagues: Colleagues | None = None,
        journal: Iterable[Entry] = (),
        live_steps: bool = True,
        unavailable_seconds: float,
        on_end: Callable[[AttemptEnded], None],
        on_left: Callable[[], None] = lambda: None,
        note: Callable[[str], None],
        away: Away = nullcontext,
        user: User | None = None,
    ) -> None:
        self._gateway, self._attempt = gateway, attempt
        self._colleagues = colleagues or Colleagues()
        self._unavailable_seconds, self._on_end, self._note = unavailable_seconds, on_end, note
        self._live_steps, self._on_left = live_steps, on_left
        self._own = OwnTools(gateway=gateway, attempt=attempt.number, ask=self._ask, live=live_steps)
        self._turns = Turns()
        self._stopped = threading.Event()
        self._calls = Calls(
            gateway=gateway,
            tools=tools,
            colleagues=self._colleagues,
            attempt=attempt,
            unavailable_seconds=unavailable_seconds,
            stopped=self._stopped,
            away=away,
        )
        self._lock = threading.Lock()
        self._programs: dict[str, int] = {}
        self._replayed, self._live = 0, 0
        self._open: set[str] = set()
        self._paused_at = 0.0
        self._moved_at = time.monotonic()
        self.crash = ("", "")  # class and traceback of an uncaught exception
        self.result = b""  # what the run gave, one JSON value
        self.declined = ""  # why a delegation was not taken
        self._child: Child | None = None
        self._child_known = threading.Event()
        self.vitals = Vitals()
        self._conversations = Conversations(
            belongs=self._belongs, answer=self.answer, on_end=self.give_up, stopped=self._stopped, note=note,
            user=user,
        )  # fmt: skip
        self.recall(journal)

    def recall(self, journal: Iterable[Entry]) -> None:
        """What earlier attempts finished, before anybody is served."""
        entries = list(journal)
        self._journal = Recorded(entries)
        self._turns.recall(entries)
        self._moved_at = time.monotonic()

    @property
    def reports(self) -> int:
        """How many processes said that they import CrewAI."""
        with self._lock:
            return sum(self._programs.values())

    @property
    def steps(self) -> int:
        """Finished steps so far."""
        with self._lock:
            return self._replayed + self._live

    @property
    def told(self) -> str:
        """How many steps came from where, for people."""
        return f"{self._replayed} steps from the journal, {self._live} live"

    @property
    def unasked(self) -> int:
        """Journaled steps that nobody has asked for."""
        return self._journal.unasked

    @property
    def expected(self) -> int:
        """The number of the first recorded step that nobody has asked for; 0 for none."""
        return self._journal.expected

    @property
    def idle_seconds(self) -> float:
        """Since a step was finished, or since the start."""
        return time.monotonic() - self._moved_at

    def overdue(self) -> AttemptEnded | None:
        """Why a body of the child has to be cut short; its failure is recorded by then.

        Raises:
            AttemptEnded: it could not be recorded, or the run is over.
        """
        return self._own.overdue()

    def pause(self) -> bool:
        """Begins no further step; True once none is under way."""
        with self._lock:
            self._paused_at = self._paused_at or time.monotonic()
            return not self._open

    @property
    def paused_seconds(self) -> float:
        """Since the run was paused; 0 while it is not."""
        paused_at = self._paused_at
        return time.monotonic() - paused_at if paused_at else 0.0

    def unpause(self) -> None:
        """The pause was lifted before it took effect."""
        with self._lock:
            self._paused_at = 0.0

    def listen(self, directory: Path) -> Path:
        """Opens the socket in a new private folder and serves it; see there."""
        return self._conversations.listen(directory)

    def serve_only(self, child: Child) -> None:
        """Admits this program and what descends from it. Nobody is admitted before."""
        self._child = child
        self._child_known.set()

    def _belongs(self, pid: int) -> bool:
        self._child_known.wait(FIRST_FRAME_SECONDS)
        return self._child is not None and self._child.has(pid)

    def close(self) -> None:
        """Stops serving; calls that are being asked again give up, and nothing ends an attempt any more."""
        with self._lock:
            self._stopped.set()
        self._conversations.close()

    def give_up(self, error: AttemptEnded) -> None:
        """Ends the attempt; once this session is closed, another one may be under way."""
        with self._lock:
            if not self._stopped.is_set():
                self._on_end(error)

    def answer(self, request: Message, pid: int) -> Message | None:
        """Answers a request of a process of this attempt; None for one that gets no answer.

        Raises:
            AttemptEnded: the attempt cannot go on.
            BadFrame: it is no request of ours.
        """
        operation = request.get("op")
        if operation == "alive":
            self.vitals.beat(pid)
            return {"state": "ok"}
        if operation == "leaving":
            self.vitals.leave(pid)
            return {"state": "ok"}
        if operation == "left":
            self._left(pid)
            return {"state": "ok"}
        if operation == "unfit":
            kind = requests.word(request, "reply")
            raise RunFull(f"a reply of class {kind} cannot be journaled, so the run could not be resumed")
        if operation == "report":
            return self.report(request, pid)
        if operation in ("crashed", "declined", "result"):
            return self._end_told(operation, request)
        if operation in ("seek", "model", "reply", "gave_up", "call", "delegate", "ran"):
            return self._step(operation, request, requests.step_of(request))
        raise BadFrame(f"unknown operation {operation!r}")

    def _left(self, pid: int) -> None:
        """The program itself has done all that it does before it exits with status 0."""
        if self._child is None or pid != self._child.pid:
            return  # of one that the program started: it is not the program's own end
        with self._lock:
            if not self._stopped.is_set():  # else another attempt may be under way
                self._on_left()

    def _end_told(self, operation: str, request: Message) -> Message:
        """What a program says of its end."""
        if operation == "crashed":
            self.crash = (requests.word(request, "error"), str(request.get("traceback", "")))
            return {"state": "ok"}
        if operation == "declined":
            self.declined = DECLINED.get(requests.word(request, "reason"), "does not say why")
            return {"state": "ok"}
        data = str(request.get("result", "")).encode("utf-8", "surrogatepass")
        if len(data) > MAX_RESULT_BYTES:
            self._note(f"the result has {len(data)} bytes and is not kept with the run")
        else:
            self.result = data
        return {"state": "ok"}

    def _step(self, operation: str, request: Message, step: Step) -> Message | None:
        """Answers from the journal, or does it. A live model call is under way until its reply is told.

        None for the begin of a model call that said beforehand that it waits for no answer, see `_fresh`.
        """
        if operation in ("reply", "gave_up") and self._live_steps:
            return self._model_ended(operation, request, step)
        if operation == "ran":
            return self._ran(request, step)
        entry = self._journal.get(step.key)
        if entry is not None:
            return self._replay(operation, request, step, entry)
        if not self._live_steps:
            raise Differs(requests.described(operation, request, step))  # a reply too: nothing is written
        if operation == "seek":
            return {"state": "live"}  # a step that has steps of its own within; it begins when it is told
        self._begun(step)
        if operation == "model":
            return {"state": "live", "fresh": self._fresh()} if request.get("wait", True) else None
        try:
            return self._call(request, step)
        finally:
            if not self._own.holds(step.key):
                self._over(step)

    def _ran(self, request: Message, step: Step) -> Message:
        """What a body gave that this child was told to run."""
        try:
            answer, replayed = self._own.ran(step.key, request.get("outcome"))
        finally:
            self._over(step)
        self._finished(replayed=replayed)
        return {**requests.message(answer), "replayed": replayed}

    def _model_ended(self, operation: str, request: Message, step: Step) -> Message:
        """The reply of a model call that is under way, or the word that there is none."""
        with self._lock:
            under_way = step.key in self._open
        if not under_way:
            raise BadFrame("a reply to a model call that nobody has begun")
        try:
            return self._reply(request, step) if operation == "reply" else {"state": "ok"}
        finally:
            self._ended(step)

    def _fresh(self) -> bool:
        """Whether the next model call need not ask first: nothing is recorded of it, and nobody pauses."""
        return self._live_steps and not self._paused_at and not self._journal.unasked

    def _begun(self, step: Step) -> None:
        """Takes a step up; while the run is being paused it waits for the end, or until that is lifted."""
        while not self._stopped.is_set():
            with self._lock:
                if not self._paused_at:
                    self._open.add(step.key)
                    return
            self._stopped.wait(PAUSED_POLL_SECONDS)
        raise AttemptEnded("the run is paused")

    def _over(self, step: Step) -> None:
        """A call has its outcome."""
        self._turns.over(step)
        self._ended(step)

    def _ended(self, step: Step) -> None:
        with self._lock:
            self._open.discard(step.key)

    def _replay(self, operation: str, request: Message, step: Step, entry: Entry) -> Message:
        self._journal.asked(entry)
        if operation == "seek":
            with self._lock:
                self._replayed += self._journal.answered_within(entry)
        if operation in ("seek", "model") and entry.reply is not None:
            self._finished(replayed=True)
            return {"state": "recorded", "reply": entry.reply.decode("utf-8", "surrogatepass")}
        if operation == "call" and entry.answer is not None and entry.answer.arguments:
            self._take_turn(request, step)
            return self._permit(request, step.key, entry.answer, recorded=True)
        if operation in ("call", "delegate") and entry.answer is not None:
            self._finished(replayed=True)
            return {**requests.message(entry.answer), "replayed": True}
        raise AttemptEnded(f"the journal holds another kind of step under the key {entry.key[:16]}")

    def _reply(self, request: Message, step: Step) -> Message:
        milliseconds = request.get("milliseconds")
        given = (
            str(request.get("request", "")).encode("utf-8", "surrogatepass"),
            str(request.get("reply", "")).encode("utf-8", "surrogatepass"),
            min(max(milliseconds, 0), MAX_MILLISECONDS) if isinstance(milliseconds, int) else 0,
        )
        size = sum(map(len, given[:2]))
        if size > MAX_STEP_BYTES:
            raise RunFull(
                f"a model step of {size} bytes (prompt and reply, as far as they are new) is over "
                f"{MAX_STEP_BYTES}, the most that one step may hold"
            )
        run_id, attempt = self._attempt.run_id, self._attempt.number
        self._ask(lambda: self._gateway.append(run_id=run_id, attempt=attempt, step=step, given=given))
        self._finished(replayed=False)
        return {"state": "ok", "fresh": self._fresh()}

    def _left_out(self, key: str, tool: str) -> str:
        self._journal.asked_live(key, tool)
        return self._journal.left_out(tool, busy=self._own.busy, stopped=self._stopped)

    def _finished(self, *, replayed: bool) -> None:
        with self._lock:
            self._moved_at = time.monotonic()
            if replayed:
                self._replayed += 1
            else:
                self._live += 1

    @staticmethod
    def program_name(request: Message, *, nth: int) -> str:
        """What a process that reports is called: its command, and which of its equals it is."""
        return f"{str(request.get('program', ''))[:16]} {nth}"

    def report(self, request: Message, pid: int) -> Message:
        """A process says that it imports CrewAI, and is told what it works on."""
        program = str(request.get("program", ""))[:16]
        self.vitals.beat(pid)  # whoever stands still from here on is missed
        with self._lock:
            nth = self._programs.get(program, 0)
            self._programs[program] = nth + 1
        crewai, python = requests.word(request, "crewai"), requests.word(request, "python")
        self._note(f"pid {pid} imports CrewAI {crewai} on Python {python}; its tool calls are brokered")
        known = {"run": self._attempt.run_id, "attempt": self._attempt.number}
        named = self.program_name(request, nth=nth)
        return {"state": "ok", "program": named, **known, **self._colleagues.told}

    def _ask(self, ask: Callable[[], T]) -> T:
        return until_available(ask, seconds=self._unavailable_seconds, stopped=self._stopped)

    def _permit(self, request: Message, key: str, answer: Answer, *, recorded: bool) -> Message:
        limits, name = self._calls.own_limits(request), requests.word(request, "name")
        return self._own.permit(key, answer, recorded=recorded, limits=limits, name=name)

    def _take_turn(self, request: Message, step: Step) -> None:
        """For a body that is to run in the child; one that another body of that place calls is part of it."""
        if not request.get("nested"):
            self._turns.take(step, self._stopped)

    def _waits(self, step: Step) -> None:
        """A delegation goes on in another run: this one is not stuck, and may be paused meanwhile."""
        with self._lock:
            self._moved_at = time.monotonic()
            self._open.discard(step.key)

    def _call(self, request: Message, step: Step) -> Message:
        tool = self._calls.named(request)
        if isinstance(tool, Refusal):
            self._note(tool.text)
            return {"state": "refused", "text": tool.text}
        if self._calls.own_limits(request) is not None:
            self._take_turn(request, step)
        answer = self._calls.settle(
            tool, request, step, left_out=self._left_out(step.key, tool), waits=lambda: self._waits(step)
        )
        if answer.state == "run":
            return self._permit(request, step.key, answer, recorded=False)
        self._finished(replayed=False)
        return requests.message(answer)
