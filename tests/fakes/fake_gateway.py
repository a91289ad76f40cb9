"""FAKE: a gateway that decides nothing and runs nothing; it answers tool calls from a script.

A real gRPC server on a loopback port, without TLS. For tests of the agents' side only.
"""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from meshgate_wire import broker_pb2 as pb
from meshgate_wire import broker_pb2_grpc

Reply = pb.CallToolResponse | grpc.StatusCode


def done(value: object) -> pb.CallToolResponse:
    """A result; text when it is a str."""
    if isinstance(value, str):
        return pb.CallToolResponse(
            call_id="c1", state=pb.CALL_STATE_DONE, kind=pb.RESULT_KIND_TEXT, result=value.encode()
        )
    return pb.CallToolResponse(
        call_id="c1", state=pb.CALL_STATE_DONE, kind=pb.RESULT_KIND_JSON, result=json.dumps(value).encode()
    )


def denied(reason: str) -> pb.CallToolResponse:
    """A denial."""
    return pb.CallToolResponse(call_id="c1", state=pb.CALL_STATE_DENIED, decision_id="D-7", reasons=[reason])


def failed(message: str) -> pb.CallToolResponse:
    """The tool raised."""
    return pb.CallToolResponse(
        call_id="c1", state=pb.CALL_STATE_FAILED, error_class="ValueError", message=message
    )


def pending() -> pb.CallToolResponse:
    """Not settled yet."""
    return pb.CallToolResponse(call_id="c1", state=pb.CALL_STATE_PENDING)


def unknown() -> pb.CallToolResponse:
    """May or may not have taken effect."""
    return pb.CallToolResponse(call_id="c1", state=pb.CALL_STATE_UNKNOWN, message="the host died")


@dataclass
class Seen:
    """One request as it came."""

    run_id: str
    attempt: int
    step_key: str
    tool: str
    arguments: dict[str, Any]
    role: str
    task: str = ""
    untrusted: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeGateway(broker_pb2_grpc.BrokerServicer, broker_pb2_grpc.RunsServicer):
    """Answers by `behave(request, how many times this tool was asked before)`."""

    behave: Callable[[Seen, int], Reply] = lambda seen, _nth: done(f"{seen.tool} ok")
    seen: list[Seen] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    finished: list[tuple[str, str]] = field(default_factory=list)
    results: list[bytes] = field(default_factory=list)
    heartbeat_state: str = "running"
    attempts: int = 2
    seen_attempt: int = 0  # what the start of a run is answered with
    after: list[int] = field(default_factory=list)  # what each attempt says that was seen
    away_at_the_end: int = 0  # how often the end of a run finds no gateway
    ended: list[tuple[str, str]] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    journal: dict[str, pb.JournalEntry] = field(default_factory=dict)
    strays: list[tuple[str, str]] = field(default_factory=list)  # refused: the key, and what was left out
    port: int = 0
    reason: str = "fake_reason"
    given: bytes = b""  # what is kept of how the run was started

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self.called = threading.Event()
        self.asked_to_start, self.away_at_the_start = threading.Event(), threading.Event()

    @property
    def logical(self) -> list[tuple[str, dict[str, Any]]]:
        """Tool and arguments per step key, in order of first arrival."""
        first = {seen.step_key: (seen.tool, seen.arguments) for seen in reversed(self.seen)}
        order = dict.fromkeys(seen.step_key for seen in self.seen)
        return [first[key] for key in order]

    def CallTool(self, request: Any, context: Any) -> Any:  # noqa: N802
        seen = Seen(
            request.run_id,
            request.attempt,
            request.step_key,
            request.tool,
            json.loads(request.arguments_json),
            request.untrusted.get("role", ""),
            request.task,
            dict(request.untrusted),
        )
        with self._lock:
            nth = sum(1 for other in self.seen if other.tool == seen.tool)
            self.seen.append(seen)
        self.called.set()
        reply = self.behave(seen, nth)
        if request.left_out:
            self.strays.append((request.step_key, request.left_out))
            self.reason, reply = "run_diverged", grpc.StatusCode.FAILED_PRECONDITION
        if isinstance(reply, grpc.StatusCode):
            context.set_trailing_metadata((("meshgate-reason", self.reason),))
            context.abort(reply, "the fake says so")
        if reply.state in (pb.CALL_STATE_DONE, pb.CALL_STATE_FAILED, pb.CALL_STATE_DENIED):
            step = pb.Step(key=request.step_key, scope=request.scope, turn=request.turn, kind="tool")
            reads = request.tool.endswith("lookup")
            acted = request.tool if reply.state == pb.CALL_STATE_DONE and not reads else ""
            entry = pb.JournalEntry(step=step, answer=reply, effect_of=acted)
            self.journal.setdefault(request.step_key, entry)
        return reply

    def StartRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked_to_start.set()
        if self.away_at_the_start.is_set():
            context.abort(grpc.StatusCode.UNAVAILABLE, "the fake is away")
        self.runs.append(request.run_id)
        return pb.StartRunResponse(run_id=request.run_id, state="pending", attempt=self.seen_attempt)

    def ReadRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ReadRunResponse(state="completed", input_json=self.given)

    def StartAttempt(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.attempts += 1
        self.after.append(request.after)
        return pb.StartAttemptResponse(attempt=self.attempts)

    def ReadJournal(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield from list(self.journal.values())

    def AppendStep(self, request: Any, context: Any) -> Any:  # noqa: N802
        entry = pb.JournalEntry(step=request.step, reply_json=request.reply_json)
        self.journal.setdefault(request.step.key, entry)
        return pb.AppendStepResponse()

    def EndAttempt(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.ended.append((request.state, request.detail))
        return pb.EndAttemptResponse(state=request.state)

    def Heartbeat(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.HeartbeatResponse(state=self.heartbeat_state)

    def FinishRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.away_at_the_end:
            self.away_at_the_end -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "the fake is away")
        self.finished.append((request.state, request.detail))
        self.tracebacks.append(request.traceback.decode())
        self.results.append(request.result)
        return pb.FinishRunResponse(state=request.state)


@contextmanager
def serving(fake: FakeGateway) -> Iterator[FakeGateway]:
    """Serves the fake on a free loopback port."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    broker_pb2_grpc.add_BrokerServicer_to_server(fake, server)
    broker_pb2_grpc.add_RunsServicer_to_server(fake, server)
    fake.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield fake
    finally:
        server.stop(None).wait()
