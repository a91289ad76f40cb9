"""A Dapr worker of an agent's app that does something when it is told to: it writes a line.

Arguments: gRPC port of its sidecar, the file. It starts one workflow `victim` that waits for an
event, says `ready` and ends when its stdin ends.
"""

import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from dapr.ext.workflow import (
    DaprWorkflowClient,
    DaprWorkflowContext,
    WorkflowActivityContext,
    WorkflowRuntime,
)


def main() -> None:
    port, effects = sys.argv[1], Path(sys.argv[2])

    def effect(what: str) -> None:
        with effects.open("a") as file:
            file.write(f"victim {what}\n")

    def run(context: DaprWorkflowContext, given: Any) -> Generator[Any, Any, None]:
        if given != "wait":
            effect("workflow")
        yield context.wait_for_external_event("forged")
        effect("event")

    def start_run(context: WorkflowActivityContext, given: Any) -> None:
        effect("activity")

    runtime = WorkflowRuntime(host="127.0.0.1", port=port)
    runtime.register_workflow(run, name="run")
    runtime.register_activity(start_run, name="start_run")
    runtime.start()
    client = DaprWorkflowClient(host="127.0.0.1", port=port)
    client.schedule_new_workflow("run", input="wait", instance_id="victim")
    while client.get_workflow_state("victim", fetch_payloads=False).runtime_status.name != "RUNNING":
        time.sleep(0.05)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    runtime.shutdown()


if __name__ == "__main__":
    main()
