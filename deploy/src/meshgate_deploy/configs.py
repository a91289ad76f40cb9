"""The configuration files of our own processes, and the plain dapr.yaml beside them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meshgate_identities.tls import gateway_dns_name

from meshgate_deploy.manifest import ClassTool, Manifest, ToolRules

DEFAULT_REPEAT = {"read": "allow"}


@dataclass(frozen=True, slots=True)
class Places:
    """Where one mesh keeps its things."""

    project: Path
    state: Path
    sockets: Path

    @property
    def workload_api(self) -> Path:
        """The Workload API's socket."""
        return self.sockets / "workload.sock"

    @property
    def control(self) -> Path:
        """The supervisor's own socket."""
        return self.sockets / "control.sock"

    def ready(self, app: str) -> Path:
        """The file that a process writes when it serves."""
        return self.state / "run" / f"ready-{app}"

    def definitions(self, host: str) -> Path:
        """What a tool host says of its tools."""
        return self.state / "run" / f"definitions-{host}.json"

    def config(self, app: str) -> Path:
        """The configuration file of one of our processes."""
        return self.state / "generated" / f"{app}.json"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What was chosen for this `up`."""

    gateway_port: int
    dapr_ports: Mapping[str, tuple[int, int]]

    @property
    def gateway(self) -> str:
        """Where the gateway listens."""
        return f"127.0.0.1:{self.gateway_port}"


def gateway_peer(manifest: Manifest, endpoints: Endpoints) -> dict[str, str]:
    """How a client reaches and recognises the gateway."""
    name = gateway_dns_name(trust_domain=manifest.trust_domain, mesh=manifest.mesh)
    return {"target": endpoints.gateway, "server_name": name}


def gateway_config(
    manifest: Manifest, places: Places, endpoints: Endpoints, policy: Mapping[str, str]
) -> dict[str, object]:
    """The gateway's file."""
    state = places.state
    operator = f"spiffe://{manifest.trust_domain}/ns/{manifest.mesh}/operator"
    return {
        "mesh": manifest.mesh,
        "trust_domain": manifest.trust_domain,
        "listen": endpoints.gateway,
        "workload_api": str(places.workload_api),
        "store": {"sqlite": str(state / "data" / "gateway.db")},
        "payload_key_file": str(state / "ca" / "payload.key"),
        "opa": dict(policy),
        "dapr": _dapr(places, endpoints, "gateway"),
        "catalogue": str(state / "generated" / "catalogue.json"),
        "operators": [operator, *manifest.operators],
        "ready_file": str(places.ready("gateway")),
    }


def toolhost_config(manifest: Manifest, places: Places, endpoints: Endpoints, host: str) -> dict[str, object]:
    """One tool host's file."""
    entry = manifest.toolhosts[host]
    rules = {tool: rule for tool, rule in manifest.tools.items() if tool.startswith(f"{host}.")}
    return {
        "app": host,
        "workload_api": str(places.workload_api),
        "gateway": gateway_peer(manifest, endpoints),
        "dapr": _dapr(places, endpoints, host),
        "project_root": str(places.project),
        "tools": [
            tool
            if isinstance(tool, str)
            else tool.model_dump(by_alias=True, exclude_none=not isinstance(tool, ClassTool))
            for tool in entry.tools
        ],
        "cwd": str(places.project / entry.cwd) if entry.cwd else None,
        "finished_db": str(places.state / "data" / "hosts" / f"{host}.db"),
        "definitions_file": str(places.definitions(host)),
        "ready_file": str(places.ready(host)),
        "tool_overrides": {tool: {"max_result_bytes": rule.max_result_bytes} for tool, rule in rules.items()},
    }


def launcher_config(
    manifest: Manifest, places: Places, endpoints: Endpoints, app: str, env: Mapping[str, str],
    catalogue: Mapping[str, Mapping[str, object]], run_id: str | None,
) -> dict[str, object]:  # fmt: skip
    """One run's file."""
    return {
        "app": app,
        "workload_api": str(places.workload_api),
        "gateway": gateway_peer(manifest, endpoints),
        "project_root": str(places.project),
        "socket_dir": str(places.sockets),
        "tools": [{"tool": tool, "identity": row["identity"]} for tool, row in catalogue.items()],
        "expects_report": manifest.apps()[app] == "crew",
        "env": dict(env),
        "run_id": run_id,
        "step_deadline_seconds": 60,
    }


def catalogue_tools(
    manifest: Manifest, host: str, definitions: Mapping[str, Mapping[str, object]]
) -> dict[str, object]:
    """The catalogue's rows of one host: what it said of its tools, and the operator's rules."""
    rows: dict[str, object] = {}
    for tool, definition in definitions.items():
        rule = manifest.tools.get(tool, ToolRules())
        rows[tool] = {
            **definition,
            "host": host,
            "kind": "tool",
            "effect": rule.effect,
            "idempotent": rule.idempotent,
            "repeat": rule.repeat or DEFAULT_REPEAT.get(rule.effect, "same"),
            "deadline_seconds": rule.deadline_seconds,
        }
    return rows


def dapr_yaml(manifest: Manifest, places: Places) -> dict[str, object]:
    """The same apps in the form that Dapr's own multi-app run reads; for looking at."""
    apps = {"gateway": "gateway", **manifest.apps()}
    command = {
        "gateway": ["meshgate-gateway", "--config", str(places.config("gateway"))],
        **{host: ["meshgate-toolhost", "--config", str(places.config(host))] for host in manifest.toolhosts},
    }
    rows = [
        {
            "appID": app,
            "appDirPath": str(places.project),
            **({"command": command[app]} if app in command else {}),
        }
        for app in apps
    ]
    return {
        "version": 1,
        "common": {"resourcesPath": str(places.state / "generated" / "resources")},
        "apps": rows,
    }


def _dapr(places: Places, endpoints: Endpoints, app: str) -> dict[str, object]:
    token = places.state / "run" / f"api-token-{app}"
    return {"grpc_port": endpoints.dapr_ports[app][0], "api_token_file": str(token)}
