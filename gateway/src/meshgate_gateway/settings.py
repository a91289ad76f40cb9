"""The gateway's configuration file, read once. A bad one ends the process before a port opens."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """What the supervisor wrote for this process; paths are absolute."""

    mesh: str
    trust_domain: str
    listen: str
    workload_api: Path
    database: Path
    payload_key_file: Path
    opa_socket: str
    opa_token_file: Path
    policy_revision: str
    policy_sha256: str
    dapr_grpc_port: int
    dapr_token_file: Path
    catalogue: Path
    operators: tuple[str, ...]
    ready_file: Path


def load(path: Path) -> Settings:
    """Reads the file.

    Raises:
        OSError, ValueError, KeyError: missing, not JSON, or a key is absent.
    """
    raw = json.loads(path.read_text())
    return Settings(
        mesh=raw["mesh"],
        trust_domain=raw["trust_domain"],
        listen=raw["listen"],
        workload_api=Path(raw["workload_api"]),
        database=Path(raw["store"]["sqlite"]),
        payload_key_file=Path(raw["payload_key_file"]),
        opa_socket=raw["opa"]["socket"],
        opa_token_file=Path(raw["opa"]["token_file"]),
        policy_revision=raw["opa"]["revision"],
        policy_sha256=raw["opa"]["digest"],
        dapr_grpc_port=int(raw["dapr"]["grpc_port"]),
        dapr_token_file=Path(raw["dapr"]["api_token_file"]),
        catalogue=Path(raw["catalogue"]),
        operators=tuple(raw["operators"]),
        ready_file=Path(raw["ready_file"]),
    )
