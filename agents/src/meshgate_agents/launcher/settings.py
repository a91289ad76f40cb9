"""The launcher's config file, read once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshgate_agents.child.confine import Rules, from_json
from meshgate_agents.launcher.errors import BadSettings

ATTEMPTS = 5  # of one run, by one launcher
BACKOFF_SECONDS = 0.5  # before the second attempt; twice as long before each further one
STALL_SECONDS = 1800.0  # without a finished step; a slow model takes minutes
OWN_DEADLINE_SECONDS = 30.0  # as a tool has it for which the manifest says nothing
STEP_DEADLINE_SECONDS = 60.0  # how long an unavailable gateway is asked again for one step


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolEntry:
    """A tool of the manifest, and what its live object looks like in a program.

    Attributes:
        own_limit_bytes: of a result, for a tool that runs in the child itself; None for every other.
        own_deadline_seconds: how long the body of such a tool may take.
    """

    tool: str
    qualname: str
    fields_sha256: str
    own_limit_bytes: int | None = None
    own_deadline_seconds: float = OWN_DEADLINE_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Colleague:
    """An agent of a crew that is an app of its own.

    Attributes:
        crew: of the manifest.
        agent: its key there.
        role: as the project writes it, before inputs are filled in.
        app: whose process it runs in.
        same_storage: whether that process has CrewAI's storage where this one has it.
    """

    crew: str
    agent: str
    role: str
    app: str
    same_storage: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayAddress:
    """Where the gateway listens, and the DNS name that its certificate must carry."""

    target: str
    server_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """What this app's programs may do on their host.

    Attributes:
        command: what the app runs by itself, without the interpreter; `own` is for that alone.
        own: rules for `command`; None where it has the same as any other.
        other: rules for any other command that is run as this app.
        env: where home and temporary files are: for `command`, and for any where there is a user of its own.
        folders: what it finds there: made before it is started.
    """

    command: tuple[str, ...]
    own: Rules | None
    other: Rules
    env: Mapping[str, str]
    folders: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """See `docs/reference`; `env` is the child's exact environment before our switches.

    Attributes:
        colleagues: the agents of the app's crews that are apps, itself among them.
        crews: of an agent's app: where each of its crews is built.
        fork_servers: by interpreter, the socket of the process from which programs that it runs are forked.
        standby: whether a program of an agent's app stands ready for its next task.
        programs_file: where a launcher of one run says which program plays it; None: nobody asks.
    """

    app: str
    kind: str
    mesh: str
    trust_domain: str
    workload_api: str
    gateway: GatewayAddress
    project_root: Path
    socket_dir: Path
    tools: tuple[ToolEntry, ...]
    expects_report: bool
    env: Mapping[str, str]
    run_id: str | None
    step_deadline_seconds: float
    attempts: int
    backoff_seconds: float
    stall_seconds: float
    replay: bool
    isolation: Isolation | None
    colleagues: tuple[Colleague, ...] = ()
    crews: Mapping[str, str] = field(default_factory=dict)
    fork_servers: Mapping[str, Path] = field(default_factory=dict)
    programs_file: Path | None = None
    standby: bool = False

    @property
    def user(self) -> tuple[int, int] | None:
        """Uid and gid of the app's programs, where these are not ours."""
        return None if self.isolation is None else self.isolation.other.user

    @property
    def spiffe_id(self) -> str:
        """Who this app is."""
        return f"spiffe://{self.trust_domain}/ns/{self.mesh}/{self.app}"


def load(path: Path) -> Settings:
    """Reads the config.

    Raises:
        BadSettings: unreadable, no JSON, or a key is missing or has the wrong type.
    """
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadSettings(f"{path}: {error}") from error
    try:
        return _settings(raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadSettings(f"{path}: missing or mistyped: {error}") from error


def _settings(raw: Mapping[str, Any]) -> Settings:
    kind = raw["kind"]
    if kind not in ("crew", "program", "agent"):
        raise BadSettings(f"kind is {kind!r}, not 'crew', 'program' or 'agent'")
    return Settings(
        app=str(raw["app"]),
        kind=kind,
        mesh=str(raw["mesh"]),
        trust_domain=str(raw["trust_domain"]),
        workload_api=str(raw["workload_api"]),
        gateway=GatewayAddress(
            target=str(raw["gateway"]["target"]), server_name=str(raw["gateway"]["server_name"])
        ),
        project_root=Path(raw["project_root"]),
        socket_dir=Path(raw["socket_dir"]),
        tools=tuple(_entry(item) for item in raw["tools"]),
        expects_report=bool(raw["expects_report"]),
        env={str(name): str(value) for name, value in raw["env"].items()},
        run_id=raw.get("run_id") or None,
        step_deadline_seconds=float(raw.get("step_deadline_seconds") or STEP_DEADLINE_SECONDS),
        attempts=int(raw.get("attempts") or ATTEMPTS),
        backoff_seconds=float(raw.get("backoff_seconds") or BACKOFF_SECONDS),
        stall_seconds=float(raw.get("stall_seconds") or STALL_SECONDS),
        replay=bool(raw.get("replay", False)),
        colleagues=tuple(_colleague(item) for item in raw.get("colleagues") or ()),
        crews={str(name): str(reference) for name, reference in (raw.get("crews") or {}).items()},
        isolation=_isolation(raw["isolation"]),
        programs_file=Path(raw["programs_file"]) if raw.get("programs_file") else None,
        standby=raw.get("standby", False) is True,
        fork_servers={str(k): Path(v) for k, v in raw.get("fork_servers", {}).items()},
    )


def _isolation(raw: Mapping[str, Any] | None) -> Isolation | None:
    """None only where it is written: a config that says nothing of it is no config."""
    if raw is None:
        return None
    own = None if raw["own"] is None else from_json(json.dumps(raw["own"]))
    other = from_json(json.dumps(raw["other"]))
    if own is not None and own.user != other.user:
        raise BadSettings("the programs of an app have one user, not two")
    return Isolation(
        command=tuple(map(str, raw["command"])),
        own=own,
        other=other,
        env={str(name): str(value) for name, value in raw["env"].items()},
        folders=tuple(map(Path, raw["folders"])),
    )


def _colleague(item: Mapping[str, Any]) -> Colleague:
    crew, agent, role, app = (str(item[name]) for name in ("crew", "agent", "role", "app"))
    shares = item.get("same_storage", False) is True
    return Colleague(crew=crew, agent=agent, role=role, app=app, same_storage=shares)


def _entry(item: Mapping[str, Any]) -> ToolEntry:
    identity = item["identity"]
    return ToolEntry(
        tool=str(item["tool"]),
        qualname=str(identity["qualname"]),
        fields_sha256=str(identity["fields_sha256"]),
        own_limit_bytes=int(item["own_limit_bytes"]) if item.get("own_limit_bytes") else None,
        own_deadline_seconds=float(item.get("own_deadline_seconds") or OWN_DEADLINE_SECONDS),
    )
