"""The brokered call, from certificate to answer. Only `handle` knows the order."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from meshgate_gateway import calls, journal, ledger, own_calls, repeats, runs
from meshgate_gateway.answers import OPEN, answer_of
from meshgate_gateway.asked import Asked, check
from meshgate_gateway.authenticate import Door
from meshgate_gateway.bounds import DEFAULT_BOUNDS, Bounds
from meshgate_gateway.catalogue import Catalogue
from meshgate_gateway.decide import (
    Allow,
    Deny,
    changed,
    permit_of,
    runs_for,
)
from meshgate_gateway.delegations import Delegations
from meshgate_gateway.drive import Drive
from meshgate_gateway.errors import (
    Conflict,
    NotPermitted,
    Refused,
    RuntimeUnavailable,
)
from meshgate_gateway.execute import Executor, Waiters
from meshgate_gateway.model import (
    RUNNERS,
    Answer,
    Caller,
    CallRequest,
    LedgerRow,
    Presented,
    State,
    Step,
    Tool,
    ToolCall,
    ToolKind,
)
from meshgate_gateway.payloads import Vault
from meshgate_gateway.policy import PolicySlot
from meshgate_gateway.record import Recorder
from meshgate_gateway.schemas import validator
from meshgate_gateway.sides import Side, Sides
from meshgate_gateway.store import Store, Tables
from meshgate_gateway.verdicts import Question, Verdict, Verdicts

WAIT_SECONDS = 2.0  # then PENDING; a held thread is a thread somebody else lacks
MAX_DEADLINE_MS = 3_600_000  # one hour; longer work is a run of its own


@dataclass(frozen=True, slots=True)
class Rooms:
    """What the broker walks through."""

    door: Door
    store: Store
    policy: PolicySlot
    vault: Vault
    recorder: Recorder
    executor: Executor
    waiters: Waiters
    delegations: Delegations
    drive: Drive


class Broker:
    """Decides, records, executes, records. Safe for threads; stateless beside its store."""

    def __init__(
        self,
        *,
        rooms: Rooms,
        catalogue: Catalogue,
        now_ms: Callable[[], int],
        wait_seconds: float = WAIT_SECONDS,
        bounds: Bounds = DEFAULT_BOUNDS,
    ) -> None:
        self._rooms = rooms
        self._catalogue = catalogue
        self._now_ms = now_ms
        self._wait_seconds, self._bounds = wait_seconds, bounds
        self._sides = Sides(rooms.vault, rooms.recorder, now_ms)
        self._verdicts = Verdicts(rooms.policy, rooms.vault, rooms.recorder, catalogue, now_ms)
        self._validators = {name: validator(tool) for name, tool in catalogue.tools.items()}

    def handle(self, presented: Presented, request: CallRequest) -> Answer:
        """Serves one CallTool.

        1. authenticate: the certificate becomes a Caller; whatever fails from here is recorded.
        2. check the request's shape and parse its arguments strictly.
        3. look the call up: a repeat is answered or joined, never decided again.
        4. ask the engine, and decide.
        5. record: decision and ledger row in one durable transaction. A repeat of an equal call
           may get that call's row here, and waits for it.
        6. execute: only what a Permit names. A tool of the caller's own it is told to run itself; of a task
           for another agent, that one's app is told of the run that was made with it.
        7. wait a little for the outcome, which FinishCall records.
        8. answer with what the ledger says.
        """
        return self._rooms.door.enter(  # 1
            presented, "CallTool", lambda caller: self._serve(caller, request)
        )

    def _serve(self, caller: Caller, request: CallRequest) -> Answer:
        asked = check(caller, request, catalogue=self._catalogue, validators=self._validators)  # 2
        asked, row = self._rooms.store.read(lambda tables: self._met(tables, asked))  # 3
        fresh = row is None
        if row is None:
            row = self._decided(asked)  # 4, 5
        elif row.state in OPEN and row.attempt != request.attempt:
            row = self._adopt(asked, row)
        if row.state is State.UNKNOWN:
            self._rooms.store.write(lambda tables: self._park(tables, row.call_id))
        if row.state not in OPEN:
            return self._current(row.call_id)
        if row.in_agent and row.call_id == asked.call_id:
            return own_calls.permit(row, asked.offered)  # 6
        with self._rooms.waiters.expecting(row.call_id) as settled:
            if row.state is State.RESERVED:
                fresh = fresh and row.call_id == asked.call_id
                self._start(row, fresh=fresh)  # 6
            answer = self._current(row.call_id)
            if answer.state in OPEN and self._rooms.waiters.wait(settled, self._wait_seconds):  # 7
                answer = self._current(row.call_id)
        if row.call_id != asked.call_id and answer.state in ledger.SETTLED:
            return self._current(self._decided(asked).call_id)  # now it has an answer of its own
        return answer  # 8

    def _start(self, row: LedgerRow, *, fresh: bool) -> None:
        permit = permit_of(row)
        if row.delegates:
            self._rooms.drive.begin(permit)
        else:
            self._rooms.executor.start(permit, fresh=fresh)

    def tools(self, presented: Presented) -> list[Tool]:
        """The tools the caller may call with some arguments; leaves out only what is always denied."""
        return self._rooms.door.enter(presented, "ListTools", self._listed)

    def _listed(self, caller: Caller) -> list[Tool]:
        if caller.kind not in RUNNERS:
            raise NotPermitted("list_not_permitted", detail=f"a {caller.kind} calls no tools")
        listed = self._rooms.policy.active.listing.of(caller.app)
        return [
            tool for tool in self._catalogue.tools.values() if tool.id in listed and runs_for(tool, caller)
        ]

    def _met(self, tables: Tables, asked: Asked) -> tuple[Asked, LedgerRow | None]:
        row = self._known(tables, asked)
        return replace(asked, run=tables.runs.get(asked.request.run_id)), row

    def _known(self, tables: Tables, asked: Asked) -> LedgerRow | None:
        """The row of an earlier request with this key, if it is the same call."""
        self._fence(tables, asked)
        row = tables.calls.get(asked.call_id)
        if row is None:
            return None
        if row.caller != asked.caller.spiffe_id:
            raise NotPermitted("call_not_owned", call_id=asked.call_id, detail="held by another caller")
        same = row.tool == calls.named(asked.request.tool) and self._rooms.vault.matches(
            tables, row.arguments, asked.offered
        )
        if not same:
            raise Conflict(
                "call_changed", call_id=asked.call_id, tool=row.tool, detail="same key, another call"
            )
        return row

    def _adopt(self, asked: Asked, row: LedgerRow) -> LedgerRow:
        """An open call passes to the run's current attempt, which joins it.

        One that has not begun is put to the policy again: what is in force now may say no.
        """
        if not ledger.begins_again(row) or asked.refused is not None:
            return self._rooms.store.write(lambda tables: self._joined(tables, asked, None))
        with self._verdicts.deciding(self._question(asked, row.decision_id)) as again:
            return self._rooms.store.write(lambda tables: self._joined(tables, asked, again))

    def _joined(self, tables: Tables, asked: Asked, again: Verdict | None) -> LedgerRow:
        now = self._known(tables, asked)
        if now is None:
            raise RuntimeError("a call left the ledger")
        run, begins = tables.runs.get(asked.request.run_id), ledger.begins_again(now)
        if run is not None and begins and run.state in runs.HELD:
            raise Conflict(f"run_{run.state}", call_id=asked.call_id, tool=now.tool, detail=run.detail)
        if now.state not in OPEN or now.attempt == asked.request.attempt:
            return now
        after = replace(now, attempt=asked.request.attempt)
        after = ledger.handed_out(after) if now.in_agent else after
        other = asked.refused.reason if asked.refused is not None else changed(now, asked.tool)
        if begins and other:  # the catalogue is not the one that was decided on
            after = replace(after, state=State.DENIED, reasons=(other,))
            tables.records.append(self._rooms.recorder.denied_unasked(caller=asked.caller, row=after))
        elif begins and again is not None:
            if isinstance(again.decision, Deny):
                after = replace(after, state=State.DENIED, reasons=again.decision.reasons)
            tables.records.append(self._verdicts.record(again, after))
        tables.calls.move(now, after)
        if after.delegates and after.state is State.DENIED:
            self._rooms.delegations.withdraw(tables, after)
        elif after.delegates and begins and again is not None:
            self._delegated(tables, asked, after, again)
        return after

    def _delegated(self, tables: Tables, asked: Asked, row: LedgerRow, verdict: Verdict) -> None:
        """The run of an allowed delegation, made with its decision."""
        if isinstance(verdict.decision, Allow):
            self._rooms.delegations.allowed(
                tables,
                row,
                caller=asked.caller,
                arguments=asked.offered,
                obligations=verdict.decision.obligations,
            )

    def _fence(self, tables: Tables, asked: Asked) -> None:
        if asked.request.run_id:
            runs.acting(
                tables,
                caller=asked.caller,
                run_id=asked.request.run_id,
                attempt=asked.request.attempt,
            )

    def _decided(self, asked: Asked) -> LedgerRow:
        decision_id = f"D-{secrets.token_hex(8)}"
        if asked.refused is not None:
            return self._refused(asked, decision_id)
        with self._verdicts.deciding(self._question(asked, decision_id)) as verdict:
            row = self._rooms.store.write(lambda tables: self._record(tables, asked, verdict, decision_id))
        if isinstance(row, Refused):
            raise row
        return row

    def _question(self, asked: Asked, decision_id: str) -> Question:
        if asked.tool is None or asked.arguments is None:
            raise RuntimeError("only sound requests are decided on")
        call = self._call(asked, asked.tool, asked.arguments)
        return Question(asked.caller, call, asked.arguments.value, asked.run, decision_id)

    def _record(
        self, tables: Tables, asked: Asked, verdict: Verdict, decision_id: str
    ) -> LedgerRow | Refused:
        earlier = self._known(tables, asked)
        if earlier is not None:
            return earlier
        call, decision = verdict.question.call, verdict.decision
        allowed = isinstance(decision, Allow)
        if allowed and (held := self._held_up(tables, asked, call.tool)):
            return held
        like = repeats.likeness(
            self._rooms.vault,
            caller=asked.caller,
            request=asked.request,
            tool=call.tool,
            arguments=call.arguments,
        )
        first = repeats.first(tables, like, attempt=asked.request.attempt) if allowed else None
        if first is not None and repeats.joins(call.tool, first):
            return self._joined_first(tables, asked, verdict, first)
        row = replace(
            self._row(tables, asked, decision_id),
            state=State.RESERVED if allowed else State.DENIED,
            reasons=() if isinstance(decision, Allow) else decision.reasons,
            deadline_ms=call.deadline_ms,
            likeness=like,
        )
        if first is not None:
            row = repeats.judged(row, call.tool, first)
        if row.in_agent and row.state is State.RESERVED:
            row = ledger.handed_out(row)
        self._bounds.add_call(tables, row)
        tables.records.append(self._verdicts.record(verdict, row))
        if row.state in ledger.ANSWERED:
            tables.records.append(self._rooms.recorder.outcome(row=row, by="gateway", cause="repeat"))
        if row.delegates and row.state is State.RESERVED:
            self._delegated(tables, asked, row, verdict)
        return row

    def _joined_first(self, tables: Tables, asked: Asked, verdict: Verdict, first: LedgerRow) -> LedgerRow:
        """The first of equal calls, which this attempt may now see through."""
        if first.state is not State.RESERVED or first.attempt == asked.request.attempt:
            return first
        after = replace(first, attempt=asked.request.attempt)
        tables.records.append(self._verdicts.record(verdict, after))
        tables.calls.move(first, after)
        if after.delegates:
            self._delegated(tables, asked, after, verdict)
        return after

    def _park(self, tables: Tables, call_id: str) -> None:
        """Whoever meets an unknown call waits for it, unless it was settled since it was met."""
        row = tables.calls.get(call_id)
        if row is None or row.state is not State.UNKNOWN:
            return
        why = f"unknown {call_id}"
        runs.park(tables, self._rooms.recorder, run_id=row.run_id, why=why, now_ms=self._now_ms())

    def _held_up(self, tables: Tables, asked: Asked, tool: Tool) -> Refused | None:
        """Why a call that policy allows does not begin now: its run waits, or does not repeat itself."""
        request = asked.request
        run = tables.runs.get(request.run_id) if request.run_id else None
        if run is None:
            return None
        if tables.journal.get(run.run_id, request.step_key) is not None:
            return Conflict("step_kind", call_id=asked.call_id, detail="a model step has this key")
        if run.state in runs.HELD:
            return Conflict(f"run_{run.state}", call_id=asked.call_id, tool=tool.id, detail=run.detail)
        step = Step(request.step_key, request.scope, request.turn, "tool")
        key = request.left_out
        missed = calls.call_id(caller=run.app, run_id=run.run_id, step_key=key) if key else ""
        if tool.effect == "read":
            return None
        stray = journal.strays(tables, run, step, tool=tool, missed=missed)
        if stray is None:
            return None
        recorder, sides = self._rooms.recorder, self._sides
        runs.park(tables, recorder, run_id=run.run_id, why=stray.why, now_ms=self._now_ms())
        wanted = Side(f"{tool.id} at turn {step.turn}", asked.offered)
        sides.keep(tables, run.run_id, sides.of_step(tables, run, stray.recorded), wanted)
        return Conflict("run_diverged", call_id=asked.call_id, tool=tool.id, detail=stray.why)

    def _refused(self, asked: Asked, decision_id: str) -> LedgerRow:
        """A call nobody can decide on is denied for good: asked again it is the same answer."""
        refused = asked.refused or calls.ArgumentsRefused("tool_unknown")

        def work(tables: Tables) -> LedgerRow:
            earlier = self._known(tables, asked)
            if earlier is not None:
                return earlier
            row = replace(
                self._row(tables, asked, decision_id), reasons=(refused.reason,), detail=refused.where
            )
            self._bounds.add_call(tables, row)
            tables.records.append(self._rooms.recorder.denied_unasked(caller=asked.caller, row=row))
            return row

        return self._rooms.store.write(work)

    def _row(self, tables: Tables, asked: Asked, decision_id: str) -> LedgerRow:
        now, tool, request = self._now_ms(), asked.tool, asked.request
        return LedgerRow(
            call_id=asked.call_id,
            caller=asked.caller.spiffe_id,
            run_id=request.run_id,
            attempt=request.attempt,
            step_key=request.step_key,
            tool=calls.named(asked.request.tool),
            host=tool.host if tool else "",
            effect=tool.effect if tool else "",
            idempotent=tool.idempotent if tool else False,
            definition_sha256=tool.definition_sha256 if tool else "",
            state=State.DENIED,
            decision_id=decision_id,
            reasons=(),
            detail="",
            arguments=self._rooms.vault.put(tables, asked.offered, keep=asked.arguments is not None),
            deadline_ms=0,
            gateway=self._rooms.recorder.instance(),
            created_ms=now,
            updated_ms=now,
            scope=request.scope,
            turn=request.turn,
            task=request.task,
        )

    @staticmethod
    def _call(asked: Asked, tool: Tool, arguments: calls.Arguments) -> ToolCall:
        request = asked.request
        own = 0 if tool.kind is ToolKind.DELEGATE else int(tool.deadline_seconds * 1000)  # its run has bounds
        wanted = request.deadline_ms or own
        return ToolCall(
            call_id=asked.call_id,
            tool=tool,
            arguments=arguments.canonical,
            arguments_sha256=arguments.sha256,
            run_id=request.run_id,
            attempt=request.attempt,
            step_key=request.step_key,
            deadline_ms=min(wanted, own, MAX_DEADLINE_MS),
            untrusted=request.untrusted,
        )

    def _current(self, call_id: str) -> Answer:
        """What the ledger says now, with the clear text, in one reading."""

        def work(tables: Tables) -> Answer:
            row = tables.calls.get(call_id)
            if row is None:
                raise RuntimeUnavailable(detail=f"{call_id} is no longer in the ledger")
            return answer_of(row, self._rooms.vault.get(tables, row.result) if row.result else None)

        return self._rooms.store.read(work)
