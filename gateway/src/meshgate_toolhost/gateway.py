"""The two questions a host asks the gateway, without their wire."""

from collections.abc import Callable
from typing import Any, Protocol

import grpc
from meshgate_wire import broker_pb2 as pb
from meshgate_wire import broker_pb2_grpc
from meshgate_wire.stubs import PerChannel

from meshgate_toolhost.errors import CallRefused, GatewayUnavailable
from meshgate_toolhost.model import Finished, Result, ResultKind, TakenCall

CALL_TIMEOUT_SECONDS = 10.0  # far above a store's group commit; then the answer is "unavailable"
REASON_KEY = "meshgate-reason"

_KINDS = {ResultKind.TEXT: pb.RESULT_KIND_TEXT, ResultKind.JSON: pb.RESULT_KIND_JSON}
# A verdict; whatever else comes back says nothing about the call.
_VERDICTS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.ABORTED,
    }
)


class Gateway(Protocol):
    """Port to the gateway. Both methods may be called from any thread; the host retries."""

    def take(self, call_id: str, instance: str) -> TakenCall:
        """Takes a call, durably.

        Raises:
            CallRefused: not ours to run.
            GatewayUnavailable: no verdict; it may have been taken.
        """

    def finish(self, finished: Finished) -> None:
        """Delivers an outcome. Safe to repeat.

        Raises:
            CallRefused: settled otherwise, or not ours.
            GatewayUnavailable: no verdict.
        """


class GrpcGateway:
    """Over mTLS; `channel` gives the channel of the newest SVID."""

    def __init__(self, *, channel: Callable[[], grpc.Channel]) -> None:
        self._stub = PerChannel(channel=channel, make=broker_pb2_grpc.BrokerStub)

    def take(self, call_id: str, instance: str) -> TakenCall:
        """See Gateway."""
        request = pb.TakeCallRequest(call_id=call_id, host_instance=instance)
        answer = self._ask("TakeCall", request)
        return TakenCall(
            call_id=call_id,
            take=answer.take,
            tool=answer.tool,
            arguments_json=answer.arguments_json,
            definition_sha256=answer.definition_sha256,
            deadline_unix_ms=answer.deadline_unix_ms,
            idempotency_key=answer.idempotency_key,
            taken_before=answer.taken_before,
            effect=answer.effect,
            idempotent=answer.idempotent,
            ambiguous=answer.ambiguous,
            may_begin=answer.may_begin,
        )

    def finish(self, finished: Finished) -> None:
        """See Gateway."""
        request = pb.FinishCallRequest(
            call_id=finished.call_id,
            take=finished.take,
            host_instance=finished.instance,
            reconciled=finished.reconciled,
        )
        outcome = finished.outcome
        if outcome is None:
            raise RuntimeError("an outcome that was delivered is not sent again")
        if isinstance(outcome, Result):
            request.result.CopyFrom(pb.ToolResult(kind=_KINDS[outcome.kind], data=outcome.data))
        else:
            request.failure.CopyFrom(
                pb.ToolFailure(
                    error_class=outcome.error_class, message=outcome.message, ambiguous=outcome.ambiguous
                )
            )
        self._ask("FinishCall", request)

    def _ask(self, method: str, request: Any) -> Any:
        try:
            return getattr(self._stub(), method)(request, timeout=CALL_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            raise _mapped(method, error) from error
        except ValueError as error:  # the channel was closed under us by a rotation or a stop
            raise GatewayUnavailable(f"{method}: {error}") from error


def _mapped(method: str, error: grpc.RpcError) -> CallRefused | GatewayUnavailable:
    if not isinstance(error, grpc.Call):
        return GatewayUnavailable(f"{method}: {error}")
    code = error.code()
    if code not in _VERDICTS:
        return GatewayUnavailable(f"{method}: {code.name}: {error.details()}")
    reason = next((value for key, value in error.trailing_metadata() or () if key == REASON_KEY), None)
    return CallRefused(str(reason or code.name.lower()), invalid=code is grpc.StatusCode.INVALID_ARGUMENT)
