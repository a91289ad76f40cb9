"""The tool host's settings: one JSON file, read once, written by the supervisor."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from meshgate_toolhost.errors import SettingsInvalid

AGENT_SOCKET_VARIABLE = "MESHGATE_SOCKET"  # set for agents' processes only
AGENT_MODULE = "_meshgate_child"  # the interception, as loaded in agents' processes


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GatewaySettings(_Strict):
    """Where the gateway is, and the DNS name in its certificate."""

    target: str
    server_name: str


class DaprSettings(_Strict):
    """Our own sidecar."""

    grpc_port: int
    api_token_file: Path


class McpSettings(_Strict):
    """An MCP server that this host starts and calls."""

    command: list[str] = Field(min_length=1)


class ToolOverride(_Strict):
    """Limits of one tool, None means the default; and the function that finds out what came of a call."""

    deadline_seconds: float | None = Field(default=None, gt=0)
    max_result_bytes: int | None = Field(default=None, gt=0)
    reconcile: str | None = None


class _File(_Strict):
    app: str = Field(pattern=r"^[a-z0-9-]{1,63}$")
    mesh: str
    trust_domain: str
    workload_api: str
    gateway: GatewaySettings
    dapr: DaprSettings
    project_root: Path
    tools: list[str | dict[str, object]] = []
    cwd: str | None = None
    mcp: McpSettings | None = None
    finished_db: Path
    definitions_file: Path
    ready_file: Path
    tool_overrides: dict[str, ToolOverride] = {}
    secrets: list[str] = []


@dataclass(frozen=True, slots=True)
class Settings:
    """What `__main__` composes from.

    Attributes:
        working_folder: where tools run; the project's root unless `cwd` names another.
        withheld: values of the host's secrets, so that they are kept out of digests and messages.
    """

    app: str
    workload_api: str
    gateway: GatewaySettings
    dapr: DaprSettings
    project_root: Path
    working_folder: Path
    tools: tuple[str | dict[str, object], ...]
    mcp: McpSettings | None
    finished_db: Path
    definitions_file: Path
    ready_file: Path
    tool_overrides: Mapping[str, ToolOverride]
    withheld: tuple[str, ...] = field(repr=False, default=())


def load(path: Path, *, environment: Mapping[str, str] | None = None) -> Settings:
    """Reads the configuration.

    Raises:
        SettingsInvalid: unreadable, unknown keys, or a folder that is not there.
    """
    given = os.environ if environment is None else environment
    try:
        file = _File.model_validate(json.loads(path.read_text()))
    except (OSError, ValidationError, ValueError) as error:
        raise SettingsInvalid(f"{path}: {error}") from error
    root = file.project_root.resolve()
    folder = (root / file.cwd).resolve() if file.cwd else root
    for wanted in (root, folder):
        if not wanted.is_dir():
            raise SettingsInvalid(f"{path}: {wanted} is not a folder")
    return Settings(
        app=file.app,
        workload_api=file.workload_api,
        gateway=file.gateway,
        dapr=file.dapr,
        project_root=root,
        working_folder=folder,
        tools=tuple(file.tools),
        mcp=file.mcp,
        finished_db=file.finished_db.absolute(),
        definitions_file=file.definitions_file.absolute(),
        ready_file=file.ready_file.absolute(),
        tool_overrides=file.tool_overrides,
        withheld=tuple(given[name] for name in file.secrets if given.get(name)),
    )


def read_token(path: Path) -> str:
    """The sidecar's API token.

    Raises:
        SettingsInvalid: no file, or an empty one.
    """
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise SettingsInvalid(f"no sidecar token: {error}") from error
    if not token:
        raise SettingsInvalid(f"{path} is empty")
    return token


def refuse_interception(environment: Mapping[str, str] | None = None) -> None:
    """A host whose tools are intercepted would ask the gateway to run what it was asked to run.

    Raises:
        SettingsInvalid: the process was started as an agent's.
    """
    given = os.environ if environment is None else environment
    if AGENT_MODULE in sys.modules or AGENT_SOCKET_VARIABLE in given:
        raise SettingsInvalid("a tool host cannot run inside `meshgate run`: its tools are intercepted there")
