"""Starts a tool host from one configuration file. Bad configuration ends it before a port opens.

    meshgate-toolhost --config FILE [--describe]

`--describe` writes the definitions file and ends: what a scan or a build asks for.
"""

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from meshgate_toolhost import definitions, loader, reconcile, settings
from meshgate_toolhost.errors import LedgerUnavailable, SettingsInvalid, SidecarUnavailable, ToolNotLoadable
from meshgate_toolhost.model import LoadedTool
from meshgate_toolhost.settings import Settings

SIDECAR_SECONDS = 60.0  # daprd may start after us

# Read when CrewAI is imported; what the manifest names for this host comes first.
QUIET = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_DISABLE_TRACKING": "true",
    "CREWAI_DISABLE_VERSION_CHECK": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "PYTHON_DOTENV_DISABLED": "1",
}

_log = logging.getLogger("meshgate_toolhost")


class _Lines(logging.Formatter):
    """A constant message, then the record's own fields."""

    _PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        fields = {key: value for key, value in vars(record).items() if key not in self._PLAIN}
        line = super().format(record)
        return f"{line} {json.dumps(fields, default=str)}" if fields else line


def serve(argv: list[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT; 0 after a clean stop, 1 when it could not start."""
    parser = argparse.ArgumentParser(prog="meshgate-toolhost", description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--describe", action="store_true", help="write the definitions and end")
    chosen = parser.parse_args(argv)
    _configure_logging()
    stop = threading.Event()
    try:
        config = settings.load(chosen.config)
        settings.refuse_interception()
        with ExitStack() as stack:
            tools = load_tools(config, stack)
            definitions.write(config.definitions_file, tools)
            if not chosen.describe:
                # After the tools: importing CrewAI may install handlers of its own.
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, lambda *_: stop.set())
                _run(config, tools, stop)
    except (SettingsInvalid, ToolNotLoadable, LedgerUnavailable, SidecarUnavailable) as error:
        if stop.is_set():
            return 0
        _log.error("the tool host cannot start: %s", error)
        return 1
    return 0


def load_tools(config: Settings, stack: ExitStack) -> Mapping[str, LoadedTool]:
    """Loads the host's tools, in the folder where they will run.

    Raises:
        ToolNotLoadable: an entry gives no tool.
    """
    for folder in (config.project_root / "src", config.project_root):
        if folder.is_dir() and str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.chdir(config.working_folder)
    tools = loader.load_all(
        host=config.app, written=config.tools, project_root=config.project_root, withheld=config.withheld
    )
    if config.mcp is not None:
        from meshgate_toolhost import mcp_server

        tools = {**tools, **mcp_server.load(host=config.app, command=config.mcp.command, stack=stack)}
    named = {name: one.reconcile for name, one in config.tool_overrides.items() if one.reconcile}
    return reconcile.load(tools, named, project_root=config.project_root)


def _run(config: Settings, tools: Mapping[str, LoadedTool], stop: threading.Event) -> None:
    from meshgate_toolhost.host import Host

    config.ready_file.unlink(missing_ok=True)
    host = Host.connect(config, tools)
    left = host.start(stop, patience_seconds=SIDECAR_SECONDS)
    definitions.write_private(config.ready_file, "ready\n")
    _log.info("serving", extra={"tools": sorted(tools), "undelivered": left})
    stop.wait()
    config.ready_file.unlink(missing_ok=True)
    host.close()


def _configure_logging() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def main() -> None:
    """`serve`, then the process ends at once: a tool that hangs, or left a thread, cannot hold it."""
    status = serve()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
