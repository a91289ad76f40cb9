"""Protobuf to core types and back; nothing else of the gateway sees a message."""

import json
import uuid
from collections.abc import Sequence
from dataclasses import replace

from meshgate_wire import broker_pb2 as pb

from meshgate_gateway import chains
from meshgate_gateway.answers import OPEN, answer_of
from meshgate_gateway.archive import Part
from meshgate_gateway.calls import RUN_STEPS
from meshgate_gateway.catalogue import Catalogue
from meshgate_gateway.drive import Order
from meshgate_gateway.history import Branch, BranchOrder
from meshgate_gateway.hosts import Taken
from meshgate_gateway.journal import Entry
from meshgate_gateway.model import Answer, CallRequest, LedgerRow, Outcome, ResultKind, Run, State, Step, Tool
from meshgate_gateway.record import time_text
from meshgate_gateway.views import Question, RunView, StepView

_STATES = {
    State.RESERVED: pb.CALL_STATE_PENDING,
    State.SENT: pb.CALL_STATE_PENDING,
    State.DONE: pb.CALL_STATE_DONE,
    State.FAILED: pb.CALL_STATE_FAILED,
    State.DENIED: pb.CALL_STATE_DENIED,
    State.UNKNOWN: pb.CALL_STATE_UNKNOWN,
}
_KINDS = {ResultKind.TEXT: pb.RESULT_KIND_TEXT, ResultKind.JSON: pb.RESULT_KIND_JSON}
_KIND_NAMES = {number: kind.value for kind, number in _KINDS.items()}


def call_request(message: pb.CallToolRequest) -> CallRequest:
    """CallTool as it came in."""
    return CallRequest(
        run_id=message.run_id,
        attempt=message.attempt,
        step_key=message.step_key,
        tool=message.tool,
        arguments_json=message.arguments_json,
        deadline_ms=message.deadline_ms,
        untrusted=dict(message.untrusted),
        scope=message.scope,
        turn=message.turn,
        task=message.task,
        left_out=message.left_out,
    )


def step(message: pb.Step) -> Step:
    """Where something happened."""
    return Step(message.key, message.scope, message.turn, message.kind)


def entry(entry: Entry) -> pb.JournalEntry:
    """One finished step for a new attempt."""
    step = pb.Step(key=entry.step.key, scope=entry.step.scope, turn=entry.step.turn, kind=entry.step.kind)
    if entry.row is None:
        return pb.JournalEntry(step=step, reply_json=entry.reply)
    if entry.row.state in OPEN:
        return pb.JournalEntry(step=step, effect_of=entry.effect_of)
    told = replace(answer_of(entry.row, entry.reply), arguments=entry.arguments)
    return pb.JournalEntry(step=step, answer=answer(told), effect_of=entry.effect_of)


def answer(answer: Answer) -> pb.CallToolResponse:
    """What CallTool says."""
    return pb.CallToolResponse(
        call_id=answer.call_id,
        state=pb.CALL_STATE_RUN if answer.take else _STATES[answer.state],
        decision_id=answer.decision_id,
        reasons=answer.reasons,
        kind=_KINDS[ResultKind(answer.result_kind)] if answer.result_kind else pb.RESULT_KIND_UNSPECIFIED,
        result=answer.result,
        error_class=answer.error_class,
        message=answer.message,
        arguments_json=answer.arguments,
        take=answer.take,
    )


def state(state: State) -> pb.CallState:
    """A ledger state on the wire."""
    return _STATES[state]


def taken(taken: Taken) -> pb.TakeCallResponse:
    """A call handed to its host."""
    row = taken.row
    return pb.TakeCallResponse(
        take=row.take,
        tool=row.tool,
        arguments_json=taken.arguments,
        definition_sha256=row.definition_sha256,
        deadline_unix_ms=row.deadline_at_ms,
        idempotency_key=row.call_id,
        taken_before=taken.taken_before,
        effect=row.effect,
        idempotent=row.idempotent,
        ambiguous=taken.ambiguous,
        may_begin=taken.may_begin,
    )


def outcome(message: pb.FinishCallRequest) -> Outcome | None:
    """What a host reports; None when it says nothing, or a kind we do not know."""
    which = message.WhichOneof("outcome")
    if which == "result" and message.result.kind in _KIND_NAMES:
        kind = _KIND_NAMES[message.result.kind]
        return Outcome(State.DONE, message.result.data, kind, reconciled=message.reconciled)
    if which == "failure":
        failed = State.UNKNOWN if message.failure.ambiguous else State.FAILED
        text, error_class = message.failure.message.encode(), message.failure.error_class
        return Outcome(failed, text, "", error_class, reconciled=message.reconciled)
    return None


def own_outcome(message: pb.FinishOwnCallRequest) -> Outcome | None:
    """What an agent says of a tool that it ran itself; it knows, so there is nothing ambiguous."""
    which = message.WhichOneof("outcome")
    if which == "result" and message.result.kind in _KIND_NAMES:
        return Outcome(State.DONE, message.result.data, _KIND_NAMES[message.result.kind])
    if which == "failure" and not message.failure.ambiguous:
        return Outcome(State.FAILED, message.failure.message.encode(), "", message.failure.error_class)
    return None


def tools(tools: Sequence[Tool], catalogue: Catalogue) -> pb.ListToolsResponse:
    """What ListTools says."""
    return pb.ListToolsResponse(
        tools=[
            pb.ToolDescription(
                tool=tool.id,
                description=tool.description,
                arguments_schema_json=json.dumps(dict(catalogue.tools[tool.id].schema)),
                definition_sha256=tool.definition_sha256,
                effect=tool.effect,
            )
            for tool in tools
        ]
    )


def order(message: pb.AdminStartRunRequest) -> Order:
    """What an operator wants run."""
    return Order(
        app=message.app,
        run_id=message.run_id or uuid.uuid4().hex,
        input_json=message.input_json,
        command=tuple(message.command),
        cwd=message.cwd,
        env=dict(message.env),
    )


def run_row(run: Run) -> pb.RunRow:
    """A run as the operator sees it."""
    return pb.RunRow(
        run_id=run.run_id,
        app=run.app,
        state=run.state,
        attempt=run.attempt,
        created=time_text(run.created_ms),
        detail=run.detail,
        updated=time_text(run.updated_ms),
        steps=run.progress,
        origin=run.origin,
        origin_run=run.origin_run,
        origin_step=run.origin_step,
        purged=time_text(run.purged_ms) if run.purged_ms else "",
        parent_call=run.parent_call,
        parent_run=chains.parent_run(run),
    )


def part(part: Part) -> pb.ExportRunResponse:
    """A part of a run's export."""
    texts = [
        pb.ClearText(payload=text.payload_id, salt=text.salt, data=text.data, kept=text.kept)
        for text in part.texts
    ]
    return pb.ExportRunResponse(
        run_json=part.run_json,
        steps_json=part.steps_json,
        texts=texts,
        next_step=part.next_step,
        digest=part.digest,
        first_record=part.first_record,
        last_record=part.last_record,
        next_byte=part.next_byte,
    )


def branch_order(message: pb.BranchRunRequest) -> BranchOrder:
    """What an operator wants made of a run."""
    return BranchOrder(
        run_id=message.run_id,
        new_run_id=message.new_run_id,
        origin=message.origin,
        steps=message.steps,
        edit=message.edit_json,
        cwd=message.cwd,
        operator=message.operator,
    )


def branch(made: Branch) -> pb.BranchRunResponse:
    """What came of it, or would."""
    effects = [
        pb.EffectRow(
            step=number, tool=row.tool, effect=row.effect, state=row.state.value, call_id=row.call_id
        )
        for number, row in made.effects
    ]
    run = run_row(made.run)
    return pb.BranchRunResponse(run=run, effects=effects, steps=made.steps)


def question(message: pb.ShowRunRequest) -> Question:
    """What an operator wants to see of a run."""
    return Question(
        run_id=message.run_id,
        operator=message.operator,
        row_only=message.row_only,
        with_steps=not message.without_steps,
    )


def run_view(view: RunView) -> pb.ShowRunResponse:
    """A run, with as much of it as was asked for."""
    return pb.ShowRunResponse(
        run=run_row(view.run),
        input_json=view.given,
        traceback=view.traceback,
        result=view.result,
        steps=[_step_row(step) for step in view.steps],
        cut=view.cut,
    )


def _step_row(view: StepView) -> pb.StepRow:
    row = view.row
    call = row if isinstance(row, LedgerRow) else None
    step = pb.Step(
        key=row.step_key,
        scope=row.scope,
        turn=row.turn,
        kind="tool" if call else RUN_STEPS.get(row.step_key, "model"),
    )
    return pb.StepRow(
        step=step,
        attempt=max(0, row.attempt),
        copied=row.attempt <= 0,
        created=time_text(row.created_ms),
        milliseconds=max(0, row.updated_ms - row.created_ms)
        if isinstance(row, LedgerRow)
        else row.milliseconds,
        state=call.state.value if call else "replied",
        tool=call.tool if call else "",
        call_id=call.call_id if call else "",
        decision_id=call.decision_id if call else "",
        input=view.given,
        output=view.gave,
    )


def resolution(message: pb.ResolveCallRequest) -> Outcome:
    """What a person says a call gave; RESERVED, which nobody may say, when it is neither of the two."""
    if message.state == State.DONE:
        return Outcome(State.DONE, message.result, _KIND_NAMES.get(message.kind, ResultKind.TEXT.value))
    state = State.FAILED if message.state == State.FAILED else State.RESERVED
    return Outcome(state, message.result, "", "resolved")


def call_row(row: LedgerRow) -> pb.CallRow:
    """A call as the operator sees it."""
    return pb.CallRow(
        call_id=row.call_id,
        caller=row.caller,
        tool=row.tool,
        state=row.state.value,
        decision_id=row.decision_id,
        run_id=row.run_id,
        reasons=row.reasons,
    )
