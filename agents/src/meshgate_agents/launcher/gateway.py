"""The gateway as the launcher sees it: a port, its gRPC adapter, and asking until settled."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import grpc
from meshgate_wire import broker_pb2, broker_pb2_grpc

from meshgate_agents.launcher.errors import AttemptEnded, GatewayUnavailable

RPC_TIMEOUT_SECONDS = 10.0  # the gateway holds a call for at most 2 s
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0
LONGEST_PENDING_PAUSE_SECONDS = 0.25  # the gateway itself waits up to 2 s before it says PENDING

ASK_AGAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One tool call, stamped with run and attempt. Repeating it is safe: the key is the same."""

    run_id: str
    attempt: int
    step_key: str
    tool: str
    arguments_json: bytes
    untrusted: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the gateway says of a call. `state` is pending, done, failed, denied, unknown or refused."""

    state: str
    call_id: str = ""
    kind: str = ""
    result: str = ""
    text: str = ""


class Gateway(Protocol):
    """What a launcher needs. Safe for threads; keeps nothing; the caller retries.

    Every method may raise GatewayUnavailable (ask again, it is safe) or AttemptEnded (do not).
    """

    def start(self, *, run_id: str, input_json: bytes, launcher_instance: str) -> int:
        """Starts the run and an attempt on it; returns the fencing number."""

    def call_tool(self, call: Call) -> Answer:
        """Asks once."""

    def heartbeat(self, *, run_id: str, attempt: int, steps: int) -> str:
        """Says that the attempt lives; returns the run's state."""

    def finish(self, *, run_id: str, attempt: int, state: str, detail: str) -> None:
        """Ends the run: completed, failed or cancelled."""


class GrpcGateway:
    """The real one. `channel` gives the channel to use now: it changes when the SVID rotates."""

    def __init__(self, *, channel: Callable[[], grpc.Channel]) -> None:
        self._channel = channel

    def start(self, *, run_id: str, input_json: bytes, launcher_instance: str) -> int:
        """See Gateway."""
        runs = broker_pb2_grpc.RunsStub(self._channel())
        self._ask(runs.StartRun, broker_pb2.StartRunRequest(run_id=run_id, input_json=input_json))
        started = self._ask(
            runs.StartAttempt,
            broker_pb2.StartAttemptRequest(run_id=run_id, launcher_instance=launcher_instance),
        )
        return int(started.attempt)

    def call_tool(self, call: Call) -> Answer:
        """See Gateway."""
        request = broker_pb2.CallToolRequest(
            run_id=call.run_id,
            attempt=call.attempt,
            step_key=call.step_key,
            tool=call.tool,
            arguments_json=call.arguments_json,
            untrusted=dict(call.untrusted),
        )
        stub = broker_pb2_grpc.BrokerStub(self._channel())
        try:
            return _answer(stub.CallTool(request, timeout=RPC_TIMEOUT_SECONDS))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:  # the model's mistake, for the model
                return Answer(state="refused", text=_one_line(f"refused: {error.details()}"))
            _translate(error)

    def heartbeat(self, *, run_id: str, attempt: int, steps: int) -> str:
        """See Gateway."""
        runs = broker_pb2_grpc.RunsStub(self._channel())
        request = broker_pb2.HeartbeatRequest(run_id=run_id, attempt=attempt, steps=steps)
        return str(self._ask(runs.Heartbeat, request).state)

    def finish(self, *, run_id: str, attempt: int, state: str, detail: str) -> None:
        """See Gateway."""
        runs = broker_pb2_grpc.RunsStub(self._channel())
        request = broker_pb2.FinishRunRequest(run_id=run_id, attempt=attempt, state=state, detail=detail)
        self._ask(runs.FinishRun, request)

    @staticmethod
    def _ask(method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=RPC_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            _translate(error)


def _translate(error: Any) -> NoReturn:
    """Maps a gRPC error once: asked again, or the end of the attempt."""
    code, detail = error.code(), _one_line(error.details() or "")
    metadata = dict(error.trailing_metadata() or ())
    reason = str(metadata.get("meshgate-reason", code.name.lower()))
    if code in ASK_AGAIN:
        raise GatewayUnavailable(reason=reason, detail=detail) from error
    raise AttemptEnded(f"the gateway refused this attempt ({reason}): {detail}") from error


def _answer(response: Any) -> Answer:
    state = broker_pb2.CallState.Name(response.state).removeprefix("CALL_STATE_").lower()
    message = _one_line(response.message)
    if state == "done":
        return Answer(state=state, call_id=response.call_id, **_result(response))
    if state == "denied":
        reasons = ", ".join(response.reasons) or message or "no reason given"
        text = f"denied [{response.decision_id}]: {_one_line(reasons)}; do not retry"
        return Answer(state=state, call_id=response.call_id, text=text)
    if state == "failed":
        text = f"the tool failed ({_one_line(response.error_class) or 'error'}): {message}"
        return Answer(state=state, call_id=response.call_id, text=text)
    if state in ("pending", "unknown"):
        return Answer(state=state, call_id=response.call_id, text=message)
    raise AttemptEnded(f"the gateway gave an answer without a state for {response.call_id}")


def _result(response: Any) -> dict[str, str]:
    kinds = {broker_pb2.RESULT_KIND_TEXT: "text", broker_pb2.RESULT_KIND_JSON: "json"}
    kind = kinds.get(response.kind)
    if kind is None:
        raise AttemptEnded(f"the gateway gave a result without a kind for {response.call_id}")
    try:
        return {"kind": kind, "result": response.result.decode()}
    except UnicodeDecodeError as error:
        raise AttemptEnded(f"the result of {response.call_id} is no UTF-8") from error


def _one_line(text: str) -> str:
    return " ".join(text.split())


def call_until_settled(
    *, gateway: Gateway, call: Call, unavailable_seconds: float, stopped: threading.Event
) -> Answer:
    """Asks with the same key until there is an outcome.

    Args:
        gateway: where to ask.
        call: what to ask, the same each time.
        unavailable_seconds: for how long a gateway that gives no verdict is asked again; a
            PENDING answer is a sign of life and starts that time anew.
        stopped: set when this launcher ends.

    Raises:
        AttemptEnded: no verdict in time, or the outcome is not known. Neither may become text for
            a model.
    """
    given_up, pause, pending_pause = None, FIRST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS
    while not stopped.is_set():
        try:
            answer = gateway.call_tool(call)
        except GatewayUnavailable as error:
            now = time.monotonic()
            given_up = given_up or now + unavailable_seconds
            if now + pause > given_up:
                raise AttemptEnded(
                    f"no answer for {call.tool} within {unavailable_seconds:g} s ({error}); nothing was "
                    "decided by that; look at `meshgate ps` and `meshgate logs gateway`, then run again"
                ) from error
            stopped.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            continue
        if answer.state == "unknown":
            raise AttemptEnded(
                f"call {answer.call_id} of {call.tool} may or may not have taken effect ({answer.text}); "
                f"it is never repeated on a guess; see `meshgate audit query --call-id {answer.call_id}`"
            )
        if answer.state != "pending":
            return answer
        given_up, pause = None, FIRST_PAUSE_SECONDS
        stopped.wait(pending_pause)
        pending_pause = min(pending_pause * 2, LONGEST_PENDING_PAUSE_SECONDS)
    raise AttemptEnded("the launcher is ending")
