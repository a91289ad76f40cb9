"""FAKE, UNSAFE: the real launcher with a channel that proves nobody's identity. Tests only."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from meshgate_agents.launcher.__main__ import run
from meshgate_agents.launcher.gateway import Gateway, GrpcGateway
from meshgate_agents.launcher.settings import Settings


@contextmanager
def unsafe_insecure(settings: Settings) -> Iterator[Gateway]:
    """Plain text to the fake gateway."""
    warnings.warn("unsafe_insecure: no TLS, no identity", stacklevel=2)
    with grpc.insecure_channel(settings.gateway.target) as channel:
        yield GrpcGateway(channel=lambda: channel)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], connect=unsafe_insecure))
