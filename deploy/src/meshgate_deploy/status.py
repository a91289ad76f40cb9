"""What the supervisor tells of its mesh: every process, every app, and who plays what."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from meshgate_deploy import announced, configs
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.state import State

Row = Mapping[str, Any]


def status(  # noqa: PLR0913 - what is known of each kind of process
    manifest: Manifest,
    state: State,
    *,
    services: Iterable[Row],
    replays: Iterable[Row],
    fork_servers: Iterable[Row],
    ready: bool,
) -> dict[str, Any]:
    """The answer to `status`.

    Args:
        manifest: which apps there are.
        state: where workers say what they play.
        services: rows of what is kept running.
        replays: rows of replays at a terminal.
        fork_servers: rows of what the others are forked from.
        ready: whether the mesh is up.
    """
    owners = {name: app for app in manifest.apps for name in manifest.replicas(app)}
    return {
        "ready": ready,
        "mesh": manifest.mesh, "trust_domain": manifest.trust_domain, "pid": os.getpid(),
        "processes": [*(_service(row, manifest, state, owners) for row in services), *map(dict, replays)],
        "fork_servers": [*map(dict, fork_servers)],
        "apps": [_app(manifest, app) for app in manifest.apps],
    }  # fmt: skip


def _service(row: Row, manifest: Manifest, state: State, owners: Mapping[str, str]) -> dict[str, Any]:
    """A process of an app names it; a worker says what it plays."""
    name = str(row["name"])
    app = owners.get(name)
    shown = {**row, "app": app} if app else dict(row)
    if app not in manifest.runners:
        return shown
    played = announced.row(configs.ready_file(state, name))
    playing = ", ".join(run["run_id"] for run in played["runs"])
    return {**shown, **played, "detail": row["detail"] or (f"plays {playing}" if playing else "")}


def _app(manifest: Manifest, app: str) -> dict[str, Any]:
    kind = "gateway" if app == "gateway" else manifest.runners.get(app, "toolhost")
    crews = list(dict.fromkeys(one.crew for one in manifest.isolated if one.app == app))
    return {"name": app, "spiffe_id": manifest.spiffe_id(app), "kind": kind, "crews": crews}
