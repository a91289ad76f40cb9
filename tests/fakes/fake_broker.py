"""FAKE: the tool host's side of a gateway. It decides nothing; calls are put in by the test.

A real gRPC server on a loopback port, without TLS. It can also be told to be away, or to lose
an answer after it acted, so that both kinds of fault are covered.
"""

import json
import threading
import time
from collections import defaultdict
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from meshgate_wire import broker_pb2 as pb
from meshgate_wire import broker_pb2_grpc


@dataclass
class FakeCall:
    """One call as the fake gateway has it."""

    tool: str
    arguments: bytes
    definition_sha256: str
    effect: str = "irreversible"
    idempotent: bool = False
    deadline_seconds: float = 20.0
    state: str = "reserved"
    take: int = 0
    instance: str = ""
    outcome: Any = None
    reconciles: bool = False
    reconciled: bool = False


@dataclass
class FakeBroker(broker_pb2_grpc.BrokerServicer):
    """The calls, and what was asked."""

    calls: dict[str, FakeCall] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    away: set[str] = field(default_factory=set)
    lose_answers: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        """Binds to a port of the kernel's choice."""
        self.changed = threading.Condition()
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
        broker_pb2_grpc.add_BrokerServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def stop(self) -> None:
        """Ends the server."""
        self._server.stop(0).wait()

    def put(self, call_id: str, tool: str, arguments: object, definition_sha256: str, **more: Any) -> str:
        """Adds a decided call."""
        data = arguments if isinstance(arguments, bytes) else json.dumps(arguments).encode()
        self.calls[call_id] = FakeCall(tool, data, definition_sha256, **more)
        return call_id

    def wait_for(self, call_id: str, *states: str, seconds: float = 20.0) -> FakeCall:
        """Waits until a call has one of the states."""
        with self.changed:
            reached = self.changed.wait_for(lambda: self.calls[call_id].state in states, timeout=seconds)
        assert reached, f"{call_id} is {self.calls[call_id].state}, not {states}"
        return self.calls[call_id]

    def TakeCall(self, request, context):  # noqa: N802
        """As design says: reserved -> sent, once, unless the call may be repeated."""
        with self._served("TakeCall", request.call_id, context):
            call = self.calls.get(request.call_id)
            if call is None:
                self._refuse(context, grpc.StatusCode.PERMISSION_DENIED, "call_not_owned", request.call_id)
            repeatable = call.idempotent or call.effect == "read"
            ambiguous = call.reconciles and call.take > 0 and call.state in ("sent", "unknown")
            if ambiguous:
                return self._hand_out(call, request, ambiguous=True)
            if call.state not in ("reserved", "sent") or (call.state == "sent" and not repeatable):
                again = call.state == "sent" and call.instance == request.host_instance
                reason = "call_taken" if again else "call_settled"
                self._refuse(context, grpc.StatusCode.FAILED_PRECONDITION, reason, request.call_id)
            call.state = "sent"
            answer = self._hand_out(call, request, ambiguous=False)
        self._maybe_lose("TakeCall", context)
        return answer

    @staticmethod
    def _hand_out(call, request, *, ambiguous):
        """The call; one that is held to be lost gets no time to run."""
        call.take, call.instance = call.take + 1, request.host_instance
        seconds = call.deadline_seconds if call.state == "sent" else -1
        return pb.TakeCallResponse(
            take=call.take,
            tool=call.tool,
            arguments_json=call.arguments,
            definition_sha256=call.definition_sha256,
            deadline_unix_ms=int((time.time() + seconds) * 1000),
            idempotency_key=request.call_id,
            taken_before=call.take > 1,
            effect=call.effect,
            idempotent=call.idempotent,
            ambiguous=ambiguous,
            may_begin=ambiguous and call.state == "sent",
        )

    def FinishCall(self, request, context):  # noqa: N802
        """Settles; the same outcome again is no error."""
        with self._served("FinishCall", request.call_id, context):
            call = self.calls[request.call_id]
            kind = request.WhichOneof("outcome")
            outcome = getattr(request, kind)
            if request.take != call.take:
                self._refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "take_superseded", request.call_id)
            if call.state in ("done", "failed") and call.outcome != outcome:
                self._refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "call_settled", request.call_id)
            call.outcome, call.reconciled = outcome, request.reconciled
            failed = "unknown" if kind == "failure" and outcome.ambiguous else "failed"
            call.state = "done" if kind == "result" else failed
            self.changed.notify_all()
        self._maybe_lose("FinishCall", context)
        return pb.FinishCallResponse(state=pb.CALL_STATE_DONE)

    def _served(self, method, call_id, context):
        if method in self.away:
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        self.asked.append((method, call_id))
        return self.changed

    def _refuse(self, context, code, reason, call_id):
        self.refusals.append((call_id, reason))
        context.set_trailing_metadata((("meshgate-reason", reason),))
        context.abort(code, reason)

    def _maybe_lose(self, method, context):
        if self.lose_answers[method]:
            self.lose_answers[method] -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "acted, but the answer is lost")
