"""The runtime on Dapr: workflows in the gateway's app, each with one activity in another.

`call` delivers a call to its host (`invoke`), `start` a run to its app (`start_run`). Only the id and the
app's name travel. What the activity returns is ignored: outcomes
come through FinishCall alone.
"""

import logging
import threading
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from typing import Any

import grpc
from dapr.conf import settings as dapr_settings
from dapr.ext.workflow import DaprWorkflowClient, DaprWorkflowContext, WorkflowRuntime, WorkflowState
from dapr.ext.workflow.logger import LoggerOptions

from meshgate_gateway.errors import DeliveriesSpent, RuntimeUnavailable

WORKFLOW = "call"
ACTIVITY = "invoke"
START_WORKFLOW = "start"
START_ACTIVITY = "start_run"
MAX_STARTS = 16  # fresh instance ids for one delivery; an id that ended may not be used again
PROBE_ID = "meshgate-probe"
WORKER_SECONDS = 5.0  # measured 0.1 s; a probe that takes longer tries again
STUCK_SECONDS = 4.0  # a healthy call is taken within 0.1 s
SIDECAR_SECONDS = 2.0  # a hung sidecar must not keep a handler longer; it answers in milliseconds
_ENDED = frozenset({"COMPLETED", "FAILED", "TERMINATED"})


def call(context: DaprWorkflowContext, given: dict[str, str]) -> Generator[Any, Any, None]:
    """Delivers one call id to its host. No clock, no environment, no retry policy."""
    yield context.call_activity(ACTIVITY, input={"call_id": given["call_id"]}, app_id=given["host"])


def start(context: DaprWorkflowContext, given: dict[str, str]) -> Generator[Any, Any, None]:
    """Tells an app that it has a run to play."""
    yield context.call_activity(START_ACTIVITY, input={"run_id": given["run_id"]}, app_id=given["app"])


class DaprRuntime:
    """Implements `execute.ToolRuntime` and `drive.RunRuntime` over the gateway's own sidecar."""

    def __init__(self, *, grpc_port: int, api_token: str) -> None:
        # Process-global in the SDK; this process talks to exactly one sidecar.
        dapr_settings.DAPR_API_TOKEN = api_token
        dapr_settings.DAPR_GRPC_PORT = grpc_port
        dapr_settings.DAPR_API_TIMEOUT_SECONDS = SIDECAR_SECONDS  # without it a question waits for ever
        self._port = str(grpc_port)
        self._client = DaprWorkflowClient(host="127.0.0.1", port=self._port, logger_options=_quiet())
        self._worker: WorkflowRuntime | None = None
        self._lock = threading.Lock()

    def probe(self) -> None:
        """Asks the sidecar something, and starts the worker once it answers.

        A worker that starts with a wrong token waits for ever, so a client call goes first.

        Raises:
            RuntimeUnavailable: no sidecar, or it does not take our token.
        """
        self._state(PROBE_ID)
        with self._lock:
            if self._worker is None:
                worker = WorkflowRuntime(
                    host="127.0.0.1",
                    port=self._port,
                    logger_options=_quiet(),
                    worker_ready_timeout=WORKER_SECONDS,
                )
                worker.register_workflow(_fresh(call), name=WORKFLOW)
                worker.register_workflow(_fresh(start), name=START_WORKFLOW)
                try:
                    worker.start()
                except (grpc.RpcError, RuntimeError) as error:
                    raise RuntimeUnavailable(detail=f"the workflow worker: {error}") from error
                self._worker = worker

    def dispatch(self, call_id: str, host: str, *, fresh: bool = False) -> None:
        """Schedules `call` under the call's id unless an instance of it is under way."""
        instance = call_id if fresh else self._free_instance(call_id)
        if instance is not None:
            self._schedule(WORKFLOW, {"call_id": call_id, "host": host}, instance)

    def start_run(self, run_id: str, app: str, *, telling: str) -> None:
        """Schedules `start`, once for each telling: an id that ended may not be used again."""
        instance = f"start-{run_id}-{telling}"
        if self._state(instance) is None:
            self._schedule(START_WORKFLOW, {"run_id": run_id, "app": app}, instance)

    def _schedule(self, workflow: str, given: dict[str, str], instance: str) -> None:
        try:
            self._client.schedule_new_workflow(workflow, input=given, instance_id=instance)
        except grpc.RpcError as error:
            if _code(error) is grpc.StatusCode.ALREADY_EXISTS or "already exists" in _details(error):
                return
            raise RuntimeUnavailable(detail=f"not scheduled: {_details(error)}") from error

    def close(self) -> None:
        """Stops the worker; activities under way belong to their hosts."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.shutdown()

    def _free_instance(self, call_id: str) -> str | None:
        """An instance id never used for this call; None while one is under way.

        Seen on 1.18.2: a work item handed to a gateway that is then killed is not handed out
        again, and its instance stays RUNNING. One that is too old is given up and another started
        beside it, each after twice the wait. Safe, because the ledger lets a call be taken once.
        """
        for number in range(MAX_STARTS):
            instance = call_id if number == 0 else f"{call_id}-{number}"
            state = self._state(instance)
            if state is None:
                return instance
            if state.runtime_status.name not in _ENDED and _age(state) < STUCK_SECONDS * 2**number:
                return None
        raise DeliveriesSpent(detail=f"{call_id} was started {MAX_STARTS} times")

    def _state(self, instance: str) -> WorkflowState | None:
        try:
            return self._client.get_workflow_state(instance, fetch_payloads=False)
        except grpc.RpcError as error:
            raise RuntimeUnavailable(detail=f"no status: {_details(error)}") from error


def _age(state: WorkflowState) -> float:
    """Seconds since the instance was made; the SDK gives UTC without saying so."""
    created = state.created_at
    if created.tzinfo is None:
        created = created.replace(tzinfo=UTC)
    return float((datetime.now(UTC) - created).total_seconds())


def _quiet() -> LoggerOptions:
    """The SDK adds a handler of its own to each logger: every line would come twice."""
    return LoggerOptions(log_level="ERROR", log_handler=logging.NullHandler())


def _fresh(workflow: Callable[..., Generator[Any, Any, None]]) -> Any:
    """The SDK marks a function it registered and takes it only once per process."""

    def registered(context: DaprWorkflowContext, given: dict[str, str]) -> Generator[Any, Any, None]:
        yield from workflow(context, given)

    return registered


def _code(error: grpc.RpcError) -> grpc.StatusCode | None:
    return error.code() if isinstance(error, grpc.Call) else None


def _details(error: grpc.RpcError) -> str:
    return str(error.details() or "") if isinstance(error, grpc.Call) else str(error)
