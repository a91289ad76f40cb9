"""What an agent may say of a tool that it runs itself: what came of a call it was told to run.

Such a tool changes objects in the agent's memory and nothing else, so each attempt of a run runs it
anew, and its outcome is the agent's own word. What is held to is that the word stays the same: another
outcome than the recorded one holds the run up, with both sides kept, until a person has spoken.
"""

from collections.abc import Callable
from dataclasses import dataclass

from meshgate_gateway import calls, ledger, runs
from meshgate_gateway.answers import answer_of
from meshgate_gateway.authenticate import Door
from meshgate_gateway.errors import Conflict, InvalidRequest, NotPermitted, Refused
from meshgate_gateway.execute import Waiters
from meshgate_gateway.hosts import checked
from meshgate_gateway.model import RUNNERS, Answer, Caller, LedgerRow, Outcome, Presented, Run, State
from meshgate_gateway.payloads import Vault
from meshgate_gateway.record import Recorder
from meshgate_gateway.sides import Side, Sides
from meshgate_gateway.store import Store, Tables


def permit(row: LedgerRow, arguments: bytes) -> Answer:
    """Tells the caller to run its own tool.

    Args:
        row: handed out to the caller's attempt, durably.
        arguments: the canonical bytes that were decided on.
    """
    return Answer(row.call_id, row.state, row.decision_id, arguments=arguments, take=row.take)


def runs_again(row: LedgerRow) -> bool:
    """True for a settled call whose body a later attempt has to run: it did run, and to its end."""
    cut = row.error_class in (ledger.RUN_ENDED, ledger.TIMEOUT)
    return row.in_agent and row.take > 0 and row.state in ledger.ANSWERED and not cut


@dataclass(frozen=True, slots=True)
class OwnCall:
    """Which call, by which attempt, under which permit; `take` is 0 for one that is settled."""

    call_id: str
    attempt: int
    take: int


@dataclass(frozen=True, slots=True)
class OwnCalls:
    """FinishOwnCall without its wire."""

    door: Door
    store: Store
    vault: Vault
    recorder: Recorder
    waiters: Waiters
    now_ms: Callable[[], int]

    def finish(self, presented: Presented, call: OwnCall, outcome: Outcome) -> Answer:
        """Settles a call that its caller ran itself. The same outcome again is no error.

        Raises:
            NotPermitted: another app's, no such call, or one that a tool host runs.
            Missing: no such run.
            Conflict: superseded, denied, not handed to this attempt, or another outcome than recorded.
            InvalidRequest: a result that is too large or not what it says.
        """

        def serve(caller: Caller) -> Answer:
            if caller.kind not in RUNNERS:
                raise NotPermitted("call_not_owned", detail=f"a {caller.kind} makes no calls")
            if not calls.is_call_id(call.call_id):
                raise InvalidRequest("call_id_invalid")
            sound = checked(outcome)
            if sound.state not in ledger.ANSWERED:
                raise InvalidRequest("outcome_missing", call_id=call.call_id)
            found = self.store.write(lambda tables: self._finish(tables, caller, call, sound))
            if isinstance(found, Refused):
                raise found
            self.waiters.settled(call.call_id)
            return found

        return self.door.enter(presented, "FinishOwnCall", serve)

    def _finish(self, tables: Tables, caller: Caller, call: OwnCall, outcome: Outcome) -> Answer | Refused:
        call_id = call.call_id
        row = _owned(tables, caller, call_id)
        run = runs.acting(tables, caller=caller, run_id=row.run_id, attempt=call.attempt)
        if row.state is State.SENT:
            if (row.attempt, row.take) != (call.attempt, call.take):
                raise Conflict("take_superseded", call_id=call_id, tool=row.tool, detail=f"now {row.take}")
            return self._settle(tables, caller, row, outcome)
        if row.state not in ledger.ANSWERED or row.result is None:
            raise Conflict("call_settled", call_id=call_id, tool=row.tool, detail=f"it is {row.state}")
        if self._same(tables, row, outcome):
            return answer_of(row, self.vault.get(tables, row.result))
        if row.attempt == call.attempt:
            raise Conflict(
                "call_settled", call_id=call_id, tool=row.tool, detail="otherwise, in this attempt"
            )
        return self._differs(tables, run, row, outcome)

    def _settle(self, tables: Tables, caller: Caller, row: LedgerRow, outcome: Outcome) -> Answer:
        sealed = self.vault.put(tables, outcome.data)
        after = ledger.settled(row, outcome, sealed, now_ms=self.now_ms())
        if not tables.calls.move(row, after):
            raise Conflict("call_moved", call_id=row.call_id, tool=row.tool)
        tables.records.append(self.recorder.outcome(row=after, by=caller.spiffe_id))
        tables.runs.grow(row.run_id, steps=0, size_bytes=sealed.size_bytes)
        return answer_of(after, outcome.data)

    def _same(self, tables: Tables, row: LedgerRow, outcome: Outcome) -> bool:
        told = (outcome.state, outcome.result_kind, outcome.error_class)
        return (
            told == (row.state, row.result_kind, row.error_class)
            and row.result is not None
            and self.vault.matches(tables, row.result, outcome.data)
        )

    def _differs(self, tables: Tables, run: Run, row: LedgerRow, outcome: Outcome) -> Answer | Conflict:
        """Holds the run up; where a person has said that it goes on all the same, the record stands."""
        why = f"diverged: {row.tool} ({row.call_id}) now gives another result than attempt {row.attempt} did"
        recorded = self.vault.get(tables, row.result) if row.result else b""
        if row.attempt > run.trusted_from:
            runs.park(tables, self.recorder, run_id=run.run_id, why=why, now_ms=self.now_ms())
        before = f"{row.tool} recorded in attempt {row.attempt}: {_how(row.state, row.error_class)}"
        now = Side(_how(outcome.state, outcome.error_class), outcome.data)
        sides = Sides(self.vault, self.recorder, self.now_ms)
        sides.keep(tables, run.run_id, Side(before, recorded), now)
        if row.attempt > run.trusted_from:
            return Conflict("run_diverged", call_id=row.call_id, tool=row.tool, detail=why)
        return answer_of(row, recorded)


def _how(state: State, error_class: str) -> str:
    return f"{state} ({error_class})" if error_class else str(state)


def _owned(tables: Tables, caller: Caller, call_id: str) -> LedgerRow:
    """The call, if the caller made it and runs its tool itself; unknown and foreign look alike."""
    row = tables.calls.get(call_id)
    if row is None:
        raise NotPermitted("call_not_owned", call_id=call_id, detail="no such call")
    if row.caller != caller.spiffe_id:
        raise NotPermitted("call_not_owned", call_id=call_id, tool=row.tool, detail="another caller's")
    if not row.in_agent:
        raise NotPermitted("call_not_in_agent", call_id=call_id, tool=row.tool, detail="a tool host runs it")
    return row
