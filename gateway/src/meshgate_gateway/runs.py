"""Runs: start, attempts with a fencing number, heartbeat, what holds a run up, finish.

Every check, that the caller is the run's app and that the attempt is the current one, is made
in the transaction that writes. The gateway marks and refuses; it never starts anything.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from meshgate_gateway import attempts, calls, inputs
from meshgate_gateway.authenticate import Door
from meshgate_gateway.beginnings import Beginnings, Worker
from meshgate_gateway.bounds import DEFAULT_BOUNDS, Bounds
from meshgate_gateway.delegations import Delegations, Room
from meshgate_gateway.errors import Conflict, InvalidRequest, Missing, NotPermitted, Unavailable
from meshgate_gateway.model import RUNNERS, Caller, Kind, Presented, Run, State
from meshgate_gateway.notes import note
from meshgate_gateway.payloads import Vault
from meshgate_gateway.record import Recorder
from meshgate_gateway.store import CallQuery, Store, Tables
from meshgate_gateway.verdicts import Question, Verdict

ENDS = frozenset({"completed", "failed", "cancelled"})
PAUSES = frozenset({"restarting", "paused", "stopped"})  # how an attempt ends and its run does not
HELD = attempts.HELD
ACTIONS = {
    "cancel": frozenset({"pending", "running", "restarting", "waiting", "pausing", "paused", "cancelling"}),
    "pause": frozenset({"pending", "running", "restarting"}),
    "resume": frozenset({"pausing", "paused"}),
    "continue": frozenset({"waiting"}),
    "fail": frozenset({"waiting"}),
}
SUSPECT_AFTER_MS = 6_000  # three heartbeats of a launcher
PENDING_AFTER_MS = 5_000  # an order that its app was told of has an attempt within a second
RESTART_AFTER_MS = 45_000  # the longest backoff of a launcher, and half of it again
SILENT_AFTER_MS = 15_000  # a launcher that lives has said so by then, also through a gateway's restart
FORSAKEN_AFTER_MS = {
    "pending": PENDING_AFTER_MS,
    "running": SILENT_AFTER_MS,
    "restarting": RESTART_AFTER_MS,
}
LEFT_AFTER_MS = {"running": SUSPECT_AFTER_MS, "pending": RESTART_AFTER_MS, "restarting": RESTART_AFTER_MS}
MAX_COUNT = 2**31 - 1  # steps a heartbeat may claim; a column of every database holds it
MAX_DETAIL_CHARACTERS = 2000
MAX_RESULT_BYTES = 1_048_576
MAX_TRACEBACK_BYTES = 65_536  # its end, where the error is


def require(tables: Tables, *, caller: Caller, run_id: str, attempt: int) -> Run:
    """The run, if it is the caller's, lives, and the attempt is its current one.

    Raises:
        Missing: no such run, or another app's: the caller cannot tell which.
        Conflict: superseded, or ended.
    """
    run = owned(tables, caller=caller, run_id=run_id)
    if run.ended:
        raise Conflict("run_ended", detail=f"{run_id} is {run.state}")
    if run.attempt == 0 or run.attempt != attempt:
        raise Conflict("attempt_superseded", detail=f"{run_id}: attempt {attempt}, now {run.attempt}")
    return run


def acting(tables: Tables, *, caller: Caller, run_id: str, attempt: int) -> Run:
    """The run, for a step of its current attempt. One that has ended makes none, also before the next begins.

    Raises:
        Missing: as `require`.
        Conflict: as `require`, or the attempt has ended.
        NotPermitted: a run that nobody delegated, of an app that is an agent by now.
    """
    run = require(tables, caller=caller, run_id=run_id, attempt=attempt)
    if caller.kind is Kind.AGENT and not run.parent_call:
        raise NotPermitted("run_not_delegated", detail=f"{run_id}: an agent's app acts only when asked")
    if not run.launcher:
        raise Conflict("attempt_ended", detail=f"{run_id}: attempt {attempt}")
    return run


def park(tables: Tables, recorder: Recorder, *, run_id: str, why: str, now_ms: int) -> None:
    """Holds a run up until somebody has spoken; nothing to do for a run that ended or waits already."""
    run = tables.runs.get(run_id) if run_id else None
    if run is None or run.ended or run.state in HELD:
        return
    after = replace(run, state="waiting", detail=why, updated_ms=now_ms)
    if tables.runs.move(run, after):
        tables.records.append(note(recorder, "run_waiting", after))


def unpark(tables: Tables, recorder: Recorder, *, run_id: str, now_ms: int) -> None:
    """Lets a run go on that waited for calls nobody knew the end of, once none is left."""
    run = tables.runs.get(run_id) if run_id else None
    if run is None or run.state != "waiting" or not run.detail.startswith("unknown "):
        return
    left = tables.calls.query(CallQuery(run_id=run_id, states=(State.UNKNOWN,), limit=1))
    detail = f"unknown {left[0].call_id}" if left else "the unknown call was settled"
    after = replace(run, state="waiting" if left else "restarting", detail=detail, updated_ms=now_ms)
    if tables.runs.move(run, after):
        tables.records.append(note(recorder, "run_continues" if not left else "run_waiting", after))


def shown(run: Run, *, now_ms: int) -> Run:
    """The run as people see it: `suspect` when it should be running and gives no sign of life. Not stored."""
    silent = run.state == "running" and now_ms - run.heartbeat_ms > SUSPECT_AFTER_MS
    return replace(run, state="suspect") if silent or left(run, now_ms=now_ms) else run


def left(run: Run, *, now_ms: int) -> bool:
    """Whether a run of a launcher's own gets no sign of it, and nobody else will go on with it."""
    patience = LEFT_AFTER_MS.get(run.state)
    silent = now_ms - max(run.heartbeat_ms, run.updated_ms)
    return not run.driven and patience is not None and silent > patience


def forsaken(run: Run, *, now_ms: int) -> bool:
    """Whether a worker should be at the run, and none gives a sign of that."""
    patience = FORSAKEN_AFTER_MS.get(run.state)
    silent = now_ms - max(run.heartbeat_ms, run.updated_ms)
    return run.driven and patience is not None and silent > patience


def settle_left(store: Store, recorder: Recorder, delegations: Delegations, *, now_ms: int) -> int:
    """Ends runs that were cancelled, and pauses those that were to be, while no launcher lives to do it.

    A transaction for so many, as when they are told to.
    """
    since = now_ms - SILENT_AFTER_MS

    def settled(tables: Tables, run: Run, room: Room) -> Run | None:
        state, event = (
            ("paused", "attempt_ended") if run.state == "pausing" else ("cancelled", "run_finished")
        )
        after = replace(attempts.ended(run, lost=True), state=state, updated_ms=now_ms)
        if not tables.runs.move(run, after):
            return None
        tables.records.append(note(recorder, event, after))
        if after.ended:
            delegations.ended(tables, after, room)
        return after

    def work(tables: Tables, found: Sequence[Run]) -> tuple[int, list[Run | None]]:
        room = Room()
        touched: list[Run | None] = []
        for number, one in enumerate(found):
            if not room.left:
                return number, touched
            run = tables.runs.get(one.run_id)
            if run is not None and run.state == one.state:  # else it ended with its caller's
                room.left -= 1
                touched.append(settled(tables, run, room))
        return len(found), touched

    count, left = 0, store.read(lambda tables: tables.runs.leaving(silent_since_ms=since))
    while left:
        number, touched = store.write(lambda tables, left=left: work(tables, left))  # type: ignore[misc]
        left, ended = left[number:], [run for run in touched if run is not None]
        for run in ended:
            delegations.wake(run)
        count += len(ended)
    return count


def owned(tables: Tables, *, caller: Caller, run_id: str) -> Run:
    """The run, if it is the caller's.

    Raises:
        Missing: no such run, or another app's.
    """
    run = tables.runs.get(run_id) if calls.is_run_id(run_id) else None
    if run is None:
        raise Missing("run_unknown", detail="no such run")
    if run.app != caller.spiffe_id:
        raise Missing("run_unknown", detail=f"{run_id} belongs to {run.app}")
    return run


@dataclass(frozen=True, slots=True)
class Runs:
    """The Runs service without its wire."""

    door: Door
    store: Store
    vault: Vault
    recorder: Recorder
    now_ms: Callable[[], int]
    delegations: Delegations
    beginnings: Beginnings
    bounds: Bounds = DEFAULT_BOUNDS

    def start(self, presented: Presented, *, run_id: str, input_json: bytes) -> Run:
        """An app starts a run of itself; the same id again is the same run."""

        def serve(caller: Caller) -> Run:
            if caller.kind not in RUNNERS:
                raise NotPermitted("run_not_permitted", detail=f"a {caller.kind} has no runs")
            if caller.kind is Kind.AGENT:
                raise NotPermitted(
                    "run_not_permitted", detail="an agent's app has only runs that others ask for"
                )
            chosen = run_id or f"run-{uuid.uuid4().hex}"
            if not calls.is_new_run_id(chosen):
                raise InvalidRequest("run_id_invalid")
            if input_json:
                inputs.parse(input_json)
            return self.store.write(lambda tables: self._insert(tables, caller, chosen, input_json))

        return self.door.enter(presented, "StartRun", serve)

    def _insert(self, tables: Tables, caller: Caller, run_id: str, input_json: bytes) -> Run:
        if tables.runs.get(run_id) is not None:
            run = owned(tables, caller=caller, run_id=run_id)
            if run.purged_ms:
                raise Conflict("run_purged", detail=run_id)
            return self._same(tables, run, input_json)
        now = self.now_ms()
        sealed = self.vault.put(tables, input_json) if input_json else None
        self.bounds.check_open(tables, caller.spiffe_id)
        run = Run(run_id, caller.spiffe_id, "pending", 0, "", now, now, now, 0, "", input=sealed)
        tables.runs.insert(run)
        tables.records.append(note(self.recorder, "run_started", run))
        return run

    def _same(self, tables: Tables, run: Run, input_json: bytes) -> Run:
        same = self.vault.matches(tables, run.input, input_json) if run.input else not input_json
        if not same:
            raise Conflict("run_changed_input", detail=f"{run.run_id} was started with another input")
        return run

    def read(self, presented: Presented, *, run_id: str) -> tuple[Run, bytes]:
        """A run of the caller's own, and its input."""

        def serve(caller: Caller) -> tuple[Run, bytes]:
            def work(tables: Tables) -> tuple[Run, bytes]:
                run = owned(tables, caller=caller, run_id=run_id)
                return run, self.vault.get(tables, run.input) if run.input and not run.purged_ms else b""

            return self.store.read(work)

        return self.door.enter(presented, "ReadRun", serve)

    def start_attempt(
        self, presented: Presented, *, run_id: str, launcher: str, after: int | None = None
    ) -> Run:
        """A launcher begins to work on a run: every older attempt is superseded from here on.

        With `after` only if that is still the run's attempt: of several that saw the same one begins.

        Raises:
            Conflict: the run has ended, by a denial here too, is held up, or another attempt was begun.
            Unavailable: no verdict on whether its task may still be done; nothing has begun.
        """

        def serve(caller: Caller) -> Run:
            if not 0 < len(launcher) <= 128 or not launcher.isascii():  # noqa: PLR2004 - a random id
                raise InvalidRequest("launcher_invalid")
            worker = Worker(caller, launcher)

            def begin(verdict: Verdict | None) -> Run | Question:
                return self.store.write(lambda tables: self._begin(tables, run_id, worker, after, verdict))

            found = begin(None)
            if isinstance(found, Question):
                with self.beginnings.verdicts.deciding(found) as verdict:
                    found = begin(verdict)
            if isinstance(found, Question):
                raise Unavailable("call_moved", detail=f"{run_id}, while policy was asked")
            if found.ended:
                self.delegations.wake(found)
                raise Conflict("run_ended", detail=f"{run_id}: {found.detail}", recorded=True)
            return found

        return self.door.enter(presented, "StartAttempt", serve)

    def _begin(
        self, tables: Tables, run_id: str, worker: Worker, after: int | None, verdict: Verdict | None
    ) -> Run | Question:
        """The run with a new attempt, or ended because its task was denied, or what to ask policy first."""
        run = owned(tables, caller=worker.caller, run_id=run_id)
        if run.ended:
            raise Conflict("run_ended", detail=f"{run_id} is {run.state}")
        if run.state in HELD or run.state == "pausing":
            raise Conflict(f"run_{run.state}", detail=f"{run_id}: {run.detail}")
        if run.attempt and run.launcher == worker.launcher:
            return run
        if after is not None and run.attempt != after:
            raise Conflict("attempt_superseded", detail=f"{run_id}: after {after}, now {run.attempt}")
        found = self.beginnings.begun(tables, run, worker, verdict)
        if isinstance(found, Question) or found.ended:
            return found
        begun = attempts.begun(found, worker.launcher, now_ms=self.now_ms())
        return self._moved(tables, found, begun, "attempt_started")

    def heartbeat(self, presented: Presented, *, run_id: str, attempt: int, steps: int) -> Run:
        """The current attempt lives."""

        def work(tables: Tables, caller: Caller) -> Run:
            run = require(tables, caller=caller, run_id=run_id, attempt=attempt)
            if steps > MAX_COUNT:
                raise InvalidRequest("steps_invalid")
            now = self.now_ms()
            after = replace(run, heartbeat_ms=now, updated_ms=now, steps=max(steps, run.steps))
            tables.runs.move(run, after)
            return after

        return self.door.enter(
            presented, "Heartbeat", lambda caller: self.store.write(lambda tables: work(tables, caller))
        )

    def end_attempt(  # noqa: PLR0913 - the message's own fields
        self,
        presented: Presented,
        *,
        run_id: str,
        attempt: int,
        state: str,
        detail: str,
        traceback: bytes = b"",
    ) -> Run:
        """The current attempt is over, the run is not. A run that is held up stays so.

        `stopped`: by the end of an orderly worker, so that the run waits for the next one.
        From here on the attempt makes no step; its launcher may still say that it lives, and end the run.
        """

        def work(tables: Tables, caller: Caller) -> Run:
            run = require(tables, caller=caller, run_id=run_id, attempt=attempt)
            over = attempts.ended(run, crashed=state == "restarting")
            if run.state in HELD or (state == "paused" and run.state != "pausing"):
                tables.runs.move(run, over)
                return over
            ends = "paused" if run.state == "pausing" else "pending" if state == "stopped" else state
            after = replace(over, state=ends, detail=detail[:MAX_DETAIL_CHARACTERS], updated_ms=self.now_ms())
            return self._moved(tables, run, self._with(tables, after, traceback), "attempt_ended")

        def serve(caller: Caller) -> Run:
            if state not in PAUSES:
                raise InvalidRequest("state_invalid")
            return self.store.write(lambda tables: work(tables, caller))

        return self.door.enter(presented, "EndAttempt", serve)

    def control(self, *, run_id: str, action: str, operator: str) -> Run:
        """An operator's word about a run.

        Raises:
            Missing: no such run.
            Conflict: not in its state.
            InvalidRequest: no such action.
        """
        if action not in ACTIONS:
            raise InvalidRequest("action_invalid")

        def work(tables: Tables) -> Run:
            run = tables.runs.get(run_id)
            if run is None:
                raise Missing("run_unknown", detail="no such run")
            if run.state not in ACTIONS[action]:
                raise Conflict("run_state", detail=f"{run_id} is {run.state}: {run.detail}")
            after = replace(_controlled(run, action), updated_ms=self.now_ms())
            if action == "continue":
                after = self._without_sides(tables, after)
                left = tables.calls.query(CallQuery(run_id=run_id, states=(State.UNKNOWN,), limit=1))
                if left:
                    after = replace(after, state="waiting", detail=f"unknown {left[0].call_id}")
            moved = self._moved(tables, run, after, f"run_{action}", operator)
            if action == "cancel" and not moved.ended:
                return self.delegations.cancel_below(tables, moved)
            return moved

        return self._woken(self.store.write(work))

    def family(self, run_id: str) -> list[str]:
        """The run, and every run that was started for it below."""
        return self.store.read(lambda tables: self.delegations.family(tables, run_id))

    def _woken(self, run: Run) -> Run:
        """Tells whoever waits for a run that it has ended, and cancels the rest of what it had asked for.

        Called once the end is durable.
        """
        self.delegations.wake(run)
        if run.recalling:
            self.delegations.recall(self.store)
        return run

    @staticmethod
    def _without_sides(tables: Tables, run: Run) -> Run:
        """Without the two sides of its divergence, which nobody needs any more."""
        if run.traceback is not None:
            tables.payloads.delete([run.traceback.payload_id])
        return replace(run, traceback=None)

    def _with(self, tables: Tables, run: Run, traceback: bytes) -> Run:
        """A traceback may hold anything, so it lies where clear text lies."""
        if not traceback:
            return run
        if run.traceback is not None:  # nothing names it any more
            tables.payloads.delete([run.traceback.payload_id])
        return replace(run, traceback=self.vault.put(tables, traceback[-MAX_TRACEBACK_BYTES:]))

    def finish(  # noqa: PLR0913 - the message's own fields
        self,
        presented: Presented,
        *,
        run_id: str,
        attempt: int,
        state: str,
        detail: str,
        traceback: bytes = b"",
        result: bytes = b"",
    ) -> Run:
        """The current attempt ends the run; the same end again is no error."""

        def work(tables: Tables, caller: Caller) -> Run:
            run = owned(tables, caller=caller, run_id=run_id)
            if run.ended and run.attempt == attempt and run.state == state:
                return run
            # What is over has done nothing more: it cannot have come to the end of its program.
            check = acting if state == "completed" else require
            run = check(tables, caller=caller, run_id=run_id, attempt=attempt)
            if run.state in HELD and state == "completed":
                raise Conflict(f"run_{run.state}", detail=run.detail)
            after = replace(run, state=state, detail=detail[:MAX_DETAIL_CHARACTERS], updated_ms=self.now_ms())
            if result:
                after = replace(after, result=self.vault.put(tables, result))
            return self._moved(tables, run, self._with(tables, after, traceback), "run_finished")

        def serve(caller: Caller) -> Run:
            if state not in ENDS:
                raise InvalidRequest("state_invalid")
            if len(result) > MAX_RESULT_BYTES:
                raise InvalidRequest("result_too_large")
            return self._woken(self.store.write(lambda tables: work(tables, caller)))

        return self.door.enter(presented, "FinishRun", serve)

    def _moved(self, tables: Tables, before: Run, after: Run, event: str, operator: str = "") -> Run:
        if not tables.runs.move(before, after):
            raise Conflict("run_changed", detail=before.run_id)
        tables.records.append(note(self.recorder, event, after, operator))
        return self.delegations.ended(tables, after) if after.ended else after


def _controlled(run: Run, action: str) -> Run:
    if action == "cancel":
        return attempts.cancelled(run, "cancelled by an operator")
    if action == "pause":
        idle = run.state == "pending" or not run.launcher  # between two attempts nobody is to be waited for
        return replace(run, state="paused" if idle else "pausing", detail="by an operator")
    if action == "resume":
        running = run.state == "pausing"
        return replace(run, state="running" if running else "restarting", detail="resumed by an operator")
    if run.detail.startswith("unknown "):
        raise Conflict("call_unknown", detail=f"{run.run_id} waits: {run.detail}; resolve the call")
    if action == "continue":
        return replace(run, state="restarting", detail="continued by an operator", trusted_from=run.attempt)
    return replace(run, state="failed", detail=f"failed by an operator: {run.detail}")
