"""What a tool host may do: take a call that is its own, and settle what it took.

Only `finish` makes an outcome. The caller's certificate says which host it is; an unknown,
finished or foreign call is refused and recorded, so a forged or repeated delivery does nothing.

A call that may have begun is put to the policy in force once more before it may run again.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from meshgate_gateway import calls, ledger, runs
from meshgate_gateway.authenticate import Door
from meshgate_gateway.decide import Deny
from meshgate_gateway.errors import (
    Conflict,
    InvalidRequest,
    Missing,
    NotPermitted,
    Refused,
    Unavailable,
)
from meshgate_gateway.execute import Executor, Waiters
from meshgate_gateway.model import Caller, Kind, LedgerRow, Outcome, Presented, ResultKind, State
from meshgate_gateway.payloads import Vault
from meshgate_gateway.record import Recorder
from meshgate_gateway.store import CallQuery, Store, Tables
from meshgate_gateway.verdicts import Question, Verdict, Verdicts

MAX_RESULT_BYTES = 3_145_728  # below gRPC's default 4 MiB receive limit, with room for the rest
MAX_MESSAGE_BYTES = 4096
MAX_NAME_CHARACTERS = 128
DENIED_AGAIN = "denied_again"  # error class of a call that policy lets begin no more

_Host = tuple[Caller, str]  # and which process of it


@dataclass(frozen=True, slots=True)
class Taken:
    """A call handed to its host: the bytes that were decided on.

    Attributes:
        ambiguous: an earlier take may have begun; the host reconciles before it runs anything.
        may_begin: an ambiguous call that had not begun may begin now.
    """

    row: LedgerRow
    arguments: bytes
    ambiguous: bool = False
    may_begin: bool = False

    @property
    def taken_before(self) -> bool:
        """True when an earlier take may have begun."""
        return self.row.take > 1


@dataclass(frozen=True, slots=True)
class Hosts:
    """TakeCall and FinishCall without their wire.

    Attributes:
        reconciles: tools whose hosts can find out what came of a call.
    """

    door: Door
    store: Store
    vault: Vault
    recorder: Recorder
    executor: Executor
    waiters: Waiters
    now_ms: Callable[[], int]
    verdicts: Verdicts
    reconciles: frozenset[str] = frozenset()

    def take(self, presented: Presented, *, call_id: str, host_instance: str) -> Taken:
        """Moves a call reserved -> sent, durably, and hands out its exact arguments.

        Raises:
            NotPermitted: not this host's, or no such call.
            Conflict: settled, superseded, denied now, or perhaps begun and not repeatable.
            Unavailable: no verdict on whether it may run again; it stays as it is.
        """

        def serve(caller: Caller) -> Taken:
            _check_names(call_id, host_instance)

            def take(verdict: Verdict | None) -> Taken | Refused | Question:
                host = (caller, host_instance)
                return self.store.write(lambda tables: self._take(tables, host, call_id, verdict))

            found = take(None)
            if isinstance(found, Question):
                with self.verdicts.deciding(found) as verdict:
                    found = take(verdict)
            if isinstance(found, Question):
                raise Unavailable("call_moved", detail=f"{call_id}, while policy was asked")
            if isinstance(found, Refused):
                self.waiters.settled(call_id)
                raise found
            return found

        return self.door.enter(presented, "TakeCall", serve)

    def _take(
        self, tables: Tables, host: _Host, call_id: str, verdict: Verdict | None
    ) -> Taken | Refused | Question:
        """The call, or what to ask policy first. Then nothing was written."""
        caller, instance = host
        row = _owned(tables, caller, call_id)
        if row.tool in self.reconciles and _perhaps_begun(row, instance):
            return self._to_reconcile(tables, host, row, verdict)
        if row.state not in (State.RESERVED, State.SENT):
            raise Conflict("call_settled", call_id=call_id, tool=row.tool, detail=f"it is {row.state}")
        _fence(tables, row)
        if row.state is State.SENT and not row.repeatable:
            if row.host_instance == instance:
                raise Conflict("call_taken", call_id=call_id, tool=row.tool, detail="by this process")
            return self._ambiguous(tables, row)
        if row.state is State.SENT:
            denied = self._denied_now(tables, host, row, verdict)
            if isinstance(denied, Question):
                return denied
            if denied:
                return self._not_again(tables, row, denied)
        after = ledger.taken(row, host_instance=instance, now_ms=self.now_ms())
        _move(tables, row, after)
        tables.records.append(self.recorder.take(caller=caller, row=after))
        return Taken(after, self.vault.get(tables, row.arguments))

    def _denied_now(
        self, tables: Tables, host: _Host, row: LedgerRow, verdict: Verdict | None
    ) -> tuple[str, ...] | Question:
        """Why a call may not begin once more, as recorded here; empty when it may."""
        if reason := self.verdicts.changed(row):
            changed = replace(row, reasons=(reason,))
            tables.records.append(
                self.recorder.denied_unasked(caller=host[0], row=changed, method="TakeCall")
            )
            return changed.reasons
        if verdict is None or not verdict.is_of(row):
            return self.verdicts.again(tables, row)
        again = {"take": row.take + 1, "taken_by": host[0].spiffe_id, "host_instance": host[1]}
        tables.records.append(self.verdicts.record(verdict, row, again))
        return verdict.decision.reasons if isinstance(verdict.decision, Deny) else ()

    def _to_reconcile(
        self, tables: Tables, host: _Host, row: LedgerRow, verdict: Verdict | None
    ) -> Taken | Question:
        """Hands out a question.

        Only what is not held to be lost, in a live attempt, may still begin, and only once the host that had
        it before is past its deadline: what has not begun there may begin in a moment. And policy allows it.
        """
        caller, instance = host
        run = tables.runs.get(row.run_id) if row.run_id else None
        lives = run is None or (bool(run.launcher) and run.state not in runs.HELD)
        now = self.now_ms()
        over = row.state is State.UNKNOWN or not lives or bool(_fenced(tables, row))
        may_run = not over and ledger.quiet(row, now_ms=now)
        if may_run:
            denied = self._denied_now(tables, host, row, verdict)
            if isinstance(denied, Question):
                return denied
            may_run, over = not denied, bool(denied)
        after = ledger.asked_again(row, host_instance=instance, now_ms=now, may_run=may_run, over=over)
        _move(tables, row, after)
        tables.records.append(self.recorder.take(caller=caller, row=after, ambiguous=True))
        return Taken(after, self.vault.get(tables, row.arguments), ambiguous=True, may_begin=may_run)

    def _not_again(self, tables: Tables, row: LedgerRow, reasons: tuple[str, ...]) -> Conflict:
        """It is not run once more. What ran before may have acted all the same, unless it only reads."""
        state = State.FAILED if row.effect == "read" else State.UNKNOWN
        why = f"its host was lost, and it may not run again: {', '.join(reasons)}"
        outcome = checked(Outcome(state, why.encode(), "", DENIED_AGAIN))
        self._settle(tables, row, outcome, by="gateway", cause=DENIED_AGAIN)
        return Conflict(DENIED_AGAIN, call_id=row.call_id, tool=row.tool, recorded=True)

    def _ambiguous(self, tables: Tables, row: LedgerRow) -> Conflict:
        """It may have begun elsewhere and must not run twice: nobody knows, until somebody says."""
        outcome = Outcome(State.UNKNOWN, b"the tool may have run; its outcome is not known", "", "lost_host")
        self._settle(tables, row, outcome, by="gateway", cause="taken_before")
        return Conflict("call_unknown", call_id=row.call_id, tool=row.tool, recorded=True)

    def finish(
        self, presented: Presented, *, call_id: str, take: int, host_instance: str, outcome: Outcome
    ) -> State:
        """Settles a taken call and wakes who waits. The same outcome again is no error.

        Raises:
            NotPermitted: not this host's, or no such call.
            Conflict: never taken, another take, or settled otherwise.
            InvalidRequest: a result that is too large or not what it says.
        """

        def serve(caller: Caller) -> State:
            _check_names(call_id, host_instance)
            sound = checked(outcome)
            state = self.store.write(lambda tables: self._finish(tables, caller, call_id, take, sound))
            self.executor.forget(call_id)
            self.waiters.settled(call_id)
            return state

        return self.door.enter(presented, "FinishCall", serve)

    def _finish(self, tables: Tables, caller: Caller, call_id: str, take: int, outcome: Outcome) -> State:
        row = _owned(tables, caller, call_id)
        if row.take == 0:
            raise Conflict("call_not_taken", call_id=call_id, tool=row.tool)
        if take != row.take:
            raise Conflict(
                "take_superseded", call_id=call_id, tool=row.tool, detail=f"take {take}, now {row.take}"
            )
        if outcome.reconciled and row.tool not in self.reconciles:
            raise Conflict("not_reconciled", call_id=call_id, tool=row.tool, detail="it has no reconcile")
        if outcome.reconciled and row.state is outcome.state is State.UNKNOWN:
            return row.state  # asked once more, and still nobody knows
        if not ledger.believed(row, outcome):
            return row.state  # asked again, past the deadline of the host that had it
        if outcome.state is State.UNKNOWN and row.effect == "read":
            outcome = replace(outcome, state=State.FAILED)  # nothing can have been changed
        if row.state in ledger.SETTLED or row.state is outcome.state:
            return self._again(tables, row, outcome)
        if outcome.reconciled:
            by = f"reconcile {caller.spiffe_id}"
            return self._settle(tables, row, outcome, by=by, cause="reconciled").state
        return self._settle(tables, row, outcome, by=caller.spiffe_id).state

    def _again(self, tables: Tables, row: LedgerRow, outcome: Outcome) -> State:
        same = (
            row.state is outcome.state
            and row.result is not None
            and self.vault.matches(tables, row.result, outcome.data)
        )
        if not same:
            raise Conflict("call_settled", call_id=row.call_id, tool=row.tool, detail=f"it is {row.state}")
        return row.state

    def expire(self, row: LedgerRow, outcome: Outcome, *, cause: str) -> bool:
        """The sweeper's settlement; False when the call has moved on meanwhile."""

        def work(tables: Tables) -> bool:
            current = tables.calls.get(row.call_id)
            if current != row:
                return False
            self._settle(tables, row, outcome, by="gateway", cause=cause)
            return True

        moved = self.store.write(work)
        self.executor.forget(row.call_id)
        self.waiters.settled(row.call_id)
        return moved

    def cut(self, run_id: str) -> None:
        """Of a cancelled run: what has not begun never will, what runs has its deadline now."""
        query = CallQuery(run_id=run_id, states=(State.RESERVED, State.SENT), delegated=False)
        for row in self.store.read(lambda tables: tables.calls.query(query)):
            if row.state is State.RESERVED:
                message = b"the run was cancelled before the call began"
                self.expire(row, Outcome(State.FAILED, message, "", "never_started"), cause="cancelled")
            else:
                after = replace(row, deadline_at_ms=min(row.deadline_at_ms, self.now_ms()))
                self.store.write(lambda tables, row=row, after=after: tables.calls.move(row, after))  # type: ignore[misc]

    def _settle(
        self, tables: Tables, row: LedgerRow, outcome: Outcome, *, by: str, cause: str = ""
    ) -> LedgerRow:
        if row.result is not None:  # what stood there while nobody knew: nothing names it any more
            tables.payloads.delete([row.result.payload_id])
        sealed = self.vault.put(tables, outcome.data)
        after = ledger.settled(row, outcome, sealed, now_ms=self.now_ms())
        _move(tables, row, after)
        tables.records.append(self.recorder.outcome(row=after, by=by, cause=cause))
        if row.run_id:
            tables.runs.grow(row.run_id, steps=0, size_bytes=sealed.size_bytes)
        if after.state is State.UNKNOWN:
            runs.park(
                tables,
                self.recorder,
                run_id=row.run_id,
                why=f"unknown {row.call_id}",
                now_ms=after.updated_ms,
            )
        elif row.state is State.UNKNOWN:
            runs.unpark(tables, self.recorder, run_id=row.run_id, now_ms=after.updated_ms)
        return after

    def resolve(self, *, call_id: str, outcome: Outcome, operator: str) -> State:
        """A person says how an unknown call ended.

        Raises:
            Missing: no such call.
            Conflict: it is not unknown.
            InvalidRequest: the outcome is none, or not what it says.
        """
        if outcome.state not in (State.DONE, State.FAILED):
            raise InvalidRequest("state_invalid")
        sound = checked(outcome)
        if sound.state is State.FAILED and not sound.data.strip():
            sound = replace(sound, data=b"a person says that it failed")

        def work(tables: Tables) -> State:
            row = tables.calls.get(call_id)
            if row is None:
                raise Missing("call_unknown", detail="no such call")
            if row.state is not State.UNKNOWN:
                raise Conflict("call_settled", call_id=call_id, tool=row.tool, detail=f"it is {row.state}")
            return self._settle(tables, row, sound, by=f"operator {operator}", cause="resolved").state

        state = self.store.write(work)
        self.waiters.settled(call_id)
        return state


def _check_names(call_id: str, host_instance: str) -> None:
    if not calls.is_call_id(call_id):
        raise InvalidRequest("call_id_invalid")
    if not 0 < len(host_instance) <= MAX_NAME_CHARACTERS or not host_instance.isascii():
        raise InvalidRequest("host_instance_invalid", call_id=call_id)


def _owned(tables: Tables, caller: Caller, call_id: str) -> LedgerRow:
    """The call, if the caller is the host that owns its tool; unknown and foreign look alike."""
    row = tables.calls.get(call_id)
    if row is None:
        raise NotPermitted("call_not_owned", call_id=call_id, detail="no such call")
    if caller.kind is not Kind.TOOLHOST or row.host != caller.app:
        raise NotPermitted("call_not_owned", call_id=call_id, tool=row.tool, detail="another host's")
    return row


def _perhaps_begun(row: LedgerRow, instance: str) -> bool:
    """Nobody knows what came of an earlier take. A first take whose answer was lost began nothing."""
    if row.state is State.UNKNOWN:
        return True
    elsewhere = row.host_instance != instance or row.take > 1
    return row.state is State.SENT and not row.repeatable and elsewhere


def _fence(tables: Tables, row: LedgerRow) -> None:
    """A superseded attempt, one that ended, or a run that ended, begins nothing new."""
    if reason := _fenced(tables, row):
        raise Conflict(reason, call_id=row.call_id, tool=row.tool)


def _fenced(tables: Tables, row: LedgerRow) -> str:
    run = tables.runs.get(row.run_id) if row.run_id else None
    if not row.run_id:
        return ""
    if run is None or run.ended or run.attempt != row.attempt:
        return "attempt_superseded"
    # What may have begun is seen through: a repeatable tool, under the same key.
    if not run.launcher and row.state is State.RESERVED:
        return "attempt_ended"
    if run.state == "cancelling" or (run.state in runs.HELD and row.state is State.RESERVED):
        return f"run_{run.state}"
    return ""


def _move(tables: Tables, before: LedgerRow, after: LedgerRow) -> None:
    if not tables.calls.move(before, after):
        raise Conflict("call_moved", call_id=before.call_id, tool=before.tool)


def checked(outcome: Outcome) -> Outcome:
    """An outcome of a known state whose data is what it says, a failure's message cut to size.

    Raises:
        InvalidRequest: it is not.
    """
    if outcome.state not in ledger.OUTCOMES:
        raise InvalidRequest("outcome_missing")
    if len(outcome.data) > MAX_RESULT_BYTES:
        raise InvalidRequest("result_too_large", detail=f"{len(outcome.data)} bytes")
    if outcome.state is not State.DONE:
        if not outcome.error_class.isascii() or len(outcome.error_class) > MAX_NAME_CHARACTERS:
            raise InvalidRequest("error_class_invalid")
        return replace(outcome, data=outcome.data[:MAX_MESSAGE_BYTES].decode(errors="ignore").encode())
    try:
        text = outcome.data.decode()
        if outcome.result_kind == ResultKind.JSON:
            json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("result_invalid", detail=f"not {outcome.result_kind}") from error
    return outcome
