"""Starts a gateway from one configuration file. Bad configuration ends it before a port opens."""

import argparse
import logging
import os
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from meshgate_identities.errors import IdentityUnavailable
from meshgate_identities.hardening import refuse_inspection
from meshgate_identities.source import IdentitySource
from meshgate_identities.tls import server_credentials
from meshgate_identities.verification import PeerVerifier

from meshgate_gateway import catalogue, settings
from meshgate_gateway.adapters.dapr_runtime import DaprRuntime
from meshgate_gateway.adapters.opa import open_policy
from meshgate_gateway.authenticate import Mesh
from meshgate_gateway.compose import Gateway, Parts
from meshgate_gateway.errors import ConfigurationError, Unavailable
from meshgate_gateway.payloads import load_key
from meshgate_gateway.policy import PolicySlot
from meshgate_gateway.settings import Settings, StoreSettings
from meshgate_gateway.store import Store

IDENTITY_SECONDS = 30.0  # the Workload API answers in milliseconds; then the process gives up
READY_POLL_SECONDS = 0.02

_log = logging.getLogger("meshgate_gateway")


def main(argv: list[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT; 0 after a clean stop, 1 when it could not start."""
    parser = argparse.ArgumentParser(prog="meshgate-gateway", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    chosen = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for chatty in ("durabletask-worker", "durabletask-client", "WorkflowRuntime", "DaprWorkflowClient"):
        # Two lines per call and one per probe; what fails comes to us as an exception.
        logging.getLogger(chatty).setLevel(logging.CRITICAL)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    refuse_inspection()
    try:
        _run(settings.load(chosen.config), stop)
    except (ConfigurationError, IdentityUnavailable, Unavailable) as error:
        _log.error("the gateway cannot start: %s", error)
        return 1
    return 0


def _run(config: Settings, stop: threading.Event) -> None:
    tools = catalogue.parse(_read(config.catalogue))
    key = load_key(config.payload_key_file)
    token = settings.read_token(config.dapr.api_token_file)
    active = open_policy(config.opa)
    store = _open(config.store)
    source = IdentitySource(socket_path=config.workload_api)
    source.start(IDENTITY_SECONDS)
    runtime = DaprRuntime(grpc_port=config.dapr.grpc_port, api_token=token)
    parts = Parts(
        store=store,
        policy=PolicySlot(active=active),
        runtime=runtime,
        verifier=PeerVerifier(bundles=lambda: source.snapshot().bundles, clock=lambda: datetime.now(UTC)),
        now_ms=lambda: time.time_ns() // 1_000_000,
        open_policy=open_policy,
    )
    gateway = Gateway(
        parts=parts,
        mesh=Mesh(config.mesh, config.trust_domain, config.operators, tools),
        payload_key=key,
        listen=config.listen,
        credentials=server_credentials(source),
        threads=config.threads,
        probes={
            "runtime_unavailable": runtime.probe,
            "identity_unavailable": lambda: _identity(source),
        },
    )
    gateway.start()
    try:
        _serve(gateway, config.ready_file, stop)
    finally:
        gateway.stop()
        runtime.close()
        source.close()
        store.close()


def _open(place: StoreSettings) -> Store:
    if place.sqlite is None:
        from meshgate_gateway.adapters.postgres_store import (
            PostgresStore,  # a gateway on a file needs none of it
        )

        return PostgresStore(url=place.postgresql)
    from meshgate_gateway.adapters.sqlite_store import SqliteStore

    return SqliteStore(path=place.sqlite)


def _identity(source: IdentitySource) -> None:
    try:
        source.snapshot()
    except IdentityUnavailable as error:
        raise Unavailable("identity_unavailable", detail=str(error)) from error


def _serve(gateway: Gateway, ready_file: Path, stop: threading.Event) -> None:
    while gateway.health.reasons and not stop.wait(READY_POLL_SECONDS):
        pass
    if not stop.is_set():
        _announce(ready_file, gateway.server.port)
        _log.info("ready")
    stop.wait()
    ready_file.unlink(missing_ok=True)


def _announce(ready_file: Path, port: int) -> None:
    temporary = ready_file.with_suffix(f".{os.getpid()}")
    temporary.touch(mode=0o600)
    temporary.write_text(f'{{"port": {port}}}\n', encoding="ascii")
    temporary.replace(ready_file)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
