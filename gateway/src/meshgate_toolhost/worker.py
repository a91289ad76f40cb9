"""The Dapr worker of this host, on its own sidecar."""

import logging
import threading
from collections.abc import Awaitable, Callable

import grpc
from dapr.conf import settings as dapr_settings
from dapr.ext.workflow import DaprWorkflowClient, WorkflowRuntime

from meshgate_toolhost.activity import NAME
from meshgate_toolhost.errors import SidecarUnavailable

SDK_LOGGERS = ("durabletask-worker", "WorkflowRuntime")
PROBE_ID = "meshgate-probe"
READY_SECONDS = 10.0
SIDECAR_SECONDS = 2.0  # a hung sidecar is asked again, not waited for
MAX_ACTIVITIES = 256  # deliveries under way; each waits on a thread of its own
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0


class Worker:
    """Receives activities. Start it once."""

    def __init__(
        self, *, grpc_port: int, api_token: str, activity: Callable[[object, object], Awaitable[None]]
    ) -> None:
        # Process-global in the SDK; this process talks to exactly one sidecar.
        dapr_settings.DAPR_API_TOKEN = api_token
        dapr_settings.DAPR_GRPC_PORT = grpc_port
        dapr_settings.DAPR_API_TIMEOUT_SECONDS = SIDECAR_SECONDS  # without it a question waits for ever
        for name in SDK_LOGGERS:
            logging.getLogger(name).propagate = False  # they write their lines themselves
        self._port = str(grpc_port)
        self._runtime = WorkflowRuntime(
            host="127.0.0.1",
            port=self._port,
            maximum_concurrent_activity_work_items=MAX_ACTIVITIES,
            worker_ready_timeout=READY_SECONDS,
        )
        self._runtime.register_activity(activity, name=NAME)

    def start(self, stop: threading.Event, *, patience_seconds: float) -> None:
        """Waits for the sidecar, then begins.

        A worker with a wrong token waits for ever, so a client call goes first.

        Raises:
            SidecarUnavailable: it did not answer in time, or `stop` was set.
        """
        client = DaprWorkflowClient(host="127.0.0.1", port=self._port)
        pause, waited = FIRST_PAUSE_SECONDS, 0.0
        while True:
            try:
                client.get_workflow_state(PROBE_ID, fetch_payloads=False)
                break
            except grpc.RpcError as error:
                if waited >= patience_seconds or stop.wait(pause):
                    raise SidecarUnavailable(f"the sidecar on port {self._port}: {error}") from error
            waited += pause
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        try:
            self._runtime.start()
        except (grpc.RpcError, RuntimeError) as error:
            raise SidecarUnavailable(f"the workflow worker: {error}") from error

    def close(self) -> None:
        """Stops receiving; calls under way go on until the process ends."""
        self._runtime.shutdown()
