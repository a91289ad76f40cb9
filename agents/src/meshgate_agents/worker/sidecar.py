"""The Dapr worker on this app's own sidecar, and the client that starts its workflows."""

import logging
import threading
from datetime import UTC, datetime
from typing import Any

import grpc
from dapr.conf import settings as dapr_settings
from dapr.ext.workflow import DaprWorkflowClient, WorkflowRuntime, WorkflowState
from dapr.ext.workflow.logger import LoggerOptions

from meshgate_agents.launcher.errors import GatewayUnavailable, LauncherError, StartsSpent
from meshgate_agents.worker import activities
from meshgate_agents.worker.plays import Plays

PROBE_ID = "meshgate-probe"
READY_SECONDS = 10.0
SIDECAR_SECONDS = 2.0  # a hung sidecar is asked again, not waited for
PATIENCE_SECONDS = 60.0
MAX_ACTIVITIES = 1024  # runs under way; each waits on a thread of its own
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0
MAX_STARTS = 16  # instances for one attempt of a run, each after twice the wait: three days in all
STUCK_SECONDS = 8.0  # an instance that is begun is played within a second
_ENDED = frozenset({"COMPLETED", "FAILED", "TERMINATED"})


class Sidecar:
    """Receives runs. Start it once."""

    def __init__(self, *, grpc_port: int, api_token: str) -> None:
        # Process-global in the SDK; this process talks to exactly one sidecar.
        dapr_settings.DAPR_API_TOKEN = api_token
        dapr_settings.DAPR_GRPC_PORT = grpc_port
        dapr_settings.DAPR_API_TIMEOUT_SECONDS = SIDECAR_SECONDS  # without it a question waits for ever
        self._port = str(grpc_port)
        quiet = LoggerOptions(log_level="ERROR", log_handler=logging.NullHandler())
        self._client = DaprWorkflowClient(host="127.0.0.1", port=self._port, logger_options=quiet)
        self._runtime = WorkflowRuntime(
            host="127.0.0.1",
            port=self._port,
            logger_options=quiet,
            maximum_concurrent_activity_work_items=MAX_ACTIVITIES,
            worker_ready_timeout=READY_SECONDS,
        )

    def serve(self, plays: Plays, stop: threading.Event) -> None:
        """Waits for the sidecar, then takes runs.

        A worker with a wrong token waits for ever, so a client call goes first.

        Raises:
            LauncherError: it did not answer in time, or `stop` was set.
        """
        self._runtime.register_workflow(activities.run, name=activities.WORKFLOW)
        self._runtime.register_activity(activities.execute(plays), name=activities.EXECUTE)
        self._runtime.register_activity(activities.start_run(plays, self), name=activities.START)
        pause, waited = FIRST_PAUSE_SECONDS, 0.0
        while True:
            try:
                self._state(PROBE_ID)
                break
            except GatewayUnavailable as error:
                if waited >= PATIENCE_SECONDS or stop.wait(pause):
                    raise LauncherError(f"the sidecar on port {self._port}: {error}") from error
            waited += pause
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        try:
            self._runtime.start()
        except (grpc.RpcError, RuntimeError) as error:
            raise LauncherError(f"the workflow worker: {error}") from error

    def start(self, run_id: str, attempt: int) -> bool:
        """Starts workflow `run`, unless an instance for that attempt is young enough to be coming.

        An id that ended may not be used again, so each attempt has ids of its own: a run can be driven as
        often as it may have attempts.

        Seen on 1.18.2: a work item handed to a worker that is then killed may not be handed out again,
        and its instance stays RUNNING. One that is too old is given up and another started beside it,
        each after twice the wait: a run is played once, however many ask for it.

        Raises:
            GatewayUnavailable: the sidecar did not take it.
            StartsSpent: so many instances brought no attempt.
        """
        for number in range(MAX_STARTS):
            instance = instance_id(run_id, attempt, number)
            state = self._state(instance)
            if state is None:
                return self._schedule(run_id, instance)
            at_once = number == 0 and state.runtime_status.name in _ENDED
            if not at_once and _age(state) < STUCK_SECONDS * 2**number:
                return False
        raise StartsSpent(f"handed out {MAX_STARTS} times after attempt {attempt}, and no attempt was begun")

    def _schedule(self, run_id: str, instance: str) -> bool:
        try:
            self._client.schedule_new_workflow(
                activities.WORKFLOW, input={"run_id": run_id}, instance_id=instance
            )
        except grpc.RpcError as error:
            if "already exists" in str(error):
                return False
            raise _unavailable(error) from error
        return True

    def _state(self, instance: str) -> WorkflowState | None:
        try:
            return self._client.get_workflow_state(instance, fetch_payloads=False)
        except grpc.RpcError as error:
            raise _unavailable(error) from error


def instance_id(run_id: str, attempt: int, number: int) -> str:
    """No other run's: an id of a run has no tilde."""
    return f"{run_id}~{attempt}.{number}" if attempt or number else run_id


def _unavailable(error: Any) -> GatewayUnavailable:
    detail = error.details() if isinstance(error, grpc.Call) else str(error)
    return GatewayUnavailable(reason="runtime_unavailable", detail=str(detail))


def _age(state: WorkflowState) -> float:
    """Seconds since the instance was made; the SDK gives UTC without saying so."""
    created = state.created_at
    if created.tzinfo is None:
        created = created.replace(tzinfo=UTC)
    return float((datetime.now(UTC) - created).total_seconds())
