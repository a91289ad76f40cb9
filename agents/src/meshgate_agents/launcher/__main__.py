"""`meshgate-launcher --config FILE -- COMMAND...`: runs one agent program through the gateway."""

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import uuid
from pathlib import Path

import grpc
from meshgate_identities.errors import IdentityError
from meshgate_identities.source import IdentitySource
from meshgate_identities.tls import RotatingChannel

from meshgate_agents.launcher.door import Door
from meshgate_agents.launcher.gateway import AttemptOver, GatewaySession
from meshgate_agents.launcher.program import Program, environment
from meshgate_agents.launcher.settings import Settings, load

OUR_FAILURE = 125  # as env(1) and docker(1) use it
HEARTBEAT_SECONDS = 2.0

log = logging.getLogger(__name__)


def main() -> None:
    """Exits with the program's own status, or 125 when the failure is ours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    command = [part for i, part in enumerate(arguments.command) if (i, part) != (0, "--")]
    if not command:
        parser.error("no command: write the program after `--`")
    logging.basicConfig(level=logging.WARNING, format="meshgate: %(message)s")
    try:
        status = run(load(arguments.config), command)
    except (AttemptOver, IdentityError) as error:
        say(str(error))
        status = OUR_FAILURE
    sys.stdout.flush()
    os._exit(status)  # a gRPC thread must not hold the exit


def say(message: str) -> None:
    """One line for the person at the terminal."""
    print(f"meshgate: {message}", file=sys.stderr, flush=True)  # noqa: T201 - the launcher's interface


def run(settings: Settings, command: list[str]) -> int:
    """One run, one attempt.

    Raises:
        AttemptOver: the gateway would not start it.
        IdentityError: this process has no SVID.
    """
    source = IdentitySource(socket_path=settings.workload_api)
    source.start()
    channel = RotatingChannel(
        source=source, target=settings.gateway_target, server_name=settings.gateway_name
    )
    run_id = settings.run_id or str(uuid.uuid4())
    session = GatewaySession(
        channel=lambda: channel.channel, run_id=run_id, step_seconds=settings.step_deadline_seconds
    )
    session.start(uuid.uuid4().hex)
    folder = Path(tempfile.mkdtemp(prefix="l", dir=settings.socket_dir))
    try:
        return _attempt(settings, command, session, folder / "s")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        source.close()


def _attempt(settings: Settings, command: list[str], session: GatewaySession, socket_path: Path) -> int:
    over: list[str] = []
    program: Program | None = None

    def end(reason: str) -> None:
        over.append(reason)
        if program is not None:
            program.kill()

    door = Door(path=socket_path, tools=settings.tools, session=session, on_over=end)
    door.start()
    env, ours = environment(settings.environment, socket_path=socket_path, project_root=settings.project_root)
    shown = " ".join(f"{name}={value}" for name, value in sorted(ours.items()))
    say(f"run {session.run_id} as {settings.app}, attempt {session.attempt}; sets {shown}")
    try:
        program = Program(argv=command, env=env, cwd=settings.project_root)
    except OSError as error:
        session.finish("failed", f"cannot start {command[0]}: {error}")
        say(f"cannot start {command[0]}: {error}")
        return OUR_FAILURE
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda caught, _frame: program.signal(caught))
    stop = threading.Event()
    threading.Thread(target=_heartbeats, args=(session, stop), daemon=True).start()
    status = program.wait()
    stop.set()
    program.end_descendants()
    door.close()
    return _conclude(settings, session, status, over, reported=door.reported.is_set())


def _conclude(
    settings: Settings, session: GatewaySession, status: int, over: list[str], *, reported: bool
) -> int:
    if over:
        session.finish("failed", over[0])
        say(f"the run failed: {over[0]}")
        return OUR_FAILURE
    if settings.expects_report and not reported:
        detail = (
            f"the program ended with {status} and no process of it imported CrewAI under meshgate; "
            "the manifest names a crew, so its tools may have run unseen"
        )
        session.finish("failed", detail)
        say(detail)
        return OUR_FAILURE
    session.finish("completed" if status == 0 else "failed", f"exit status {status}")
    return status


def _heartbeats(session: GatewaySession, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        try:
            session.heartbeat()
        except grpc.RpcError as error:
            log.warning("heartbeat not heard: %s", error.code().name)


if __name__ == "__main__":
    main()
