"""`meshgate-gateway --config FILE`: composes the gateway and serves until SIGTERM."""

import argparse
import logging
import os
import secrets
import signal
import threading
from importlib.metadata import version
from pathlib import Path

from meshgate_identities.source import IdentitySource
from meshgate_identities.tls import server_credentials
from meshgate_policies.engine import OpaEngine

from meshgate_gateway import catalogue
from meshgate_gateway.adapters.dapr_runtime import DaprRuntime
from meshgate_gateway.adapters.sqlite_store import SqliteStore
from meshgate_gateway.broker import ActivePolicy
from meshgate_gateway.compose import Gateway, Mesh, Parts
from meshgate_gateway.settings import Settings, load

PAYLOAD_KEY_BYTES = 32  # AES-256


def main() -> None:
    """Starts one gateway; any missing part ends the process before the port opens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    settings = load(parser.parse_args().config)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    source = IdentitySource(socket_path=settings.workload_api)
    source.start()
    runtime = DaprRuntime(port=settings.dapr_grpc_port, api_token=_text(settings.dapr_token_file))
    gateway = _compose(settings, source, runtime)
    if gateway.server.add_secure_port(settings.listen, server_credentials(source)) == 0:
        raise SystemExit(f"cannot listen on {settings.listen}")
    runtime.start()
    gateway.start()
    settings.ready_file.write_text(f"{os.getpid()}\n")
    stop.wait()
    gateway.close()
    runtime.close()
    source.close()


def _compose(settings: Settings, source: IdentitySource, runtime: DaprRuntime) -> Gateway:
    engine = OpaEngine(socket_path=settings.opa_socket, token=_text(settings.opa_token_file))
    parts = Parts(
        store=SqliteStore(settings.database),
        payload_key=_payload_key(settings.payload_key_file),
        policy=ActivePolicy(engine, settings.policy_revision, settings.policy_sha256),
        runtime=runtime,
        bundles=lambda: source.snapshot().bundles,
        version=version("meshgate"),
    )
    mesh = Mesh(
        settings.mesh,
        settings.trust_domain,
        catalogue.load(settings.catalogue),
        frozenset(settings.operators),
    )
    return Gateway(mesh=mesh, parts=parts)


def _payload_key(path: Path) -> bytes:
    """The key of the payloads, made on first use (0600) and kept outside the store."""
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(PAYLOAD_KEY_BYTES))
            os.fsync(file.fileno())
    key = path.read_bytes()
    if len(key) != PAYLOAD_KEY_BYTES:
        raise SystemExit(f"{path} is not a {PAYLOAD_KEY_BYTES}-byte key")
    return key


def _text(path: Path) -> str:
    return path.read_text().strip()


if __name__ == "__main__":
    main()
