"""Durable dispatch on Dapr: workflow `call` here, activity `invoke` in the tool host's app.

Dapr carries the call's id and nothing else; what the activity returns is not looked at.
"""

import logging
from collections.abc import Generator
from typing import Any

import grpc
from dapr.conf import settings as dapr_settings
from dapr.ext.workflow import DaprWorkflowClient, DaprWorkflowContext, WorkflowRuntime

from meshgate_gateway.errors import Unavailable

WORKFLOW = "call"
ACTIVITY = "invoke"
READY_SECONDS = 20.0

log = logging.getLogger(__name__)


def call(ctx: DaprWorkflowContext, job: dict[str, str]) -> Generator[Any, Any, None]:
    """Delivers one id to one host, at least once."""
    yield ctx.call_activity(ACTIVITY, input={"call_id": job["call_id"]}, app_id=job["host"])


class DaprRuntime:
    """The gateway's Dapr worker and client on its own sidecar."""

    def __init__(self, *, port: int, api_token: str) -> None:
        # The SDK keeps its token in one process-wide setting.
        dapr_settings.DAPR_API_TOKEN = api_token
        self._runtime = WorkflowRuntime(host="127.0.0.1", port=str(port))
        self._runtime.register_workflow(call, name=WORKFLOW)
        self._client = DaprWorkflowClient(host="127.0.0.1", port=str(port))

    def start(self) -> None:
        """Connects the worker.

        Raises:
            Unavailable: the sidecar does not answer; a wrong token would block the worker for ever,
                so it is tried with a plain read first.
        """
        try:
            self._client.get_workflow_state("meshgate-probe")
        except grpc.RpcError as error:
            raise Unavailable("dapr_unavailable", f"the gateway's sidecar: {_detail(error)}") from error
        self._runtime.start()

    def dispatch(self, call_id: str, host: str) -> None:
        """See `ToolRuntime.dispatch`. An instance that exists is left alone: it is being delivered."""
        try:
            if self._client.get_workflow_state(call_id, fetch_payloads=False) is None:
                self._client.schedule_new_workflow(
                    WORKFLOW, input={"call_id": call_id, "host": host}, instance_id=call_id
                )
        except grpc.RpcError as error:
            raise Unavailable("dapr_unavailable", _detail(error)) from error

    def close(self) -> None:
        """Stops the worker."""
        self._runtime.shutdown()
        self._client.close()


def _detail(error: grpc.RpcError) -> str:
    details = getattr(error, "details", None)
    return str(details() if callable(details) else error)[:300]
