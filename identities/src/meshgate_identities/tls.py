"""gRPC credentials from an identity source. The SPIFFE check itself is `verification`'s."""

import threading
from collections.abc import Sequence
from typing import Any

import grpc

from meshgate_identities.errors import IdentityUnavailable
from meshgate_identities.source import IdentitySnapshot, IdentitySource

DRAIN_SECONDS = 30.0  # an old channel lives this long after a rotation, for calls under way

# gRPC's own are 1 s and 120 s: a gateway that is back after a second would wait for its callers.
FIRST_RECONNECT_MS = 100
LONGEST_RECONNECT_MS = 250

ChannelOptions = Sequence[tuple[str, Any]]


def gateway_dns_name(*, trust_domain: str, mesh: str) -> str:
    """The DNS SAN that the authority gives to the gateway and to nobody else."""
    return f"gateway.{mesh}.{trust_domain}"


def server_credentials(source: IdentitySource) -> grpc.ServerCredentials:
    """Requires a client certificate under any trusted bundle; rotates at each handshake.

    Raises:
        IdentityUnavailable: there is no SVID to begin with.
    """

    def configuration() -> Any:
        snapshot = source.snapshot()
        roots = b"".join(snapshot.bundle_pem(domain) for domain in sorted(snapshot.bundles))
        return grpc.ssl_server_certificate_configuration(
            [(snapshot.key_pem, snapshot.chain_pem)], root_certificates=roots
        )

    return grpc.dynamic_ssl_server_credentials(
        configuration(), configuration, require_client_authentication=True
    )


def secure_channel(
    *, source: IdentitySource, target: str, server_name: str, options: ChannelOptions = ()
) -> grpc.Channel:
    """A channel that shows our SVID and accepts only `server_name` under our own trust domain.

    Raises:
        IdentityUnavailable: there is no SVID.
    """
    return _channel(source.snapshot(), target, server_name, options)


def _channel(
    snapshot: IdentitySnapshot, target: str, server_name: str, options: ChannelOptions
) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        root_certificates=snapshot.bundle_pem(snapshot.spiffe_id.trust_domain),
        private_key=snapshot.key_pem,
        certificate_chain=snapshot.chain_pem,
    )
    fixed: list[tuple[str, Any]] = [
        ("grpc.ssl_target_name_override", server_name),
        # A pool of its own, else a new channel would ride on an old channel's connection.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", FIRST_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", LONGEST_RECONNECT_MS),
    ]
    return grpc.secure_channel(target, credentials, options=[*fixed, *options])


class RotatingChannel:
    """A channel that is opened anew when our SVID rotates; the old one drains, then closes."""

    def __init__(
        self, *, source: IdentitySource, target: str, server_name: str, options: ChannelOptions = ()
    ) -> None:
        self._target, self._server_name, self._options = target, server_name, options
        self._lock = threading.Lock()
        self._closed = False
        self._draining: dict[grpc.Channel, threading.Timer] = {}
        with self._lock:  # a rotation that comes meanwhile waits for the first channel
            self._unsubscribe = source.subscribe(self._rotate)
            try:
                self._channel = secure_channel(
                    source=source, target=target, server_name=server_name, options=options
                )
            except IdentityUnavailable:
                self._unsubscribe()
                raise

    @property
    def channel(self) -> grpc.Channel:
        """The channel to use for the next call; do not keep it."""
        return self._channel

    def close(self) -> None:
        """Closes all channels, draining ones too; rotations after this open none."""
        self._unsubscribe()
        with self._lock:
            self._closed = True
            draining, self._draining = self._draining, {}
        for old, timer in draining.items():
            timer.cancel()
            old.close()
        self._channel.close()

    def _rotate(self, snapshot: IdentitySnapshot) -> None:
        with self._lock:
            if self._closed:
                return
            old = self._channel
            self._channel = _channel(snapshot, self._target, self._server_name, self._options)
            timer = threading.Timer(DRAIN_SECONDS, self._drained, [old])
            timer.daemon = True
            self._draining[old] = timer
        timer.start()

    def _drained(self, old: grpc.Channel) -> None:
        with self._lock:
            self._draining.pop(old, None)
        old.close()
