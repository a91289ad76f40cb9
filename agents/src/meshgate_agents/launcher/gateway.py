"""The launcher's conversation with the gateway: one run, one attempt, many calls."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from meshgate_wire import broker_pb2 as pb
from meshgate_wire import broker_pb2_grpc as rpc

R = TypeVar("R")
RPC_SECONDS = 5.0  # the gateway answers PENDING after 2
FIRST_BACKOFF = 0.05
MAX_BACKOFF = 1.0
NO_VERDICT = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
)


class AttemptOver(Exception):
    """This attempt cannot go on; the run ends failed. Never text for a model."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call as the launcher passes it on."""

    tool: str
    step_key: str
    arguments: bytes
    untrusted: Mapping[str, str]


class GatewaySession:
    """One run's calls. Safe for threads."""

    def __init__(self, *, channel: Callable[[], grpc.Channel], run_id: str, step_seconds: float) -> None:
        self._channel = channel
        self.run_id = run_id
        self._step_seconds = step_seconds
        self.attempt = 0
        self._lock = threading.Lock()
        self.steps = 0

    def start(self, instance: str) -> None:
        """Starts the run and its attempt.

        Raises:
            AttemptOver: the gateway refuses, or gives no answer in time.
        """
        self._patiently(
            lambda: self._runs().StartRun(pb.StartRunRequest(run_id=self.run_id), timeout=RPC_SECONDS)
        )
        request = pb.StartAttemptRequest(run_id=self.run_id, launcher_instance=instance)
        self.attempt = self._patiently(
            lambda: self._runs().StartAttempt(request, timeout=RPC_SECONDS)
        ).attempt

    def call(self, step: Step) -> pb.CallToolResponse:
        """One call until it is settled; PENDING and no verdict are asked again with the same key.

        Raises:
            AttemptOver: no verdict before the step's deadline, refused, or its outcome is unknown.
        """
        request = pb.CallToolRequest(
            run_id=self.run_id,
            attempt=self.attempt,
            step_key=step.step_key,
            tool=step.tool,
            arguments_json=step.arguments,
            untrusted=step.untrusted,
        )
        with self._lock:
            self.steps += 1
        while True:
            answer = self._patiently(
                lambda: rpc.BrokerStub(self._channel()).CallTool(request, timeout=RPC_SECONDS)
            )
            if answer.state == pb.CALL_STATE_UNKNOWN:
                raise AttemptOver(
                    f"the outcome of {step.tool} (call {answer.call_id}) is unknown: {answer.message}"
                )
            if answer.state != pb.CALL_STATE_PENDING:
                return answer

    def heartbeat(self) -> None:
        """Tells the gateway that the attempt lives.

        Raises:
            grpc.RpcError: it did not hear it.
        """
        request = pb.HeartbeatRequest(run_id=self.run_id, attempt=self.attempt, steps=self.steps)
        self._runs().Heartbeat(request, timeout=RPC_SECONDS)

    def finish(self, state: str, detail: str) -> None:
        """Ends the run.

        Raises:
            AttemptOver: the gateway did not hear it.
        """
        request = pb.FinishRunRequest(run_id=self.run_id, attempt=self.attempt, state=state, detail=detail)
        self._patiently(lambda: self._runs().FinishRun(request, timeout=RPC_SECONDS))

    def _runs(self) -> Any:
        return rpc.RunsStub(self._channel())  # the channel may have rotated

    def _patiently(self, ask: Callable[[], R]) -> R:
        end, pause = time.monotonic() + self._step_seconds, FIRST_BACKOFF
        while True:
            try:
                return ask()
            except grpc.RpcError as error:
                if error.code() not in NO_VERDICT:
                    raise AttemptOver(
                        f"the gateway refused: {error.code().name}: {error.details()}"
                    ) from error
                if time.monotonic() > end:
                    raise AttemptOver(
                        f"no verdict within {self._step_seconds:.0f} s: {error.details()}"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, MAX_BACKOFF)
