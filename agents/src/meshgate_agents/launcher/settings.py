"""The launcher's configuration file, read once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """What the supervisor wrote for this app; paths are absolute."""

    app: str
    workload_api: Path
    gateway_target: str
    gateway_name: str
    project_root: Path
    socket_dir: Path
    tools: tuple[Mapping[str, object], ...]
    expects_report: bool
    environment: Mapping[str, str]
    run_id: str | None
    step_deadline_seconds: float


def load(path: Path) -> Settings:
    """Reads the file.

    Raises:
        OSError, ValueError, KeyError: missing, not JSON, or a key is absent.
    """
    raw = json.loads(path.read_text())
    return Settings(
        app=raw["app"],
        workload_api=Path(raw["workload_api"]),
        gateway_target=raw["gateway"]["target"],
        gateway_name=raw["gateway"]["server_name"],
        project_root=Path(raw["project_root"]),
        socket_dir=Path(raw["socket_dir"]),
        tools=tuple(raw["tools"]),
        expects_report=raw["expects_report"],
        environment=raw["env"],
        run_id=raw.get("run_id"),
        step_deadline_seconds=float(raw.get("step_deadline_seconds", 60)),
    )
