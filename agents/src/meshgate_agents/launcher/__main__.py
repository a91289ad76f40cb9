"""`python -m meshgate_agents.launcher --config FILE -- COMMAND…`: runs a program as an agent app.

Standard streams are inherited. The exit status is the program's own, 125 for a failure of ours.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from meshgate_agents.launcher import peers
from meshgate_agents.launcher.errors import LauncherError
from meshgate_agents.launcher.gateway import Gateway, GrpcGateway
from meshgate_agents.launcher.launch import FAILED, Launch, say
from meshgate_agents.launcher.replay import Replay
from meshgate_agents.launcher.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import Iterator

IDENTITY_SECONDS = 15.0

Connect = Callable[[Settings], AbstractContextManager[Gateway]]


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
            kind = Replay if settings.replay else Launch
            return kind(settings=settings, gateway=gateway, command=command).run()
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


if __name__ == "__main__":
    main()
