"""One delivery of one call id: take, run, remember, finish. Nothing runs without a take."""

import contextvars
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from meshgate_wire import broker_pb2 as pb
from meshgate_wire import broker_pb2_grpc as rpc

from meshgate_toolhost import context
from meshgate_toolhost.definitions import definition_digest
from meshgate_toolhost.errors import BadResult
from meshgate_toolhost.finished import Finished
from meshgate_toolhost.loader import LoadedTool
from meshgate_toolhost.results import MAX_RESULT_BYTES, encode

RPC_SECONDS = 5.0
FINISH_SECONDS = 60.0
BACKOFF_SECONDS = 0.2
KINDS = {"text": pb.RESULT_KIND_TEXT, "json": pb.RESULT_KIND_JSON}
RETRY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Work:
    """A call that this host has taken."""

    call_id: str
    taken: pb.TakeCallResponse
    tool: LoadedTool


class Invoker:
    """Serves deliveries. Safe for threads; each delivery blocks its own."""

    def __init__(
        self, *, stub: Callable[[], rpc.BrokerStub], tools: Mapping[str, LoadedTool], finished: Finished,
        max_result_bytes: Mapping[str, int],
    ) -> None:  # fmt: skip
        self._stub = stub
        self._tools = tools
        self._digests = {name: definition_digest(tool) for name, tool in tools.items()}
        self._finished = finished
        self._max_result_bytes = max_result_bytes
        self._instance = uuid.uuid4().hex

    def resend(self) -> None:
        """Tells the gateway the outcomes that an earlier process could not."""
        for call_id, message in self._finished.all():
            self._send(pb.FinishCallRequest.FromString(message), call_id)

    def invoke(self, call_id: str) -> None:
        """Handles one delivery of an id. A refused take is the end of it: nothing runs.

        Raises:
            grpc.RpcError: the gateway could not be reached; the delivery is repeated by Dapr.
        """
        unheard = self._finished.find(call_id)
        if unheard is not None:
            self._send(pb.FinishCallRequest.FromString(unheard), call_id)
            return
        taken = self._take(call_id)
        if taken is None:
            return
        tool = self._tools.get(taken.tool)
        if tool is None or self._digests[taken.tool] != taken.definition_sha256:
            failure = pb.ToolFailure(
                error_class="definition_changed", message="the tool is not the one that was decided on"
            )
            self._finish(call_id, taken, pb.FinishCallRequest(failure=failure))
            return
        self._run_within_deadline(Work(call_id, taken, tool))

    def _take(self, call_id: str) -> pb.TakeCallResponse | None:
        request = pb.TakeCallRequest(call_id=call_id, host_instance=self._instance)
        end = time.monotonic() + FINISH_SECONDS
        while True:
            try:
                return self._stub().TakeCall(request, timeout=RPC_SECONDS)
            except grpc.RpcError as error:
                if error.code() not in RETRY:
                    log.warning(
                        "invoke.take_refused", extra={"call_id": call_id, "status": error.code().name}
                    )
                    return None
                if time.monotonic() > end:
                    raise
            time.sleep(BACKOFF_SECONDS)

    def _run_within_deadline(self, work: Work) -> None:
        """Runs the body on a thread of its own: a body that hangs must not hold the delivery.

        Past the deadline the call is settled as failed (read) or unknown; should the body still
        end, its outcome follows as a late FinishCall.
        """
        done = threading.Event()
        copied = contextvars.copy_context()
        settled = threading.Lock()

        def body() -> None:
            outcome = copied.run(self._run, work)
            with settled:
                self._finish(work.call_id, work.taken, outcome)
                done.set()

        threading.Thread(target=body, name=f"tool-{work.call_id[:8]}", daemon=True).start()
        left = work.taken.deadline_unix_ms / 1000 - time.time()
        if done.wait(max(left, 0.0)):
            return
        if settled.acquire(blocking=False):
            try:
                failure = pb.ToolFailure(
                    error_class="timeout",
                    message="the tool did not answer in time",
                    ambiguous=work.taken.effect != "read",
                )
                self._send(self._message(work, pb.FinishCallRequest(failure=failure)), None)
            finally:
                settled.release()
        else:
            done.wait(FINISH_SECONDS)

    def _run(self, work: Work) -> pb.FinishCallRequest:
        context.set_idempotency_key(work.taken.idempotency_key)
        arguments: dict[str, Any] = json.loads(work.taken.arguments_json)
        try:
            value = work.tool.call(**arguments)
        except (Exception, SystemExit) as error:  # a tool may raise anything; that is its outcome
            return _raised(work, error)
        limit = self._max_result_bytes.get(work.tool.id, MAX_RESULT_BYTES)
        try:
            kind, data = encode(value, limit)
        except BadResult as error:
            return _failure(error.error_class, str(error))
        return pb.FinishCallRequest(result=pb.ToolResult(kind=KINDS[kind], data=data))

    def _message(self, work: Work, outcome: pb.FinishCallRequest) -> pb.FinishCallRequest:
        outcome.call_id, outcome.take, outcome.host_instance = work.call_id, work.taken.take, self._instance
        return outcome

    def _finish(self, call_id: str, taken: pb.TakeCallResponse, outcome: pb.FinishCallRequest) -> None:
        outcome.call_id, outcome.take, outcome.host_instance = call_id, taken.take, self._instance
        self._finished.write(call_id, outcome.SerializeToString())
        self._send(outcome, call_id)

    def _send(self, message: pb.FinishCallRequest, kept_as: str | None) -> None:
        """Sends until the gateway has an opinion; what it never hears stays in `finished`."""
        end = time.monotonic() + FINISH_SECONDS
        while time.monotonic() < end:
            try:
                self._stub().FinishCall(message, timeout=RPC_SECONDS)
            except grpc.RpcError as error:
                if error.code() in RETRY:
                    time.sleep(BACKOFF_SECONDS)
                    continue
                log.warning(
                    "invoke.finish_refused", extra={"call_id": message.call_id, "status": error.code().name}
                )
            if kept_as:
                self._finished.drop(kept_as)
            return
        log.error("invoke.finish_not_heard", extra={"call_id": message.call_id})


def _failure(error_class: str, message: str) -> pb.FinishCallRequest:
    return pb.FinishCallRequest(failure=pb.ToolFailure(error_class=error_class, message=message[:1000]))


def _raised(work: Work, error: BaseException) -> pb.FinishCallRequest:
    log.warning("invoke.tool_raised", extra={"tool": work.tool.id, "error": type(error).__name__})
    return _failure("tool_raised", f"{type(error).__name__}: {error}")
