"""Tasks that one app gives to another agent's app: a call, and the run that answers it.

The call's decision, its ledger row and the run are made in one transaction. The run's first attempt is the
begin of the effect, and the transaction that ends the run, however it ends, settles the call. When a run ends
or is cancelled, what it had asked for below is cancelled with it: nobody is there to take the answer. A
large family takes several transactions, so that others write in between: until the last of them, a run whose
callees are not all told is marked. Nothing below it can begin meanwhile, see `beginnings`.

Everything here is called within a transaction that somebody else opened, but for `wake` and `recall`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from meshgate_gateway import attempts, calls, chains, ledger, narrowing
from meshgate_gateway.answers import OPEN
from meshgate_gateway.bounds import DEFAULT_BOUNDS, Bounds
from meshgate_gateway.errors import Conflict
from meshgate_gateway.execute import Waiters
from meshgate_gateway.model import Caller, LedgerRow, Outcome, ResultKind, Run, State
from meshgate_gateway.notes import note
from meshgate_gateway.payloads import Vault
from meshgate_gateway.record import Recorder
from meshgate_gateway.store import CallQuery, Store, Tables

MAX_ANSWER_BYTES = 3_145_728  # below gRPC's default 4 MiB receive limit, as of any call
MAX_MESSAGE_CHARACTERS = 500  # one line for a model
MAX_BELOW = 10_000  # as many calls as a run has steps
SLICE = 10  # runs cancelled per transaction: 10 ms that others wait on SQLite, 50 on PostgreSQL


@dataclass(slots=True)
class Room:
    """How many runs a transaction may still end."""

    left: int = field(default_factory=lambda: SLICE)


@dataclass(frozen=True, slots=True)
class Delegations:
    """Keeps call and run together."""

    vault: Vault
    recorder: Recorder
    waiters: Waiters
    now_ms: Callable[[], int]
    bounds: Bounds = DEFAULT_BOUNDS

    def allowed(
        self,
        tables: Tables,
        row: LedgerRow,
        *,
        caller: Caller,
        arguments: bytes,
        obligations: Mapping[str, object],
    ) -> None:
        """Makes the run of a delegation that was allowed just now.

        Allowed once more before it began, it only may be narrowed further.

        Raises:
            Conflict: too many runs of the callee have not ended, or too many were asked for.
        """
        if tables.runs.get(calls.delegated_run(row.call_id)) is not None:
            self.narrowed(tables, row, obligations)
            return
        asking = tables.runs.get(row.run_id)
        if asking is None:
            raise RuntimeError("a delegation belongs to a run")
        narrow = narrowing.added(asking.narrow, obligations)
        self._make(tables, row, caller, asking, narrow, arguments)

    @staticmethod
    def narrowed(tables: Tables, row: LedgerRow, obligations: Mapping[str, object]) -> None:
        """Puts the run of a delegation that was allowed once more under this verdict's `narrow` too.

        What an earlier verdict narrowed stays: nobody may do more because a task waited.
        """
        made = tables.runs.get(calls.delegated_run(row.call_id))
        if made is not None:
            tables.runs.move(made, replace(made, narrow=narrowing.added(made.narrow, obligations)))

    def _make(  # noqa: PLR0913, PLR0917 - what a run is made of
        self,
        tables: Tables,
        row: LedgerRow,
        caller: Caller,
        asking: Run,
        narrow: str,
        arguments: bytes,
    ) -> None:
        now, links = self.now_ms(), chains.below(caller, asking)
        callee = chains.spiffe_id(caller, row.host)
        self.bounds.check_share(tables, row, callee)
        self.bounds.add_delegation(tables, row, links[0].run_id)
        run = Run(calls.delegated_run(row.call_id), callee, "pending", 0, "", now, now, now, 0, "")
        run = replace(
            run,
            origin=asking.origin,  # what a re-run asks for happens again, too, and a rule may mind that
            driven=True,
            parent_call=row.call_id,
            chain=chains.written(links),
            narrow=narrow,
            caller=caller.spiffe_id,
            input=self.vault.put(tables, _envelope(row.host, arguments, depth=len(links))),
        )
        if not tables.runs.insert(run):
            raise Conflict("run_taken", call_id=row.call_id, tool=row.tool, detail=run.run_id)
        about = {
            "origin": run.origin,
            "parent_call": row.call_id,
            "delegation": chains.shown(links),
            "narrow": [dict(each) for each in narrowing.read(narrow)],
        }
        tables.records.append(note(self.recorder, "run_started", run, more=about))

    def ended(self, tables: Tables, run: Run, room: Room | None = None) -> Run:
        """Settles the call that the run answers, and cancels what the run had asked for.

        Returns:
            As `cancel_below`.
        """
        row = self._call(tables, run)
        if row is not None and row.state in OPEN:
            self._settle(tables, row, run)
        return self.cancel_below(tables, run, room)

    def _settle(self, tables: Tables, row: LedgerRow, run: Run) -> None:
        outcome = self._outcome(tables, run)
        sealed = self.vault.put(tables, outcome.data)
        after = ledger.settled(row, outcome, sealed, now_ms=self.now_ms())
        _move(tables, row, after)
        tables.records.append(
            self.recorder.outcome(row=after, by=f"run {run.run_id}", cause=f"run_{run.state}")
        )
        tables.runs.grow(row.run_id, steps=0, size_bytes=sealed.size_bytes)

    def _outcome(self, tables: Tables, run: Run) -> Outcome:
        """What an ended run is as the outcome of a call."""
        if run.state == "cancelled":
            return _failed("cancelled", f"the agent's run was cancelled: {run.detail}")
        if run.state != "completed":
            return _failed("agent_failed", run.detail or "the agent's run failed")
        if run.result is None:
            return _failed("agent_no_result", "the agent's run ended without a result")
        if run.result.size_bytes > MAX_ANSWER_BYTES:
            return _failed("agent_result_too_large", f"the agent's result has {run.result.size_bytes} bytes")
        data = self.vault.get(tables, run.result)
        if not _is_json(data):
            return _failed("agent_result_invalid", "the agent's result is not JSON")
        return Outcome(State.DONE, data, ResultKind.JSON.value)

    def withdraw(self, tables: Tables, row: LedgerRow) -> Run | None:
        """A delegation that was allowed, and is denied before it began: its run never begins."""
        run = tables.runs.get(calls.delegated_run(row.call_id))
        if run is not None and not run.ended:
            return self._cancel(tables, run, "the task may not be given any more")
        return run

    def cancel_below(self, tables: Tables, run: Run, room: Room | None = None) -> Run:
        """Cancels the open runs that this one had asked for, and theirs, as far as there is room.

        Returns:
            The run after that: `recalling` while there is a rest, which is `recall`'s.
        """
        room, rest = room or Room(), False
        for child in tables.runs.below(run.run_id, limit=room.left + 1):
            if not room.left:
                rest = True
                break
            room.left -= 1
            self._cancel(tables, child, f"with {run.run_id}, which asked for it", room)
        if rest == run.recalling:
            return run
        now = tables.runs.get(run.run_id) or run  # it has grown by the failures of its calls
        after = replace(now, recalling=rest)
        tables.runs.move(now, after)
        return after

    def recall(self, store: Store) -> int:
        """Goes on cancelling where runs are marked, a transaction for each slice; how many that took.

        Called by whoever ended a run, and by the sweep: whoever did may have died over it.

        Raises:
            StoreUnavailable: what was done stays, and the rest is marked.
        """
        slices = 0
        while store.read(lambda tables: tables.runs.recalling(limit=1)):
            store.write(self._slice)
            slices += 1
        return slices

    def _slice(self, tables: Tables) -> None:
        for run in tables.runs.recalling(limit=1):
            self.cancel_below(tables, run)

    def _cancel(self, tables: Tables, run: Run, why: str, room: Room | None = None) -> Run:
        after = replace(attempts.cancelled(run, why), updated_ms=self.now_ms())
        if not tables.runs.move(run, after):
            raise Conflict("run_changed", detail=run.run_id)
        tables.records.append(note(self.recorder, "run_cancel", after, more={"cause": why}))
        return self.ended(tables, after, room) if after.ended else self.cancel_below(tables, after, room)

    def family(self, tables: Tables, run_id: str) -> list[str]:
        """The run, and every run below it."""
        query = CallQuery(run_id=run_id, delegated=True, limit=MAX_BELOW)
        below = [calls.delegated_run(row.call_id) for row in tables.calls.query(query) if row.delegates]
        return [run_id, *(each for child in below for each in self.family(tables, child))]

    def wake(self, run: Run) -> None:
        """Tells whoever waits for the run's call that it is settled; called once that is durable."""
        if run.ended and run.parent_call:
            self.waiters.settled(run.parent_call)

    @staticmethod
    def _call(tables: Tables, run: Run) -> LedgerRow | None:
        return tables.calls.get(run.parent_call) if run.parent_call else None


def _envelope(app: str, arguments: bytes, *, depth: int) -> bytes:
    """The run's input as its app's worker reads it."""
    kept = {"app": app, "delegation": json.loads(arguments), "depth": depth}
    return json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def _failed(error_class: str, message: str) -> Outcome:
    line = " ".join(message.split())[:MAX_MESSAGE_CHARACTERS]
    return Outcome(State.FAILED, line.encode(), "", error_class)


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data.decode())
    except (ValueError, RecursionError):
        return False
    return True


def _move(tables: Tables, before: LedgerRow, after: LedgerRow) -> None:
    if not tables.calls.move(before, after):
        raise Conflict("call_moved", call_id=before.call_id, tool=before.tool)
