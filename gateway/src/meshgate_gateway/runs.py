"""Runs: start, attempts with a fencing number, heartbeat, finish.

Every check, that the caller is the run's app and that the attempt is the current one, is made
in the transaction that writes. The gateway marks and refuses; it never starts anything.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

from meshgate_gateway import calls
from meshgate_gateway.authenticate import Door
from meshgate_gateway.errors import Conflict, InvalidRequest, Missing, NotPermitted
from meshgate_gateway.model import Caller, Kind, Presented, Run
from meshgate_gateway.payloads import Vault
from meshgate_gateway.record import Recorder
from meshgate_gateway.store import Store, Tables

RUNNERS = frozenset({Kind.CREW, Kind.PROGRAM, Kind.AGENT})
ENDS = frozenset({"completed", "failed", "cancelled"})
MAX_INPUT_BYTES = 1_048_576  # a quarter of gRPC's default receive limit
MAX_DETAIL_CHARACTERS = 2000


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

    def start(self, presented: Presented, *, run_id: str, input_json: bytes) -> Run:
        """An app starts a run of itself; the same id again is the same run."""

        def serve(caller: Caller) -> Run:
            if caller.kind not in RUNNERS:
                raise NotPermitted("run_not_permitted", detail=f"a {caller.kind} has no runs")
            chosen = run_id or f"run-{uuid.uuid4().hex}"
            if not calls.is_run_id(chosen):
                raise InvalidRequest("run_id_invalid")
            if len(input_json) > MAX_INPUT_BYTES:
                raise InvalidRequest("input_too_large")
            return self.store.write(lambda tables: self._insert(tables, caller, chosen, input_json))

        return self.door.enter(presented, "StartRun", serve)

    def _insert(self, tables: Tables, caller: Caller, run_id: str, input_json: bytes) -> Run:
        if tables.runs.get(run_id) is not None:
            return owned(tables, caller=caller, run_id=run_id)
        now = self.now_ms()
        sealed = self.vault.put(tables, input_json) if input_json else None
        run = Run(run_id, caller.spiffe_id, "pending", 0, "", now, now, now, 0, "", sealed)
        tables.runs.insert(run)
        self._note(tables, "run_started", run)
        return run

    def start_attempt(self, presented: Presented, *, run_id: str, launcher: str) -> Run:
        """A launcher begins to work on a run: every older attempt is superseded from here on."""

        def work(tables: Tables, caller: Caller) -> Run:
            run = owned(tables, caller=caller, run_id=run_id)
            if run.ended:
                raise Conflict("run_ended", detail=f"{run_id} is {run.state}")
            if run.attempt and run.launcher == launcher:
                return run
            now = self.now_ms()
            after = replace(
                run,
                state="running",
                attempt=run.attempt + 1,
                launcher=launcher,
                updated_ms=now,
                heartbeat_ms=now,
            )
            return self._moved(tables, run, after, "attempt_started")

        def serve(caller: Caller) -> Run:
            if not 0 < len(launcher) <= 128 or not launcher.isascii():  # noqa: PLR2004 - a random id
                raise InvalidRequest("launcher_invalid")
            return self.store.write(lambda tables: work(tables, caller))

        return self.door.enter(presented, "StartAttempt", serve)

    def heartbeat(self, presented: Presented, *, run_id: str, attempt: int, steps: int) -> Run:
        """The current attempt lives."""

        def work(tables: Tables, caller: Caller) -> Run:
            run = require(tables, caller=caller, run_id=run_id, attempt=attempt)
            now = self.now_ms()
            after = replace(run, heartbeat_ms=now, updated_ms=now, steps=max(steps, run.steps))
            tables.runs.move(run, after)
            return after

        return self.door.enter(
            presented, "Heartbeat", lambda caller: self.store.write(lambda tables: work(tables, caller))
        )

    def finish(self, presented: Presented, *, run_id: str, attempt: int, state: str, detail: str) -> Run:
        """The current attempt ends the run; the same end again is no error."""

        def work(tables: Tables, caller: Caller) -> Run:
            run = owned(tables, caller=caller, run_id=run_id)
            if run.ended and run.attempt == attempt and run.state == state:
                return run
            run = require(tables, caller=caller, run_id=run_id, attempt=attempt)
            after = replace(run, state=state, detail=detail[:MAX_DETAIL_CHARACTERS], updated_ms=self.now_ms())
            return self._moved(tables, run, after, "run_finished")

        def serve(caller: Caller) -> Run:
            if state not in ENDS:
                raise InvalidRequest("state_invalid")
            return self.store.write(lambda tables: work(tables, caller))

        return self.door.enter(presented, "FinishRun", serve)

    def _moved(self, tables: Tables, before: Run, after: Run, event: str) -> Run:
        if not tables.runs.move(before, after):
            raise Conflict("run_changed", detail=before.run_id)
        self._note(tables, event, after)
        return after

    def _note(self, tables: Tables, event: str, run: Run) -> None:
        fields = {"run_id": run.run_id, "attempt": run.attempt, "state": run.state, "steps": run.steps}
        tables.records.append(self.recorder.lifecycle(event=event, caller=run.app, fields=fields))
