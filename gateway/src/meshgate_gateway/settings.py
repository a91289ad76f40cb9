"""The gateway's configuration, read once from one file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meshgate_gateway.errors import ConfigurationError
from meshgate_gateway.policy import PolicyPlace

DEFAULT_THREADS = 32  # half of them may wait for outcomes


@dataclass(frozen=True, slots=True)
class DaprSettings:
    """The gateway's own sidecar."""

    grpc_port: int
    api_token_file: Path


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where the store is: a file, or a database by a URL without a password."""

    sqlite: Path | None = None
    postgresql: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a gateway needs to start."""

    mesh: str
    trust_domain: str
    listen: str
    workload_api: str
    store: StoreSettings
    payload_key_file: Path
    opa: PolicyPlace
    dapr: DaprSettings
    catalogue: Path
    operators: frozenset[str]
    ready_file: Path
    threads: int


def load(path: Path) -> Settings:
    """Reads the configuration.

    Raises:
        ConfigurationError: names the missing key.
    """
    try:
        raw = json.loads(path.read_bytes())
        return Settings(
            mesh=str(raw["mesh"]),
            trust_domain=str(raw["trust_domain"]),
            listen=str(raw["listen"]),
            workload_api=str(raw["workload_api"]),
            store=_store(raw["store"]),
            payload_key_file=Path(raw["payload_key_file"]),
            opa=PolicyPlace(**{name: str(raw["opa"][name]) for name in PolicyPlace.__slots__}),
            dapr=DaprSettings(int(raw["dapr"]["grpc_port"]), Path(raw["dapr"]["api_token_file"])),
            catalogue=Path(raw["catalogue"]),
            operators=frozenset(map(str, raw.get("operators", ()))),
            ready_file=Path(raw["ready_file"]),
            threads=int(raw.get("threads", DEFAULT_THREADS)),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path}: {error!r}") from error


def _store(raw: Mapping[str, object]) -> StoreSettings:
    if "postgresql" in raw:
        return StoreSettings(postgresql=str(raw["postgresql"]))
    return StoreSettings(sqlite=Path(str(raw["sqlite"])))


def read_token(path: Path) -> str:
    """A token from its file.

    Raises:
        ConfigurationError: missing or empty.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the token {path} cannot be read") from error
    if not token:
        raise ConfigurationError(f"the token {path} is empty")
    return token
