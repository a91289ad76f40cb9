"""`meshgate-toolhost --config FILE`: loads tools, says what they are, serves deliveries until SIGTERM."""

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dapr.conf import settings as dapr_settings
from dapr.ext.workflow import WorkflowActivityContext, WorkflowRuntime
from meshgate_identities.source import IdentitySource
from meshgate_identities.tls import RotatingChannel
from meshgate_wire import broker_pb2_grpc as rpc

from meshgate_toolhost import loader
from meshgate_toolhost.definitions import definitions
from meshgate_toolhost.finished import Finished
from meshgate_toolhost.invoke import Invoker
from meshgate_toolhost.settings import Settings, load

ACTIVITY = "invoke"
DELIVERIES = 64  # at once; each waits for a tool


def main() -> None:
    """Starts one tool host; a tool that cannot be loaded ends the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    settings = load(parser.parse_args().config)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    tools = _load_tools(settings)
    source = IdentitySource(socket_path=settings.workload_api)
    source.start()
    channel = RotatingChannel(
        source=source, target=settings.gateway_target, server_name=settings.gateway_name
    )
    invoker = Invoker(
        stub=lambda: rpc.BrokerStub(channel.channel),
        tools=tools,
        finished=Finished(settings.finished_db),
        max_result_bytes=settings.max_result_bytes,
    )
    threading.Thread(target=invoker.resend, name="resend", daemon=True).start()
    runtime = _serve(settings, invoker)
    settings.ready_file.write_text(f"{os.getpid()}\n")
    stop.wait()
    runtime.shutdown()
    os._exit(0)  # a tool that hangs past its deadline must not hold the process


def _load_tools(settings: Settings) -> Mapping[str, loader.LoadedTool]:
    os.environ["MESHGATE_PROJECT_ROOT"] = str(settings.project_root)
    for folder in (settings.project_root / "src", settings.project_root):
        if folder.is_dir():
            sys.path.insert(0, str(folder))
    loaded = [loader.load(settings.app, entry, settings.project_root) for entry in settings.tools]
    tools = {tool.id: tool for tool in loaded}
    if len(tools) != len(loaded):
        raise SystemExit(f"toolhost {settings.app}: two entries have the same tool id; give one a `name:`")
    if settings.cwd:
        os.chdir(settings.cwd)
    temporary = settings.definitions_file.with_suffix(".part")
    temporary.write_text(json.dumps(definitions(loaded)))
    temporary.replace(settings.definitions_file)
    return tools


def _serve(settings: Settings, invoker: Invoker) -> WorkflowRuntime:
    # The SDK keeps its token in one process-wide setting.
    dapr_settings.DAPR_API_TOKEN = settings.dapr_token_file.read_text().strip()
    runtime = WorkflowRuntime(host="127.0.0.1", port=str(settings.dapr_grpc_port))
    pool = ThreadPoolExecutor(DELIVERIES, thread_name_prefix="delivery")

    async def invoke(_context: WorkflowActivityContext, job: Any) -> None:
        call_id = job.get("call_id") if isinstance(job, dict) else None
        if isinstance(call_id, str):
            await asyncio.get_running_loop().run_in_executor(pool, invoker.invoke, call_id)

    runtime.register_activity(invoke, name=ACTIVITY)
    runtime.start()
    return runtime


if __name__ == "__main__":
    main()
