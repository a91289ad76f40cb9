"""A delegated task begins: the first attempt of its run, from which on its call may have acted.

Its run may have waited for hours since policy allowed it: for a free place, for a worker, for a machine
that was off. Then the policy in force is asked once more, as before a tool's call that begins again, and
what it says now is recorded beside what it said then. A denial ends call and run; no answer begins nothing.

Everything here is called within a transaction that somebody else opened.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from meshgate_gateway import attempts, chains, ledger
from meshgate_gateway.decide import Allow, Deny
from meshgate_gateway.delegations import Delegations
from meshgate_gateway.errors import Conflict
from meshgate_gateway.model import Caller, LedgerRow, Run, State
from meshgate_gateway.store import Tables
from meshgate_gateway.verdicts import Question, Verdict, Verdicts


@dataclass(frozen=True, slots=True)
class Worker:
    """Who begins: the callee's app, and which process of it."""

    caller: Caller
    launcher: str


@dataclass(frozen=True, slots=True)
class Beginnings:
    """What has to hold before the first attempt of a delegated run."""

    delegations: Delegations
    verdicts: Verdicts
    now_ms: Callable[[], int]

    def begun(self, tables: Tables, run: Run, worker: Worker, verdict: Verdict | None) -> Run | Question:
        """The run as it may begin now, and its call has; or as it ended, because the task was denied now.

        Nothing to do for a run that nobody delegated, and for a later attempt.

        Returns:
            A question when policy is to be asked first. Then nothing was written.

        Raises:
            Conflict: who asked is over, superseded or held up, or somebody above is over. The next attempt of
                who asked asks again, or does not.
        """
        row = tables.calls.get(run.parent_call) if run.parent_call else None
        if row is None or row.state is not State.RESERVED:
            return run
        asking = tables.runs.get(row.run_id)
        if asking is None or not attempts.acts(asking, row.attempt) or _over_above(tables, run):
            detail = f"{run.run_id} begins once an attempt of {row.run_id} waits for it"
            raise Conflict("run_waiting", call_id=row.call_id, tool=row.tool, detail=detail)
        now = self.now_ms()
        if now - row.updated_ms > ledger.PATIENCE_MS:
            judged = self._judged(tables, row, worker, verdict)
            if isinstance(judged, Question):
                return judged
            if judged.state is State.DENIED:
                _move(tables, row, replace(judged, updated_ms=now))
                return self.delegations.withdraw(tables, judged) or run
        _move(tables, row, ledger.begun(row, now_ms=now))
        return tables.runs.get(run.run_id) or run

    def _judged(
        self, tables: Tables, row: LedgerRow, worker: Worker, verdict: Verdict | None
    ) -> LedgerRow | Question:
        """The call as the policy in force leaves it, recorded here: as it was, or denied."""
        if reason := self.verdicts.changed(row):
            changed = replace(row, state=State.DENIED, reasons=(reason,))
            recorder = self.verdicts.recorder
            tables.records.append(
                recorder.denied_unasked(caller=worker.caller, row=changed, method="StartAttempt")
            )
            return changed
        if verdict is None or not verdict.is_of(row):
            return self.verdicts.again(tables, row)
        decision = verdict.decision
        after = row
        if isinstance(decision, Deny):
            after = replace(row, state=State.DENIED, reasons=decision.reasons)
        again = {"take": 1, "taken_by": worker.caller.spiffe_id, "host_instance": worker.launcher}
        tables.records.append(self.verdicts.record(verdict, after, again))
        if isinstance(decision, Allow):
            self.delegations.narrowed(tables, row, decision.obligations)
        return after


def _over_above(tables: Tables, run: Run) -> bool:
    """Whether a run above is over, or told to be: a family hears of that from the top down, and in slices."""
    above = [tables.runs.get(link.run_id) for link in chains.read(run.chain)]
    return any(one is None or one.ended or one.state == "cancelling" for one in above)


def _move(tables: Tables, before: LedgerRow, after: LedgerRow) -> None:
    if not tables.calls.move(before, after):
        raise Conflict("call_moved", call_id=before.call_id, tool=before.tool)
