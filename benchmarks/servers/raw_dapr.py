"""Plain Dapr workers for `rows.delegation`: what one delegation costs where nothing of ours is.

`caller` has a workflow with one activity in the other app. `callee` has that activity: it starts a workflow
of its own with one activity that does nothing, waits for it, and returns. The caller reads a line per call,
and answers with milliseconds from scheduling until it is known to be over.
"""

import argparse
import asyncio
import logging
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from dapr.conf import settings as dapr_settings
from dapr.ext.workflow import DaprWorkflowClient, WorkflowRuntime
from dapr.ext.workflow.logger import LoggerOptions

# Those that the access policies of a mesh know.
CALLER, CALLEE = "gateway", "clerk"
START, START_RUN, RUN, EXECUTE = "start", "start_run", "run", "execute"
SECONDS = 30


def main() -> None:
    """Serves until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=(CALLER, CALLEE))
    parser.add_argument("--port", required=True)
    parser.add_argument("--token-file", type=Path, required=True)
    given = parser.parse_args()
    dapr_settings.DAPR_API_TOKEN = given.token_file.read_text().strip()
    quiet = LoggerOptions(log_level="ERROR", log_handler=logging.NullHandler())
    client = DaprWorkflowClient(host="127.0.0.1", port=given.port, logger_options=quiet)
    client.get_workflow_state("probe")  # a worker with a wrong token waits for ever
    runtime = WorkflowRuntime(host="127.0.0.1", port=given.port, logger_options=quiet)
    register(runtime, client, given.role)
    runtime.start()
    print("ready", flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        whole(client, START)
        print((time.perf_counter() - begun) * 1000, flush=True)
    runtime.shutdown()


def register(runtime: WorkflowRuntime, client: DaprWorkflowClient, role: str) -> None:
    """What a role serves."""

    def start(context: Any, _given: Any) -> Any:
        yield context.call_activity(START_RUN, input={}, app_id=CALLEE)

    def run(context: Any, _given: Any) -> Any:
        yield context.call_activity(EXECUTE, input={})

    async def start_run(_context: object, _given: object) -> str:
        return await asyncio.to_thread(whole, client, RUN)

    async def execute(_context: object, _given: object) -> str:
        return "done"

    if role == CALLER:
        runtime.register_workflow(start, name=START)
    else:
        runtime.register_workflow(run, name=RUN)
        runtime.register_activity(start_run, name=START_RUN)
        runtime.register_activity(execute, name=EXECUTE)


def whole(client: DaprWorkflowClient, workflow: str) -> str:
    """One instance, from its start until its end is known.

    Raises:
        RuntimeError: it did not end as it must.
    """
    instance = str(client.schedule_new_workflow(workflow, input={}, instance_id=f"raw-{uuid.uuid4().hex}"))
    state = client.wait_for_workflow_completion(instance, timeout_in_seconds=SECONDS)
    if state is None or state.runtime_status.name != "COMPLETED":
        raise RuntimeError(f"{workflow} ended as {state}")
    return instance


if __name__ == "__main__":
    main()
