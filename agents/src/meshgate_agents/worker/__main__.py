"""`python -m meshgate_agents.worker --config FILE`: takes an app's runs and plays them until told to end.

Standard output and error of the programs are this process's own, the app's log, or those of the terminal
at which a run was asked for.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from meshgate_identities.hardening import refuse_inspection

from meshgate_agents.launcher import budget, inputs, peers
from meshgate_agents.launcher.announcing import Announcement
from meshgate_agents.launcher.children import Children
from meshgate_agents.launcher.errors import LauncherError
from meshgate_agents.launcher.forks import Forks
from meshgate_agents.launcher.identity import connect
from meshgate_agents.launcher.saying import say
from meshgate_agents.worker import settings
from meshgate_agents.worker.plays import Plays
from meshgate_agents.worker.settings import Settings
from meshgate_agents.worker.sidecar import Sidecar

SDK_LOGGERS = ("durabletask-worker", "durabletask-client", "WorkflowRuntime", "DaprWorkflowClient")


def main() -> None:
    """The console script. Ends at once when told: what is under way goes on in the next process."""
    parser = argparse.ArgumentParser(prog="meshgate-worker", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    chosen = parser.parse_args(sys.argv[1:])
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for chatty in SDK_LOGGERS:
        logging.getLogger(chatty).setLevel(logging.CRITICAL)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    status = 0
    try:
        _serve(settings.load(chosen.config), stop)
    except (LauncherError, OSError) as error:
        if not stop.is_set():
            say(f"the worker cannot start: {error}")
            status = 1
    sys.stdout.flush()
    os._exit(status)  # threads of runs wait for ever; Dapr hands their runs to the next worker


def _serve(config: Settings, stop: threading.Event) -> None:
    refuse_inspection()
    budget.raise_descriptors()
    token = settings.read_token(config.api_token_file)
    peers.become_subreaper()
    inputs.sweep(config.play.socket_dir)
    children, announcement = Children(Forks(config.play.fork_servers, say)), Announcement(config.ready_file)
    with connect(config.play) as gateway:
        plays = Plays(
            settings=config.play,
            runs_at_once=config.runs_at_once,
            command=config.command,
            gateway=gateway,
            children=children,
            announcement=announcement,
            terminals=config.terminals,
        )
        sidecar = Sidecar(grpc_port=config.grpc_port, api_token=token)
        sidecar.serve(plays, stop)
        announcement.open()
        stop.wait()
        announcement.close()
        plays.stop()
        children.end()


if __name__ == "__main__":
    main()
