"""One run of a program: attempt after attempt, until it is done, given up, or somebody else's.

An attempt that crashed is followed by another, which is answered from the journal up to the step
where the last one stopped. A crash is: death by a signal, exit status 1 (what Python gives an
uncaught exception) after a first step, 125 (ours), silence, no step for too long, a gateway that
stays away. Any other status is the program's own word and ends the run.
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TypeVar

from meshgate_agents.launcher import colleagues
from meshgate_agents.launcher.announcing import Announcement
from meshgate_agents.launcher.calling import Attempt, Away
from meshgate_agents.launcher.children import Children, Program
from meshgate_agents.launcher.errors import (
    FAULTS,
    AttemptEnded,
    GatewayAway,
    GatewayUnavailable,
    LauncherError,
    RunFull,
    RunHeld,
    RunOver,
    Stopping,
)
from meshgate_agents.launcher.gateway import Begun, End, Entry, Gateway, until_available
from meshgate_agents.launcher.played import Played
from meshgate_agents.launcher.ready import ready
from meshgate_agents.launcher.saying import say
from meshgate_agents.launcher.session import Session
from meshgate_agents.launcher.settings import Settings
from meshgate_agents.launcher.standby import Standby
from meshgate_agents.launcher.supervise import FAILED, Ending, Supervisor
from meshgate_agents.launcher.tools import ToolMap

T = TypeVar("T")

UNCAUGHT = 1  # Python's status after an uncaught exception
# Of a call on record, which no further attempt would find otherwise.
SETTLED = {f"meshgate.Delegation{how}" for how in ("Denied", "Failed", "Refused")}
FINISH_SECONDS = 10.0  # of a cancelled run: somebody waits; any other end is worth the patience of a step
HEARTBEAT_SECONDS = 2.0
POLL_SECONDS = 1.0  # how often a run that is held up is looked at
LONGEST_POLL_SECONDS = 15.0  # how long a person waits at most for a run that goes on
FIRST_BACKOFF_SECONDS = 0.1  # most that die once do not die again
LONGEST_BACKOFF_SECONDS = 30.0
PAUSE_GRACE_SECONDS = 60.0  # for the steps that are under way when a run is paused
SLICE_SECONDS = 1.0  # how soon Ctrl-C is heard while the gateway is waited for
MAX_ATTEMPTS = 1000  # of any kind: a run that loses its worker after each new step ends too
AT_TERMINAL = "at the terminal where it ran"
OVER = ("cancelled", "failed", "completed")
HOLDS = ("waiting", "cancelling")
NONE = Begun(0)
REFUSED = "what a program may write and connect to: writable: and ports: in the manifest; meshgate doctor"


class Launch:
    """One program, one run. Use from one thread; several may be played by one process."""

    def __init__(  # noqa: PLR0913 - keyword-only, each a collaborator
        self,
        *,
        settings: Settings,
        gateway: Gateway,
        program: Program,
        children: Children,
        note: Callable[[str], None] | None = None,
        last: Begun = NONE,
        place: Callable[[], AbstractContextManager[int | None]] = nullcontext,
        away: Away = nullcontext,
        announcement: Announcement | None = None,
        printed: str = "",
        standby: Callable[[], Standby | None] = lambda: None,
    ) -> None:
        """Made where a run is known.

        Args:
            settings: the app's.
            gateway: who keeps the run.
            program: what it starts.
            children: where it starts it.
            note: takes what there is to tell people.
            last: the run's attempt as it was seen.
            place: lets an attempt begin, and may look again.
            away: around waiting for others.
            announcement: where it is said what is played.
            printed: where people find what the program prints; empty for the app's log.
            standby: gives a program that stands ready for just this one's task, where there is one.
        """
        self._settings, self._gateway, self._program = settings, gateway, program
        self._say, self._announcement = note or say, announcement or Announcement()
        self._supervisor, self._children, self._standby = Supervisor(children), children, standby
        self._stopped = threading.Event()
        self._run_id = settings.run_id or uuid7()
        self._place, self._away, self._patient, self._held_by = place, away, False, ""
        self._printed = printed or f"in its app's log: meshgate logs {settings.app}"
        self._played = 0
        self._seen, self._crashes = last.number, last.failures  # of every process: the store keeps count

    def run(self) -> int:
        """Starts the run and plays it, as the only thing that this process does; the exit status.

        Raises:
            LauncherError: the program was not started.
        """
        given = json.dumps({"app": self._settings.app, "command": list(self._program.command)}).encode()
        self._patient, self._printed = any(map(os.isatty, range(3))), AT_TERMINAL
        with self._supervisor.signals():
            last = self._ask(lambda: self._gateway.start_run(run_id=self._run_id, input_json=given))
            self._seen, self._crashes = last.number, last.failures
            return self.play()

    def play(self) -> int:
        """Plays attempts until the run is over; the exit status.

        Raises:
            Stopping: `stop` was called first; the run is not over.
            LauncherError: the program was not started.
        """
        if self._crashes and self._supervisor.rest(self._backoff()):
            raise LauncherError("cancelled by a signal between two attempts")
        while True:
            played = self._next()
            if isinstance(played, int):
                return played
            if isinstance(played.ending.fatal, Stopping):
                self._leave(played.attempt)
                raise played.ending.fatal
            try:
                status = self._verdict(played)
                if status is None:
                    held = isinstance(played.ending.fatal, RunHeld)
                    status = self._held(played, played.cause) if held else self._again(played)
            except RunHeld as error:  # it ended while its run was being held up
                status = self._held(played, str(error))
            if status is not None:
                return status

    def stop(self, reason: Stopping) -> None:
        """Ends the attempt and leaves the run to another process; from any thread."""
        self._stopped.set()
        self._supervisor.stop(reason)

    def signal(self, number: int) -> None:
        """Hands a signal on to the program, which cancels the run; from any thread."""
        self._supervisor.signal(number)

    def _next(self) -> Played | int:
        """The next attempt, once it is its turn; the exit status when the run is given up instead.

        Each look at a run that is held up is an attempt refused, and on record: they become rarer.
        """
        pause = POLL_SECONDS
        while True:
            with self._place() as seen:
                begun = self._begin(self._seen if seen is None else seen)
                if begun is not None:
                    attempt = Attempt(self._run_id, begun.number)
                    spent = self._spent(begun)
                    return self._given_up(attempt, spent) if spent else self._play(attempt, first=begun.first)
            if self._supervisor.rest(pause):  # held up: it takes nobody's place meanwhile
                raise LauncherError("cancelled by a signal while the run was held up")
            pause = min(2 * pause, LONGEST_POLL_SECONDS)

    def _backoff(self) -> float:
        """How long to rest before the next attempt."""
        if self._crashes == 1:
            return min(self._settings.backoff_seconds, FIRST_BACKOFF_SECONDS)
        seconds = self._settings.backoff_seconds * 2.0 ** min(self._crashes - 2, 16)
        return min(seconds, LONGEST_BACKOFF_SECONDS)

    def _spent(self, begun: Begun) -> str:
        """Why the run is given up before anything of this attempt runs; empty while it is not."""
        self._crashes = max(self._crashes, begun.failures)
        if begun.failures >= self._settings.attempts:
            return f"given up after {begun.failures} attempts: the last one took its worker with it"
        if begun.number > MAX_ATTEMPTS:
            return f"given up after {MAX_ATTEMPTS} attempts, however they ended"
        return ""

    def _given_up(self, attempt: Attempt, why: str) -> int:
        self._say(f"run {self._run_id} failed: {why}")
        self._finish(attempt, End(state="failed", detail=why))
        return FAILED

    def _leave(self, attempt: Attempt) -> None:
        """Says that the attempt ends because its process does; whoever is next finds out anyway."""
        end = End(state="stopped", detail="its worker was told to end")
        with suppress(LauncherError):
            self._gateway.end_attempt(run_id=attempt.run_id, attempt=attempt.number, end=end)

    def _play(self, attempt: Attempt, *, first: bool) -> Played:
        """One attempt: read the journal, start the child, wait for its end. It lives from its beginning."""
        standby: Standby | None = None
        session = Session(
            gateway=self._gateway,
            tools=ToolMap(entries=self._settings.tools),
            colleagues=colleagues.of(self._settings),
            attempt=attempt,
            unavailable_seconds=self._settings.step_deadline_seconds,
            on_end=self._supervisor.end, on_left=self._supervisor.left, note=self._say, away=self._away,
            user=self._settings.user,
        )  # fmt: skip
        over = threading.Event()
        entries: list[Entry] | None = None
        self._supervisor.expect()
        try:
            threading.Thread(target=self._watch, args=(attempt, session, over), daemon=True).start()
            entries = self._journal(attempt, first=first)
            session.recall(entries)
            standby = None if self._crashes else self._standby()  # nobody knows what failed
            ending = self._child(session, attempt, standby)
        except LauncherError as error:
            if isinstance(error, Stopping) or entries is None:
                self._leave(attempt)  # it goes on elsewhere, or nothing of it has run
            else:
                self._finish(attempt, End(state="failed", detail=str(error)))
            raise
        except FAULTS as error:
            why = getattr(error, "strerror", None) or str(error)
            ending = Ending(FAILED, 0, cancelled=False, fatal=AttemptEnded(f"{type(error).__name__}: {why}"))
        finally:
            over.set()
            session.close()
            if standby is not None:
                standby.end()
        if entries:
            self._say(f"attempt {attempt.number}: {session.told}")
        if self._settings.isolation and session.crash[0].endswith("PermissionError"):
            self._say(REFUSED)
        return Played.of(attempt, ending, session)

    def _journal(self, attempt: Attempt, *, first: bool) -> list[Entry]:
        """What is on record, which of a first attempt is nothing."""
        ask = lambda: self._gateway.journal(run_id=self._run_id, attempt=attempt.number)  # noqa: E731
        entries = [] if first else self._ask(ask)
        known = f"; {len(entries)} finished steps in the journal" if entries else ""
        self._say(f"run {self._run_id}, attempt {attempt.number}, as {self._settings.spiffe_id}{known}")
        return entries

    def _begin(self, after: int) -> Begun | None:
        """A new attempt; None while the run is held up."""
        instance = secrets.token_hex(16)
        try:
            begun = self._ask(
                lambda: self._gateway.start_attempt(run_id=self._run_id, instance=instance, after=after)
            )
        except RunHeld as error:
            if str(error) != self._held_by:
                self._held_by = str(error)
                self._say(f"run {self._run_id} is held up: {error}")
            return None
        self._held_by, self._seen = "", begun.number
        return begun

    def _child(self, session: Session, attempt: Attempt, standby: Standby | None) -> Ending:
        self._played += 1
        announced = self._announcement.program(attempt, session.serve_only)
        if standby is not None:
            given = self._program.given or b"null"
            with announced as begun:
                return self._supervisor.run(lambda: standby.hand(session, given), on_start=begun)
        socket_path = session.listen(self._settings.socket_dir)
        with (
            ready(self._program, settings=self._settings, socket_path=socket_path) as start,
            announced as begun,
        ):
            if self._played == 1:
                self._say(start.notice)
            return self._supervisor.run(start.by(self._children), on_start=begun)

    def _watch(self, attempt: Attempt, session: Session, over: threading.Event) -> None:
        """Heartbeats for the attempt, and ends it when its run or its child is no longer well."""
        while not over.wait(HEARTBEAT_SECONDS):
            try:
                state = self._gateway.heartbeat(
                    run_id=attempt.run_id, attempt=attempt.number, steps=session.steps
                )
                reason = self._unwell(state, session)
            except GatewayUnavailable:
                continue  # no verdict; the next step finds out for itself
            except AttemptEnded as error:
                reason = error
            if reason is not None and not over.is_set():
                self._supervisor.end(reason)
                return

    def _unwell(self, state: str, session: Session) -> AttemptEnded | None:
        if state == "running":
            session.unpause()
        if state in OVER:
            return RunOver(f"run {self._run_id} is {state}")
        if state in HOLDS or (state == "pausing" and session.pause()):
            return RunHeld(f"run {self._run_id} is {state}")
        if session.paused_seconds > PAUSE_GRACE_SECONDS:
            return RunHeld(f"run {self._run_id} is {state}; a step did not end in {PAUSE_GRACE_SECONDS:g} s")
        silent = session.vitals.silent()
        if silent is not None:
            return AttemptEnded(f"process {silent} of the program gave no sign of life")
        if session.idle_seconds > self._settings.stall_seconds:
            return AttemptEnded(f"no step was finished for {self._settings.stall_seconds:g} s")
        return session.overdue()

    def _verdict(self, played: Played) -> int | None:
        """The exit status when this attempt was the last; None when the run goes on."""
        ending = played.ending
        if isinstance(ending.fatal, RunOver):
            self._say(str(ending.fatal))
            return FAILED
        if ending.cancelled:
            return self._end(played, "cancelled", f"cancelled by a signal, exit status {ending.status}")
        if ending.fatal is not None or ending.signal or ending.status == FAILED:
            return None
        settled = ending.status == UNCAUGHT and played.error in SETTLED
        if ending.status == UNCAUGHT and played.steps and not settled:
            return None
        if self._settings.expects_report and not played.reports:
            return self._end(played, "failed", self._no_report(ending.status))
        state = "completed" if ending.status == 0 else "failed"
        end = End(
            state=state,
            detail=played.declined or (played.cause if settled else f"exit status {ending.status}"),
            traceback=played.traceback,
            result=played.result,
        )
        finished = self._finish(played.attempt, end)
        return ending.status if finished or ending.status else FAILED

    def _no_report(self, status: int) -> str:
        own = f"; if it failed by itself, its error is {self._printed}" if status else ""
        return (
            f"the program ended with status {status} and no process of it imported CrewAI under "
            f"meshgate, though the manifest names a {self._settings.kind}; a program started with "
            f"python -I, -E or -S, or with an emptied environment, cannot be brokered{own}"
        )

    def _held(self, played: Played, why: str) -> int | None:
        """Waits until a run that was held up may go on; the exit status when it ends instead."""
        self._say(f"run {self._run_id} is held up: {why}")
        attempt, end = played.attempt, End(state="paused", detail="paused")
        self._ask(lambda: self._gateway.end_attempt(run_id=attempt.run_id, attempt=attempt.number, end=end))
        while True:
            if self._supervisor.rest(POLL_SECONDS):
                return self._end(played, "cancelled", "cancelled by a signal while it was held up")
            try:
                state = self._gateway.heartbeat(run_id=attempt.run_id, attempt=attempt.number, steps=0)
            except GatewayUnavailable:
                state = "waiting"
            except AttemptEnded as error:
                self._say(str(error))
                return FAILED
            if state == "cancelling":
                return self._end(played, "cancelled", "cancelled by an operator")
            if state == "restarting":
                return None
            if state == "running":  # nothing holds it up any more: as after a crash, with its bound
                return self._again(played)

    def _again(self, played: Played) -> int | None:
        """After a crash: marks the run as restarting and rests; the exit status when it is given up."""
        if isinstance(played.ending.fatal, RunFull):
            return self._end(played, "failed", played.cause)
        self._crashes += 1
        crashes, limit = self._crashes, self._settings.attempts
        if crashes >= limit:
            return self._end(played, "failed", f"given up after {crashes} attempts: {played.cause}")
        seconds = self._backoff()
        plan = f"attempt {crashes + 1} of {limit} in {seconds:g} s"
        self._say(f"{played.cause}; {plan}")
        attempt = played.attempt
        end = End(state="restarting", detail=f"{plan}: {played.cause}", traceback=played.traceback)
        self._ask(lambda: self._gateway.end_attempt(run_id=attempt.run_id, attempt=attempt.number, end=end))
        if self._supervisor.rest(seconds):
            return self._end(played, "cancelled", "cancelled by a signal between two attempts")
        return None

    def _end(self, played: Played, state: str, detail: str) -> int:
        """Ends the run as failed or cancelled."""
        ending = played.ending
        if state == "failed":
            self._say(f"run {self._run_id} failed: {detail}")
        self._finish(played.attempt, End(state=state, detail=detail, traceback=played.traceback))
        if state == "cancelled" or (ending.fatal is None and (played.reports or ending.signal)):
            return ending.status or FAILED
        return FAILED

    def _finish(self, attempt: Attempt, end: End) -> bool:
        try:
            self._ask(
                lambda: self._gateway.finish(run_id=attempt.run_id, attempt=attempt.number, end=end),
                FINISH_SECONDS if end.state == "cancelled" else 0,
            )
        except RunHeld:
            raise
        except LauncherError as error:
            self._say(f"the end of run {attempt.run_id} ({end.state}) could not be recorded: {error}")
            return False
        return True

    def _ask(self, ask: Callable[[], T], seconds: float = 0) -> T:
        """Asks until there is an answer: somebody at a terminal waits longer than a step may."""
        patience = seconds or self._settings.step_deadline_seconds
        if seconds or not self._patient:
            return until_available(ask, seconds=patience, stopped=self._stopped)
        tell_at = time.monotonic()
        while True:
            try:
                return until_available(ask, seconds=SLICE_SECONDS, stopped=self._stopped)
            except GatewayAway as error:
                if time.monotonic() > tell_at:
                    tell_at = time.monotonic() + patience
                    self._say(f"waiting for the gateway, until Ctrl-C: {error}")
                if self._supervisor.rest(SLICE_SECONDS):
                    raise LauncherError(f"{self._left()} while the gateway was away") from error

    def _left(self) -> str:
        return (
            f"run {self._run_id} is left as it is (go on: meshgate run --run-id {self._run_id} -- …; "
            f"end it: meshgate runs cancel {self._run_id}): interrupted"
        )


def uuid7() -> str:
    """A UUIDv7 (RFC 9562 §5.7): sorts by time."""
    value = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))
    value[6] = 0x70 | value[6] & 0x0F
    value[8] = 0x80 | value[8] & 0x3F
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
