"""From the manifest to the Dapr resources under `.meshgate/generated/`. Writes files, starts nothing."""

import contextlib
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from meshgate_deploy import store_url
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.state import State, write_private

API = "dapr.io/v1alpha1"
STORE = "meshgate-actors"
TABLES = "meshgate_dapr_"  # what Dapr's tables on a server begin with
NOBODY = "meshgate-nobody"  # no app can bear it: it gets no sidecar and no enrolment token
CERTIFICATE_LIFE = "24h"
CLOCK_SKEW = "15m"


def dapr_resources(manifest: Manifest, state: State) -> None:
    """Writes Sentry's and the sidecars' configuration, the actor store and a policy per app."""
    folder = state.generated / "dapr"
    resources = folder / "resources"
    for made in (folder, resources):
        made.mkdir(mode=0o700, exist_ok=True)
    for old in resources.iterdir():
        old.unlink()
    _write(state, "dapr/sentry.yaml", sentry_configuration(state))
    _write(state, "dapr/config.yaml", sidecar_configuration())
    _write(state, "dapr/resources/actor-store.yaml", actor_store(manifest, state))
    for app in manifest.apps:
        _write(state, f"dapr/resources/policy-{app}.yaml", access_policy(manifest, app))
    _write(state, "dapr.yaml", multi_app(manifest))


def sentry_configuration(state: State) -> dict[str, Any]:
    """Sentry signs only for tokens of this supervisor's key."""
    jwks = {"name": "jwks", "options": {"source": str(state.generated / "dapr" / "jwks.json")}}
    mtls = {
        "enabled": True,
        "workloadCertTTL": CERTIFICATE_LIFE,
        "allowedClockSkew": CLOCK_SKEW,
        "tokenValidators": [jwks],
    }
    return _resource("Configuration", "sentry", {"mtls": mtls})


def sidecar_configuration() -> dict[str, Any]:
    """History signing on; the preview that evades access policies stays off."""
    features = [
        {"name": "WorkflowHistorySigning", "enabled": True},
        {"name": "HotReload", "enabled": False},  # resources change with a new start only
    ]
    mtls = {"enabled": True, "workloadCertTTL": CERTIFICATE_LIFE, "allowedClockSkew": CLOCK_SKEW}
    return _resource("Configuration", "sidecar", {"mtls": mtls, "features": features})


def actor_store_file(state: State) -> Path:
    """Where all workflow histories are."""
    return state.data / "actors.db"


def actor_store(manifest: Manifest, state: State) -> dict[str, Any]:
    """The store of all workflow histories, open to the apps of this mesh; where the gateway's is."""
    if store_url.is_postgresql(manifest.store):
        kind, version, values = "state.postgresql", "v2", _on_server(manifest.store)
    else:
        kind, version, values = "state.sqlite", "v1", _in_file(state)
    metadata = [{"name": name, "value": value} for name, value in values.items()]
    spec = {"type": kind, "version": version, "metadata": metadata}
    return {**_resource("Component", STORE, spec), "scopes": list(manifest.apps)}


def _in_file(state: State) -> dict[str, str]:
    return {
        "connectionString": f"file:{actor_store_file(state)}?_txlock=immediate",
        "actorStateStore": "true",
        "timeout": "20s",
        "busyTimeout": "15s",
    }


def _on_server(store: str) -> dict[str, str]:
    """Who logs in, and with what, is in the sidecars' environment."""
    return {
        "connectionString": store_url.for_dapr(store)[0],
        "actorStateStore": "true",
        "tablePrefix": TABLES,
        "metadataTableName": f"{TABLES}metadata",
        "timeout": "10s",
    }


def make_actor_store(state: State) -> None:
    """Makes the actor store's file in WAL mode, which it then keeps.

    Sidecars that all meet a new file switch it at the same time; SQLite does not wait for that lock,
    and one of them ends with "database is locked" (seen on 1.18.2).
    """
    with contextlib.closing(sqlite3.connect(actor_store_file(state))) as database:
        database.execute("PRAGMA journal_mode = WAL")
    actor_store_file(state).chmod(0o600)


def access_policy(manifest: Manifest, app: str) -> dict[str, Any]:
    """Who may reach an app's workflows: only the gateway, and only the one activity."""
    if app == "gateway":
        rule: dict[str, Any] = {
            "callers": [{"appID": NOBODY}],
            "workflows": [{"name": NOBODY, "operations": ["schedule"]}],
        }
    else:
        activity = "invoke" if app in manifest.toolhosts else "start_run"
        rule = {
            "callers": [{"appID": "gateway"}],
            "activities": [{"name": activity, "operations": ["schedule"]}],
        }
    return {**_resource("WorkflowAccessPolicy", app, {"rules": [rule]}), "scopes": [app]}


def multi_app(manifest: Manifest) -> dict[str, Any]:
    """A plain `dapr.yaml` that says the same to people and to other tools."""
    ours = ".meshgate/generated/"
    apps = [
        _app("gateway", ["meshgate-gateway", "--config", f"{ours}gateway.json"]),
        *(_app(host, ["meshgate-toolhost", "--config", f"{ours}{host}.json"]) for host in manifest.toolhosts),
        *(
            _app(name, ["meshgate", "run", "--app", name, "--", *program.run])
            for name, program in manifest.programs.items()
        ),
        *(
            _app(name, ["meshgate", "run", "--app", name, "--", "python", "main.py"])
            for name in manifest.crews
        ),
        *(
            _app(name, ["python", "-m", "meshgate_agents.worker", "--config", f"{ours}{name}.json"])
            for name, kind in manifest.runners.items()
            if kind == "agent"
        ),
    ]
    common = {"resourcesPaths": [f"{ours}dapr/resources"], "configFilePath": f"{ours}dapr/config.yaml"}
    return {"version": 1, "common": common, "apps": apps}


def _app(name: str, command: Sequence[str]) -> dict[str, Any]:
    return {"appID": name, "appDirPath": "..", "command": list(command), "appLogDestination": "file"}


def _resource(kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": dict(spec)}


def _write(state: State, name: str, document: Mapping[str, Any]) -> None:
    text = "# Generated from meshgate.yaml by `meshgate up`; changes are lost.\n"
    text += yaml.safe_dump(dict(document), sort_keys=False)
    write_private(state.generated / name, text.encode())
