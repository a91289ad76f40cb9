"""The configuration file of each process of ours. Builds values, starts nothing."""

import dataclasses
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from meshgate_identities.tls import gateway_dns_name

from meshgate_deploy import dapr_plane, interpreter_paths, isolation
from meshgate_deploy import own_tools as own_limits
from meshgate_deploy.interpreter_paths import Interpreter
from meshgate_deploy.manifest import Agent, Manifest, ToolEntry
from meshgate_deploy.state import State
from meshgate_deploy.store_url import is_postgresql

STORAGE = "CREWAI_STORAGE_DIR"  # CrewAI's: where memory and knowledge lie


def ready_file(state: State, app: str) -> Path:
    """Appears when the process serves."""
    return state.run / f"{app}.ready"


def programs_file(state: State, run_id: str) -> Path:
    """Where the launcher of a replay says which program plays it."""
    return state.run / f"replay-{run_id}.programs"


def definitions_file(state: State, host: str) -> Path:
    """What a tool host says its tools are, or the describing process of an app with tools of its own."""
    return state.generated / f"{host}.tools.json"


def catalogue_file(state: State) -> Path:
    """The gateway's tools and apps."""
    return state.generated / "catalogue.json"


def store_file(state: State) -> Path:
    """The gateway's store, where it is no server's."""
    return state.data / "gateway.db"


def payload_key_file(state: State) -> Path:
    """The key of the store's clear text, outside the store."""
    return state.data / "payload.key"


def gateway_address(manifest: Manifest, target: str) -> dict[str, str]:
    """Where the gateway is, and the name its certificate must bear."""
    name = gateway_dns_name(trust_domain=manifest.trust_domain, mesh=manifest.mesh)
    return {"target": target, "server_name": name}


def gateway(
    manifest: Manifest, state: State, *, listen: str, sidecar: str, opa: Mapping[str, str]
) -> dict[str, Any]:
    """The gateway's."""
    return {
        **_common(manifest, state),
        "listen": listen,
        "store": {"postgresql": manifest.store}
        if is_postgresql(manifest.store)
        else {"sqlite": str(store_file(state))},
        "payload_key_file": str(payload_key_file(state)),
        "opa": dict(opa),
        "dapr": _sidecar(state, "gateway", sidecar),
        "catalogue": str(catalogue_file(state)),
        "operators": [manifest.spiffe_id("operator"), *manifest.operators],
        "ready_file": str(ready_file(state, "gateway")),
    }


def toolhost(manifest: Manifest, state: State, host: str, *, target: str, sidecar: str) -> dict[str, Any]:
    """A tool host's."""
    part = manifest.toolhosts[host]
    rules = {name: rule for name, rule in manifest.tools.items() if name.startswith(f"{host}.")}
    overrides = {
        name: {
            "deadline_seconds": rule.deadline_seconds,
            "max_result_bytes": rule.max_result_bytes,
            "reconcile": rule.reconcile,
        }
        for name, rule in rules.items()
    }
    return {
        **_common(manifest, state),
        "app": host,
        "gateway": gateway_address(manifest, target),
        "dapr": _sidecar(state, host, sidecar),
        "project_root": str(state.project),
        "tools": [_tool(entry) for entry in part.tools],
        "cwd": part.cwd,
        "secrets": list(part.secrets),
        "mcp": part.mcp.model_dump(exclude_defaults=True, mode="json") if part.mcp else None,
        "finished_db": str(state.data / "hosts" / f"{host}.db"),
        "definitions_file": str(definitions_file(state, host)),
        "ready_file": str(ready_file(state, host)),
        "tool_overrides": {
            name: {key: value for key, value in values.items() if value is not None}
            for name, values in overrides.items()
        },
    }


def own_tools(manifest: Manifest, state: State, app: str) -> dict[str, Any]:
    """Of the process that describes what an app runs itself."""
    return {
        "app": app,
        "project_root": str(state.project),
        "tools": [_tool(entry) for entry in manifest.own_tools[app]],
        "definitions_file": str(definitions_file(state, app)),
    }


def launcher(  # noqa: PLR0913 - what one run is made of
    manifest: Manifest,
    state: State,
    app: str,
    *,
    target: str,
    definitions: Mapping[str, Mapping[str, Any]],
    env: Mapping[str, str],
    run_id: str | None,
    replay: bool = False,
    fork_servers: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """An agent launcher's, for one run."""
    kind, runner, crews = manifest.runners[app], manifest.runner(app), crews_of(manifest, app)
    return {
        **_common(manifest, state),
        "app": app,
        "kind": kind,
        "gateway": gateway_address(manifest, target),
        "project_root": str(state.project),
        "socket_dir": str(state.sockets if runner.user is None else state.app_sockets),
        "tools": [
            {
                "tool": tool,
                "identity": row["identity"],
                "own_limit_bytes": own_limits.limit_bytes(manifest, tool),
                "own_deadline_seconds": own_limits.deadline_seconds(manifest, tool),
            }
            for tool, row in sorted(definitions.items())
            if tool.partition(".")[0] not in manifest.runners or tool.startswith(f"{app}.")
        ],
        "colleagues": [
            {**dataclasses.asdict(one), "same_storage": _same_storage(manifest, app, one.app, env)}
            for one in manifest.colleagues(app)
        ],
        "crews": crews,
        "expects_report": kind != "program",
        "env": dict(env),
        "run_id": run_id,
        "step_deadline_seconds": 60,
        "attempts": runner.attempts,
        "stall_seconds": runner.stall_seconds,
        "replay": replay,
        "isolation": _isolation(manifest, state, app, env),
        "fork_servers": dict(fork_servers),
        "standby": bool(fork_servers) and isinstance(runner, Agent) and runner.standby and len(crews) == 1,
        "programs_file": str(programs_file(state, run_id)) if run_id else None,
    }


def _same_storage(manifest: Manifest, app: str, other: str, env: Mapping[str, str]) -> bool:
    """Whether CrewAI's storage lies in one folder for both: each has its own unless both are given one."""
    named = all(STORAGE in manifest.runner(one).env for one in (app, other))
    return app == other or (named and bool(env.get(STORAGE)))


def worker(  # noqa: PLR0913 - what one worker is made of
    manifest: Manifest,
    state: State,
    app: str,
    *,
    name: str,
    target: str,
    sidecar: str,
    definitions: Mapping[str, Mapping[str, Any]],
    env: Mapping[str, str],
    fork_servers: Mapping[str, str],
) -> dict[str, Any]:
    """One of an app's workers: a launcher's for any run, what the app runs by itself, and its own sidecar."""
    return {
        **launcher(
            manifest,
            state,
            app,
            target=target,
            definitions=definitions,
            env=env,
            run_id=None,
            fork_servers=fork_servers,
        ),
        "command": resolved_command(manifest, app, env),
        "runs_at_once": manifest.runner(app).runs_at_once,
        "dapr": _sidecar(state, name, sidecar),
        "ready_file": str(ready_file(state, name)),
        "terminals": str(state.terminals),
    }


def own_command(manifest: Manifest, app: str, env: Mapping[str, str]) -> list[str]:
    """What an app runs by itself."""
    if app in manifest.programs:
        return list(manifest.programs[app].run)
    python = shutil.which("python", path=env.get("PATH", "")) or sys.executable
    crew = manifest.crews.get(app)
    return [python, "-m", "meshgate_agent"] if crew is None else [python, "-m", "meshgate_kickoff", crew.crew]


def crews_of(manifest: Manifest, app: str) -> dict[str, str]:
    """What an agent's app builds its crews from; empty for every other app."""
    if manifest.runners[app] != "agent":
        return {}
    return {one.crew: manifest.crews[one.crew].crew for one in manifest.isolated if one.app == app}


def resolved_command(manifest: Manifest, app: str, env: Mapping[str, str]) -> list[str]:
    """The same by its interpreter itself: what leads there, as a shim does, needs more than it may read."""
    command = own_command(manifest, app, env)
    if app in manifest.programs or manifest.isolation == "none":
        return command
    return [interpreter_paths.look(command[0], env).executable, *command[1:]]


def _isolation(manifest: Manifest, state: State, app: str, env: Mapping[str, str]) -> dict[str, Any] | None:
    python, *own = own_command(manifest, app, env)
    known = Interpreter(python, ()) if app in manifest.programs else interpreter_paths.look(python, env)
    return isolation.config(manifest, state, app, env=env, own=tuple(own), python=known)


def config_file(state: State, name: str) -> Path:
    """What a process of ours was started with."""
    return state.generated / f"{name}.json"


def module(python: str, name: str, config: Path, *more: str) -> Sequence[str]:
    """How a process of ours is called: isolated, so that no file of the project can stand in for ours."""
    return (python, "-I", "-u", "-m", name, "--config", str(config), *more)


def _common(manifest: Manifest, state: State) -> dict[str, Any]:
    return {
        "mesh": manifest.mesh,
        "trust_domain": manifest.trust_domain,
        "workload_api": str(state.workload_api),
    }


def _sidecar(state: State, app: str, address: str) -> dict[str, Any]:
    port = int(address.rpartition(":")[2])
    return {"grpc_port": port, "api_token_file": str(dapr_plane.api_token_file(state, app))}


def _tool(entry: str | ToolEntry) -> Any:
    return (
        entry
        if isinstance(entry, str)
        else entry.model_dump(by_alias=True, exclude_defaults=True, mode="json")
    )
