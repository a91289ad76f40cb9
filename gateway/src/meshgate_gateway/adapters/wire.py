"""Between protobuf messages and the gateway's own types; nothing else knows both."""

from typing import Final

from meshgate_wire import broker_pb2 as pb

from meshgate_gateway.broker import Answer, CallRequest
from meshgate_gateway.errors import Malformed
from meshgate_gateway.hosts import MAX_RESULT_BYTES, Finish, Taken
from meshgate_gateway.ledger import LedgerRow, Settlement

STATES: Final = {
    "pending": pb.CALL_STATE_PENDING,
    "reserved": pb.CALL_STATE_PENDING,
    "sent": pb.CALL_STATE_PENDING,
    "done": pb.CALL_STATE_DONE,
    "failed": pb.CALL_STATE_FAILED,
    "denied": pb.CALL_STATE_DENIED,
    "unknown": pb.CALL_STATE_UNKNOWN,
}
KINDS: Final = {"": pb.RESULT_KIND_UNSPECIFIED, "text": pb.RESULT_KIND_TEXT, "json": pb.RESULT_KIND_JSON}
_KIND_NAMES: Final = {number: name for name, number in KINDS.items() if name}


def call_request(message: pb.CallToolRequest) -> CallRequest:
    """Reads a CallTool message; its arguments are still raw bytes."""
    return CallRequest(
        run_id=message.run_id,
        attempt=message.attempt,
        step_key=message.step_key,
        tool=message.tool,
        arguments=message.arguments_json,
        untrusted=dict(message.untrusted),
    )


def call_response(answer: Answer) -> pb.CallToolResponse:
    """Writes the answer of one call."""
    return pb.CallToolResponse(
        call_id=answer.call_id,
        state=STATES[answer.state],
        decision_id=answer.decision_id,
        reasons=answer.reasons,
        kind=KINDS[answer.result_kind],
        result=answer.result,
        error_class=answer.error_class,
        message=answer.message,
    )


def take_response(taken: Taken) -> pb.TakeCallResponse:
    """Writes what a host gets."""
    row = taken.row
    return pb.TakeCallResponse(
        take=taken.take,
        tool=row.tool,
        arguments_json=taken.arguments,
        definition_sha256=row.definition_sha256,
        deadline_unix_ms=taken.deadline_ms,
        idempotency_key=row.call_id,
        taken_before=row.take > 0,
        effect=row.effect,
        idempotent=bool(row.idempotent),
    )


def finish(message: pb.FinishCallRequest) -> Finish:
    """Reads what a host says of a call.

    Raises:
        Malformed: no outcome, an unknown kind, or a result over the limit.
    """
    said = message.WhichOneof("outcome")
    if said == "failure":
        failure = message.failure
        state = "unknown" if failure.ambiguous else "failed"
        settlement = Settlement(state, error_class=failure.error_class, message=failure.message)
        return Finish(message.call_id, message.take, message.host_instance, settlement, b"")
    kind = _KIND_NAMES.get(message.result.kind)
    if said != "result" or kind is None:
        raise Malformed("outcome_invalid", "FinishCall needs a failure, or a result with its kind")
    if len(message.result.data) > MAX_RESULT_BYTES:
        raise Malformed("result_too_large", f"{len(message.result.data)} bytes")
    settlement = Settlement("done", result_kind=kind)
    return Finish(message.call_id, message.take, message.host_instance, settlement, message.result.data)


def call_row(row: LedgerRow) -> pb.CallRow:
    """Writes one row of the ledger for the operator; no clear text."""
    return pb.CallRow(
        call_id=row.call_id,
        caller=row.caller,
        tool=row.tool,
        state=row.state,
        decision_id=row.decision_id,
        run_id=row.run_id,
        reasons=row.reason_ids,
    )
