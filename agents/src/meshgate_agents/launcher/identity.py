"""The way to the gateway: our own SVID from the Workload API, mTLS."""

from collections.abc import Iterator
from contextlib import contextmanager

from meshgate_agents.launcher.errors import LauncherError
from meshgate_agents.launcher.gateway import Gateway, GrpcGateway
from meshgate_agents.launcher.settings import Settings

IDENTITY_SECONDS = 15.0


@contextmanager
def connect(settings: Settings) -> Iterator[Gateway]:
    """The gateway, for as long as the block lasts.

    Raises:
        LauncherError: this process has no identity, or another one than the config says.
    """
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
