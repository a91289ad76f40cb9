"""The tool host's configuration file, read once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """What the supervisor wrote for this host; paths are absolute."""

    app: str
    workload_api: Path
    gateway_target: str
    gateway_name: str
    dapr_grpc_port: int
    dapr_token_file: Path
    project_root: Path
    tools: tuple[object, ...]
    cwd: Path | None
    finished_db: Path
    definitions_file: Path
    ready_file: Path
    max_result_bytes: Mapping[str, int]


def load(path: Path) -> Settings:
    """Reads the file.

    Raises:
        OSError, ValueError, KeyError: missing, not JSON, or a key is absent.
    """
    raw = json.loads(path.read_text())
    overrides = raw.get("tool_overrides") or {}
    return Settings(
        app=raw["app"],
        workload_api=Path(raw["workload_api"]),
        gateway_target=raw["gateway"]["target"],
        gateway_name=raw["gateway"]["server_name"],
        dapr_grpc_port=int(raw["dapr"]["grpc_port"]),
        dapr_token_file=Path(raw["dapr"]["api_token_file"]),
        project_root=Path(raw["project_root"]),
        tools=tuple(raw["tools"]),
        cwd=Path(raw["cwd"]) if raw.get("cwd") else None,
        finished_db=Path(raw["finished_db"]),
        definitions_file=Path(raw["definitions_file"]),
        ready_file=Path(raw["ready_file"]),
        max_result_bytes={
            tool: int(row["max_result_bytes"])
            for tool, row in overrides.items()
            if row.get("max_result_bytes")
        },
    )
