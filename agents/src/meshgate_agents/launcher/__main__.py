"""`python -m meshgate_agents.launcher --config FILE -- COMMAND…`: runs a program as an agent app.

Standard streams are inherited. The exit status is the program's own, 125 for a failure of ours.
"""

import argparse
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from meshgate_agents.launcher import environment, peers
from meshgate_agents.launcher.errors import AttemptEnded, GatewayUnavailable, LauncherError
from meshgate_agents.launcher.gateway import Gateway, GrpcGateway
from meshgate_agents.launcher.session import Attempt, Session
from meshgate_agents.launcher.settings import Settings, load
from meshgate_agents.launcher.supervise import Ending, Supervisor
from meshgate_agents.launcher.tools import ToolMap

if TYPE_CHECKING:
    from collections.abc import Iterator

FAILED = 125  # exit status of a failure of ours, as env(1) and docker(1) use it
IDENTITY_SECONDS = 15.0
FINISH_SECONDS = 10.0
HEARTBEAT_SECONDS = 5.0
ENDED_STATES = ("cancelling", "cancelled", "failed", "completed")

Connect = Callable[[Settings], AbstractContextManager[Gateway]]
T = TypeVar("T")


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:], connect=connect))


def run(arguments: Sequence[str], *, connect: Connect) -> int:
    """Runs the launcher with a way to reach the gateway.

    Args:
        arguments: the command line without the program's name.
        connect: how to reach the gateway; tests give an unsafe one.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="meshgate-launcher", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    parsed = parser.parse_args(arguments)
    command = parsed.command[1:] if parsed.command[:1] == ["--"] else parsed.command
    if not command:
        parser.error("no command after --")
    try:
        settings = load(parsed.config)
        peers.become_subreaper()
        with connect(settings) as gateway:
            return Launch(settings=settings, gateway=gateway, command=command).run()
    except (LauncherError, OSError) as error:
        say(str(error))
        return FAILED


@contextmanager
def connect(settings: Settings) -> "Iterator[Gateway]":
    """The real way: our SVID from the Workload API, mTLS to the gateway."""
    from meshgate_identities.errors import IdentityUnavailable
    from meshgate_identities.source import IdentitySource
    from meshgate_identities.tls import RotatingChannel

    source = IdentitySource(socket_path=settings.workload_api)
    try:
        snapshot = source.start(IDENTITY_SECONDS)
    except IdentityUnavailable as error:
        raise LauncherError(f"no identity for app {settings.app!r}: {error}") from error
    if str(snapshot.spiffe_id) != settings.spiffe_id:
        source.close()
        raise LauncherError(
            f"this process is {snapshot.spiffe_id}, but the config is of {settings.spiffe_id}"
        )
    channel = RotatingChannel(
        source=source, target=settings.gateway.target, server_name=settings.gateway.server_name
    )
    try:
        yield GrpcGateway(channel=lambda: channel.channel)
    finally:
        channel.close()
        source.close()


class Launch:
    """One program, one run, one attempt."""

    def __init__(self, *, settings: Settings, gateway: Gateway, command: Sequence[str]) -> None:
        self._settings, self._gateway, self._command = settings, gateway, command
        self._supervisor = Supervisor()
        self._over = threading.Event()

    def run(self) -> int:
        """Start the run, the socket, the child; wait; end the run.

        Raises:
            LauncherError: the program was not started.
        """
        attempt = self._start()
        session = Session(
            gateway=self._gateway,
            tools=ToolMap(entries=self._settings.tools),
            attempt=attempt,
            unavailable_seconds=self._settings.step_deadline_seconds,
            on_end=self._supervisor.end,
            note=say,
        )
        threading.Thread(target=self._heartbeat, args=(attempt, session), daemon=True).start()
        try:
            ending = self._child(session)
        except LauncherError as error:
            self._finish(attempt, "failed", str(error))
            raise
        finally:
            self._over.set()
            session.close()
        return self._verdict(attempt, ending, session.reports)

    def _child(self, session: Session) -> Ending:
        socket_path = session.listen(self._settings.socket_dir)
        ours = environment.switches(settings=self._settings, socket_path=socket_path)
        say(environment.notice(ours))
        return self._supervisor.run(command=self._command, env={**self._settings.env, **ours})

    def _start(self) -> Attempt:
        run_id = self._settings.run_id or uuid7()
        given = json.dumps({"app": self._settings.app, "command": list(self._command)}).encode()
        instance = secrets.token_hex(16)
        number = self._until_available(
            lambda: self._gateway.start(run_id=run_id, input_json=given, launcher_instance=instance),
            self._settings.step_deadline_seconds,
        )
        say(f"run {run_id}, attempt {number}, as {self._settings.spiffe_id}")
        return Attempt(run_id, number)

    def _heartbeat(self, attempt: Attempt, session: Session) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            try:
                state = self._gateway.heartbeat(
                    run_id=attempt.run_id, attempt=attempt.number, steps=session.steps
                )
            except GatewayUnavailable:
                continue  # no verdict; the next step finds out for itself
            except AttemptEnded as error:
                self._supervisor.end(str(error))
                return
            if state in ENDED_STATES and not self._over.is_set():
                self._supervisor.end(f"run {attempt.run_id} is {state}")
                return

    def _verdict(self, attempt: Attempt, ending: Ending, reports: int) -> int:
        if ending.fatal:
            return self._failed(attempt, ending.fatal)
        if ending.cancelled:
            self._finish(attempt, "cancelled", f"cancelled by a signal, exit status {ending.status}")
            return ending.status
        if self._settings.expects_report and not reports:
            return self._failed(
                attempt,
                f"the program ended with status {ending.status} and no process of it imported CrewAI under "
                f"meshgate, though the manifest names a {self._settings.kind}; a program started with "
                "python -I, -E or -S, or with an emptied environment, cannot be brokered",
            )
        state = "completed" if ending.status == 0 else "failed"
        finished = self._finish(attempt, state, f"exit status {ending.status}")
        return ending.status if finished or ending.status else FAILED

    def _failed(self, attempt: Attempt, reason: str) -> int:
        say(f"run {attempt.run_id} failed: {reason}")
        self._finish(attempt, "failed", reason)
        return FAILED

    def _finish(self, attempt: Attempt, state: str, detail: str) -> bool:
        try:
            self._until_available(
                lambda: self._gateway.finish(
                    run_id=attempt.run_id, attempt=attempt.number, state=state, detail=detail
                ),
                FINISH_SECONDS,
            )
        except LauncherError as error:
            say(f"the end of run {attempt.run_id} ({state}) could not be recorded: {error}")
            return False
        return True

    @staticmethod
    def _until_available(ask: Callable[[], T], seconds: float) -> T:
        """Asks again while no verdict comes."""
        give_up_at, pause = time.monotonic() + seconds, 0.05
        while True:
            try:
                return ask()
            except GatewayUnavailable as error:
                if time.monotonic() + pause > give_up_at:
                    raise LauncherError(
                        f"the gateway gave no answer within {seconds:g} s ({error}); is the mesh up? "
                        "see `meshgate ps`"
                    ) from error
            time.sleep(pause)
            pause = min(pause * 2, 1.0)


def uuid7() -> str:
    """A UUIDv7 (RFC 9562 §5.7): sorts by time."""
    value = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))
    value[6] = 0x70 | value[6] & 0x0F
    value[8] = 0x80 | value[8] & 0x3F
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def say(text: str) -> None:
    """One line for people, in one write."""
    os.write(2, f"meshgate: {text}\n".encode("utf-8", "replace"))


if __name__ == "__main__":
    main()
