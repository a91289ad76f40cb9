"""The gateway as the launcher sees it: a port, its gRPC adapter, and asking until settled."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeVar

import grpc
from meshgate_wire import broker_pb2, broker_pb2_grpc
from meshgate_wire.stubs import PerChannel

from meshgate_agents.launcher.errors import (
    AttemptEnded,
    GatewayAway,
    GatewayUnavailable,
    RunFull,
    RunHeld,
    RunOver,
)

T = TypeVar("T")

RPC_TIMEOUT_SECONDS = 10.0  # the gateway holds a call for at most 2 s
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 0.25  # a gateway that was killed is back after a second
LONGEST_PENDING_PAUSE_SECONDS = 0.25  # the gateway itself waits up to 2 s before it says PENDING

MAX_TRACEBACK_BYTES = 65_536
JOURNAL_TIMEOUT_SECONDS = 120.0  # a run of thousands of steps; one of 200 takes well under a second
HELD = {"run_waiting", "run_paused", "run_pausing", "run_diverged", "run_cancelling"}
OVER = {"run_ended", "attempt_superseded", "run_unknown", "run_changed_input"}
MAX_ARGUMENTS_BYTES = 262_144  # the gateway's own bound; a message over 4 MiB it does not even read
FULL = {"run_steps_limit", "run_bytes_limit", "step_too_large", "delegations_limit"}
_OTHER = "meshgate run without --run-id, or with another, begins a new run"
_SAID = {  # for who started it: what the refusal means, and what to do
    "run_ended": (
        "the run has ended, so that nothing is left to do in it",
        "meshgate runs show {run}; " + _OTHER,
    ),
    "run_changed_input": (
        "a run of that id was started as another app, or with another command",
        "the same command as then goes on with it (meshgate runs show {run}); " + _OTHER,
    ),
    "run_purged": ("the run's clear text was purged, so that nobody can go on with it", _OTHER),
    "run_unknown": (
        "no run of that id is this app's",
        "--app with the app that it was started as; " + _OTHER,
    ),
}

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
    scope: str = ""
    turn: int = 0
    task: str = ""
    left_out: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the gateway says of a call. `state` is pending, run, done, failed, denied, unknown or refused.

    Attributes:
        arguments: as they were decided on, of a tool that its caller runs itself: now, with `run`, or
            again, with an answer from the journal.
        take: of a `run`.
        said: of a failure, one line of who failed.
    """

    state: str
    call_id: str = ""
    kind: str = ""
    result: str = ""
    text: str = ""
    arguments: str = ""
    take: int = 0
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a tool gave that ran in the child. `state` is done or failed."""

    state: str
    data: str
    kind: str = ""
    error_class: str = ""

    @property
    def shown(self) -> str:
        """As its answer says it."""
        return self.data if self.state == "done" else _failure(self.error_class, self.data)

    def same(self, answer: Answer) -> bool:
        """Whether a recorded answer says just this."""
        if self.state == "done":
            return (answer.state, answer.kind, answer.result) == ("done", self.kind, self.data)
        return (answer.state, answer.text) == ("failed", self.shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Where in the run a step happens. `task` is empty outside of a task."""

    key: str
    scope: str
    turn: int
    task: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One finished step of the run: a model's reply, or a settled call's answer; neither of a call under way.

    Attributes:
        effect_of: the tool, where the call took an effect that a program must ask for again before
            it makes another one with that tool.
    """

    key: str
    reply: bytes | None
    answer: Answer | None
    effect_of: str = ""
    scope: str = ""
    turn: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A run as the store has it.

    Attributes:
        forsaken: it should be worked on, and nobody gives a sign of that.
        lost: those of them that took their worker with them, in a row.
        failures: attempts that count against its bound, of all workers.
        attempt: the current one's number; 0 before the first.
    """

    state: str
    forsaken: bool
    input_json: bytes
    failures: int = 0
    lost: int = 0
    attempt: int = 0

    @property
    def ended(self) -> bool:
        """Nothing is left to do in it."""
        return self.state in ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Begun:
    """An attempt: its fencing number, 0 for none yet, and how many so far failed.

    Attributes:
        first: the run's first, of which and before which nothing is on record.
    """

    number: int
    failures: int = 0
    first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How an attempt or a run ended. `detail` goes into records and holds no clear text."""

    state: str
    detail: str
    traceback: str = ""
    result: bytes = b""

    def fields(self) -> dict[str, Any]:
        """For the message."""
        last = self.traceback.encode("utf-8", "replace")[-MAX_TRACEBACK_BYTES:]
        return {"state": self.state, "detail": self.detail, "traceback": last}


class Gateway(Protocol):
    """What a launcher needs. Safe for threads; keeps nothing; the caller retries.

    Every method may raise GatewayUnavailable (ask again, it is safe) or AttemptEnded (do not).
    """

    def start_run(self, *, run_id: str, input_json: bytes) -> Begun:
        """Starts the run; the same id and input again is the same run. Its current attempt."""

    def read_run(self, run_id: str) -> Known:
        """The run and its input."""

    def start_attempt(self, *, run_id: str, instance: str, after: int) -> Begun:
        """Begins an attempt after the one that was seen last; RunOver where there is another by now."""

    def journal(self, *, run_id: str, attempt: int) -> "list[Entry]":
        """Every finished step of the run."""

    def append(self, *, run_id: str, attempt: int, step: Step, given: tuple[bytes, bytes, int]) -> None:
        """Records a model's request, its reply and how many milliseconds it took."""

    def end_attempt(self, *, run_id: str, attempt: int, end: End) -> str:
        """The attempt is over, the run is not: restarting, paused or stopped; returns the run's state."""

    def call_tool(self, call: Call) -> Answer:
        """Asks once."""

    def finish_own(self, *, call_id: str, attempt: int, take: int, told: Told) -> Answer:
        """Records what a tool gave that ran in the child; `take` is 0 for a call on record."""

    def heartbeat(self, *, run_id: str, attempt: int, steps: int) -> str:
        """Says that the attempt lives; returns the run's state."""

    def finish(self, *, run_id: str, attempt: int, end: End) -> None:
        """Ends the run: completed, failed or cancelled."""


class GrpcGateway:
    """The real one. `channel` gives the channel to use now: it changes when the SVID rotates."""

    def __init__(self, *, channel: Callable[[], grpc.Channel]) -> None:
        self._runs_stub = PerChannel(channel=channel, make=broker_pb2_grpc.RunsStub)
        self._broker_stub = PerChannel(channel=channel, make=broker_pb2_grpc.BrokerStub)

    @property
    def _runs(self) -> Any:
        return self._runs_stub()

    @property
    def _broker(self) -> Any:
        return self._broker_stub()

    def start_run(self, *, run_id: str, input_json: bytes) -> Begun:
        """See Gateway."""
        request = broker_pb2.StartRunRequest(run_id=run_id, input_json=input_json)
        run = self._ask(self._runs.StartRun, request)
        return Begun(run.attempt, run.failures)

    def read_run(self, run_id: str) -> Known:
        """See Gateway."""
        found = self._ask(self._runs.ReadRun, broker_pb2.ReadRunRequest(run_id=run_id))
        return Known(
            state=found.state,
            forsaken=found.forsaken,
            input_json=found.input_json,
            failures=found.failures,
            lost=found.lost,
            attempt=found.attempt,
        )

    def start_attempt(self, *, run_id: str, instance: str, after: int) -> Begun:
        """See Gateway."""
        request = broker_pb2.StartAttemptRequest(run_id=run_id, launcher_instance=instance, after=after)
        begun = self._ask(self._runs.StartAttempt, request)
        return Begun(begun.attempt, begun.failures, begun.first)

    def journal(self, *, run_id: str, attempt: int) -> list[Entry]:
        """See Gateway."""
        request = broker_pb2.ReadJournalRequest(run_id=run_id, attempt=attempt)
        try:
            return list(_entries(self._runs.ReadJournal(request, timeout=JOURNAL_TIMEOUT_SECONDS)))
        except grpc.RpcError as error:
            _translate(error, run_id)

    def append(self, *, run_id: str, attempt: int, step: Step, given: tuple[bytes, bytes, int]) -> None:
        """See Gateway."""
        request_json, reply_json, milliseconds = given
        request = broker_pb2.AppendStepRequest(
            run_id=run_id,
            attempt=attempt,
            step=broker_pb2.Step(key=step.key, scope=step.scope, turn=step.turn, kind="model"),
            request_json=request_json,
            reply_json=reply_json,
            milliseconds=milliseconds,
        )
        self._ask(self._runs.AppendStep, request)

    def end_attempt(self, *, run_id: str, attempt: int, end: End) -> str:
        """See Gateway."""
        request = broker_pb2.EndAttemptRequest(run_id=run_id, attempt=attempt, **end.fields())
        return str(self._ask(self._runs.EndAttempt, request).state)

    def call_tool(self, call: Call) -> Answer:
        """See Gateway."""
        request = broker_pb2.CallToolRequest(
            run_id=call.run_id,
            attempt=call.attempt,
            step_key=call.step_key,
            tool=call.tool,
            arguments_json=call.arguments_json,
            untrusted=dict(call.untrusted),
            scope=call.scope,
            turn=call.turn,
            task=call.task,
            left_out=call.left_out,
        )
        try:
            return _answer(self._broker.CallTool(request, timeout=RPC_TIMEOUT_SECONDS))
        except grpc.RpcError as error:
            size = len(call.arguments_json)
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and size > MAX_ARGUMENTS_BYTES:
                return Answer(state="refused", text=f"refused: arguments of {size} bytes are too large")
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:  # the model's mistake, for the model
                return Answer(state="refused", text=_one_line(f"refused: {error.details()}"))
            _translate(error, call.run_id)

    def finish_own(self, *, call_id: str, attempt: int, take: int, told: Told) -> Answer:
        """See Gateway."""
        request: Any = broker_pb2.FinishOwnCallRequest(call_id=call_id, attempt=attempt, take=take)
        if told.state == "done":
            request.result.kind = broker_pb2.ResultKind.Value(f"RESULT_KIND_{told.kind.upper()}")
            request.result.data = told.data.encode("utf-8", "surrogatepass")
        else:
            request.failure.error_class = told.error_class
            request.failure.message = told.data
        return _answer(self._ask(self._broker.FinishOwnCall, request))

    def heartbeat(self, *, run_id: str, attempt: int, steps: int) -> str:
        """See Gateway."""
        request = broker_pb2.HeartbeatRequest(run_id=run_id, attempt=attempt, steps=steps)
        return str(self._ask(self._runs.Heartbeat, request).state)

    def finish(self, *, run_id: str, attempt: int, end: End) -> None:
        """See Gateway."""
        request = broker_pb2.FinishRunRequest(
            run_id=run_id, attempt=attempt, result=end.result, **end.fields()
        )
        self._ask(self._runs.FinishRun, request)

    @staticmethod
    def _ask(method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=RPC_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            _translate(error, getattr(request, "run_id", ""))


def _translate(error: Any, run_id: str) -> NoReturn:
    """Maps a gRPC error once: asked again, or the end of the attempt."""
    code, detail = error.code(), _one_line(error.details() or "")
    metadata = dict(error.trailing_metadata() or ())
    reason = str(metadata.get("meshgate-reason", code.name.lower()))
    if code in ASK_AGAIN:
        raise GatewayUnavailable(reason=reason, detail=detail) from error
    kinds = {**dict.fromkeys(HELD, RunHeld), **dict.fromkeys(OVER, RunOver), **dict.fromkeys(FULL, RunFull)}
    what, next_step = _SAID.get(reason, (f"the gateway refused this attempt: {detail}", ""))
    text = what if reason in what else f"{what} ({reason})"
    raise kinds.get(reason, AttemptEnded)(text, next_step=next_step.format(run=run_id)) from error


def _entries(messages: Any) -> Iterator[Entry]:
    for message in messages:
        step = message.step
        if message.HasField("answer"):
            answer, tool = _answer(message.answer), message.effect_of
            place = {"scope": step.scope, "turn": step.turn}
            yield Entry(key=step.key, reply=None, answer=answer, effect_of=tool, **place)
        elif step.kind == "tool":  # it is under way
            tool = message.effect_of
            yield Entry(key=step.key, reply=None, answer=None, effect_of=tool, scope=step.scope)
        else:
            yield Entry(key=step.key, reply=bytes(message.reply_json), answer=None, scope=step.scope)


def _answer(response: Any) -> Answer:
    state = broker_pb2.CallState.Name(response.state).removeprefix("CALL_STATE_").lower()
    message = _one_line(response.message)
    own: dict[str, Any] = {"arguments": response.arguments_json.decode(), "take": response.take}
    if state == "run":
        return Answer(state=state, call_id=response.call_id, **own)
    if state == "done":
        return Answer(state=state, call_id=response.call_id, **_result(response), **own)
    if state == "denied":
        reasons = ", ".join(response.reasons) or message or "no reason given"
        text = f"denied [{response.decision_id}]: {_one_line(reasons)}; do not retry"
        return Answer(state=state, call_id=response.call_id, text=text)
    if state == "failed":
        text = _failure(response.error_class, message)
        return Answer(state=state, call_id=response.call_id, text=text, said=message, **own)
    if state in ("pending", "unknown"):
        return Answer(state=state, call_id=response.call_id, text=message)
    raise AttemptEnded(f"the gateway gave an answer without a state for {response.call_id}")


def _failure(error_class: str, message: str) -> str:
    return f"the tool failed ({_one_line(error_class) or 'error'}): {_one_line(message)}"


def _result(response: Any) -> dict[str, Any]:
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


def until_available(ask: Callable[[], T], *, seconds: float, stopped: threading.Event) -> T:
    """Asks again while no verdict comes.

    Raises:
        AttemptEnded: none came in time, or the launcher is ending.
    """
    give_up_at, pause = time.monotonic() + seconds, FIRST_PAUSE_SECONDS
    while True:
        try:
            return ask()
        except GatewayUnavailable as error:
            if time.monotonic() + pause > give_up_at or stopped.is_set():
                raise GatewayAway(
                    f"the gateway gave no answer within {seconds:g} s ({error}); is the mesh up? "
                    "see `meshgate ps` and `meshgate logs gateway`"
                ) from error
        stopped.wait(pause)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


def call_until_settled(
    *,
    gateway: Gateway,
    call: Call,
    unavailable_seconds: float,
    stopped: threading.Event,
    on_pending: Callable[[], None] = lambda: None,
) -> Answer:
    """Asks with the same key until there is an outcome.

    Args:
        gateway: where to ask.
        call: what to ask, the same each time.
        unavailable_seconds: for how long a gateway that gives no verdict is asked again; a
            PENDING answer is a sign of life and starts that time anew.
        stopped: set when this launcher ends.
        on_pending: told of each PENDING.

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
            raise RunHeld(
                f"call {answer.call_id} of {call.tool} may or may not have taken effect; it "
                f"is never repeated on a guess; say how it ended: meshgate runs resolve {answer.call_id} "
                "--as done|failed"
            )
        if answer.state != "pending":
            return answer
        on_pending()
        given_up, pause = None, FIRST_PAUSE_SECONDS
        stopped.wait(pending_pause)
        pending_pause = min(pending_pause * 2, LONGEST_PENDING_PAUSE_SECONDS)
    raise AttemptEnded("the launcher is ending")
