"""Dapr on one machine: how its processes are called, and every resource they read.

Sentry signs only for tokens that the supervisor minted; every app has an access policy; every
listener is on loopback.
"""

import json
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jwt
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from meshgate_identities.authority import write_private

from meshgate_deploy.runtime import RuntimeBinaries

CONTROL_NAMESPACE = "dapr-system"
TOKEN_SECONDS = 24 * 3600
LOOPBACK = "127.0.0.1"
MAX_BODY = "4Mi"


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one process."""

    argv: list[str]
    env: dict[str, str]


@dataclass(frozen=True, slots=True)
class Ports:
    """Chosen for one `up`; a port that was taken meanwhile ends the start, which is tried again."""

    sentry: int
    placement: int
    raft: int
    scheduler: int
    etcd_client: int
    etcd_peer: int


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def choose_ports() -> Ports:
    """Fresh ports for the control plane."""
    return Ports(*(free_port() for _ in range(6)))


class DaprPlane:
    """Writes the resources of one mesh and describes its processes."""

    def __init__(
        self, *, mesh: str, trust_domain: str, state: Path, binaries: RuntimeBinaries, ports: Ports
    ) -> None:
        self._mesh = mesh
        self._control_domain = f"dapr.{trust_domain}"
        self._state = state
        self._binaries = binaries
        self._ports = ports
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._key_id = secrets.token_hex(8)
        self.generated = state / "generated"
        self.credentials = state / "ca" / "dapr"

    def write_resources(self, apps: Mapping[str, str]) -> None:
        """Everything the sidecars read.

        Args:
            apps: every app with its kind: gateway, toolhost, crew or program.
        """
        resources = self.generated / "resources"
        resources.mkdir(parents=True, exist_ok=True)
        self.credentials.mkdir(mode=0o700, parents=True, exist_ok=True)
        jwk = jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        jwks = self.generated / "enrolment-keys.json"
        jwks.write_text(json.dumps({"keys": [{**jwk, "kid": self._key_id, "use": "sig", "alg": "ES256"}]}))
        _write_yaml(self.generated / "dapr-sentry.yaml", _sentry_configuration(jwks))
        _write_yaml(self.generated / "dapr-config.yaml", _app_configuration())
        _write_yaml(resources / "state.yaml", _state_store(self._state / "data" / "actors.db", apps))
        for app, kind in apps.items():
            _write_yaml(resources / f"access-{app}.yaml", access_policy(app, kind))

    def sentry(self) -> Launch:
        """The certificate authority of Dapr's own mTLS."""
        argv = [
            *self._binaries.sentry, "--config", str(self.generated / "dapr-sentry.yaml"),
            "--issuer-credentials", str(self.credentials), "--trust-domain", self._control_domain,
            "--port", str(self._ports.sentry), "--listen-address", LOOPBACK, *_side_ports(),
        ]  # fmt: skip
        return Launch(argv, {"NAMESPACE": CONTROL_NAMESPACE})

    def placement(self) -> Launch:
        """Where actors live."""
        # Without it every placement of the machine wants the same raft port.
        cluster = f"dapr-placement-0={LOOPBACK}:{self._ports.raft}"
        own = ["--port", str(self._ports.placement), "--initial-cluster", cluster]
        return self._control("placement", own)

    def scheduler(self) -> Launch:
        """Reminders and jobs, kept in an embedded etcd."""
        ports = self._ports
        folder = self._state / "data" / "scheduler"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = [
            "--port", str(ports.scheduler), "--etcd-data-dir", str(folder),
            "--override-broadcast-host-port", f"{LOOPBACK}:{ports.scheduler}",
            "--etcd-client-port", str(ports.etcd_client), "--etcd-client-listen-address", LOOPBACK,
            "--etcd-initial-cluster", f"dapr-scheduler-server-0=https://localhost:{ports.etcd_peer}",
            "--identity-directory-write", str(self.generated / "scheduler-identity"),
        ]  # fmt: skip
        return self._control("scheduler", own)

    def sidecar(self, app: str, grpc_port: int, http_port: int) -> Launch:
        """One app's daprd, with a token that its app alone knows."""
        ports = self._ports
        argv = [
            *self._binaries.daprd, "--app-id", app, "--enable-mtls",
            "--sentry-address", f"{LOOPBACK}:{ports.sentry}",
            "--control-plane-trust-domain", self._control_domain,
            "--control-plane-namespace", CONTROL_NAMESPACE,
            "--placement-host-address", f"{LOOPBACK}:{ports.placement}",
            "--scheduler-host-address", f"{LOOPBACK}:{ports.scheduler}",
            "--resources-path", str(self.generated / "resources"),
            "--config", str(self.generated / "dapr-config.yaml"),
            "--dapr-grpc-port", str(grpc_port), "--dapr-http-port", str(http_port),
            "--dapr-internal-grpc-port", str(free_port()),
            "--dapr-internal-grpc-listen-address", LOOPBACK,
            "--dapr-listen-addresses", LOOPBACK, "--metrics-port", str(free_port()),
            "--metrics-listen-address", LOOPBACK, "--max-body-size", MAX_BODY,
            "--dapr-graceful-shutdown-seconds", "2",
        ]  # fmt: skip
        env = {
            "NAMESPACE": self._mesh,
            "DAPR_TRUST_ANCHORS": (self.credentials / "ca.crt").read_text(),
            "DAPR_SENTRY_TOKEN_FILE": str(
                self._token(f"spiffe://public/ns/{self._mesh}/{app}", f"daprd-{app}")
            ),
            "DAPR_CONTROLPLANE_NAMESPACE": CONTROL_NAMESPACE,
            "DAPR_API_TOKEN": self.api_token(app).read_text(),
        }
        return Launch(argv, env)

    def api_token(self, app: str) -> Path:
        """The file with an app's API token, made anew at each `up`."""
        path = self._state / "run" / f"api-token-{app}"
        if not path.exists():
            write_private(path, secrets.token_urlsafe(32).encode())
        return path

    def forget_tokens(self) -> None:
        """Removes the tokens of an earlier `up`."""
        for path in (self._state / "run").glob("*-token-*"):
            path.unlink()

    def _control(self, service: str, own: list[str]) -> Launch:
        argv = [
            *getattr(self._binaries, service), *own, "--listen-address", LOOPBACK, "--tls-enabled",
            "--sentry-address", f"{LOOPBACK}:{self._ports.sentry}", "--trust-domain", self._control_domain,
            "--trust-anchors-file", str(self.credentials / "ca.crt"), *_side_ports(),
        ]  # fmt: skip
        subject = f"spiffe://{self._control_domain}/ns/{CONTROL_NAMESPACE}/dapr-{service}"
        token = self._token(subject, service)
        return Launch(argv, {"NAMESPACE": CONTROL_NAMESPACE, "DAPR_SENTRY_TOKEN_FILE": str(token)})

    def _token(self, subject: str, name: str) -> Path:
        """An enrolment token for one process start (0600)."""
        now = int(time.time())
        audience = f"spiffe://{self._control_domain}/ns/{CONTROL_NAMESPACE}/dapr-sentry"
        claims = {"aud": [audience], "sub": subject, "iat": now, "nbf": now - 5, "exp": now + TOKEN_SECONDS}
        path = self._state / "run" / f"enrolment-token-{name}"
        token = jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": self._key_id})
        write_private(path, token.encode())
        return path


def access_policy(app: str, kind: str) -> dict[str, object]:
    """Who may drive an app's workflows. No policy would mean everybody, so every app has one."""
    rules: list[dict[str, object]] = []
    if kind != "gateway":
        name = "invoke" if kind == "toolhost" else "start_run"
        rules = [{"callers": [{"appID": "gateway"}], "activities": [{"name": name}]}]
    return {
        "apiVersion": "dapr.io/v1alpha1",
        "kind": "WorkflowAccessPolicy",
        "metadata": {"name": f"access-{app}"},
        "scopes": [app],
        "spec": {"rules": rules},
    }


def _side_ports() -> list[str]:
    return [
        "--healthz-port", str(free_port()), "--healthz-listen-address", LOOPBACK,
        "--metrics-port", str(free_port()), "--metrics-listen-address", LOOPBACK,
    ]  # fmt: skip


def _sentry_configuration(jwks: Path) -> dict[str, object]:
    # Without a validator a self-hosted Sentry signs any name for anyone who reaches its port.
    validator = {"name": "jwks", "options": {"source": str(jwks)}}
    return {
        "apiVersion": "dapr.io/v1alpha1",
        "kind": "Configuration",
        "metadata": {"name": "sentry"},
        "spec": {"mtls": {"enabled": True, "workloadCertTTL": "24h", "tokenValidators": [validator]}},
    }


def _app_configuration() -> dict[str, object]:
    return {
        "apiVersion": "dapr.io/v1alpha1",
        "kind": "Configuration",
        "metadata": {"name": "meshgate"},
        "spec": {
            "features": [{"name": "WorkflowHistorySigning", "enabled": True}],
            "metric": {"enabled": True},
            "tracing": {"samplingRate": "0"},
        },
    }


def _state_store(database: Path, apps: Mapping[str, str]) -> dict[str, object]:
    metadata = {
        "actorStateStore": "true",
        "connectionString": f"file:{database}?_txlock=immediate",
        "timeout": "20s",
        "busyTimeout": "15s",
    }
    return {
        "apiVersion": "dapr.io/v1alpha1",
        "kind": "Component",
        "metadata": {"name": "actors"},
        "spec": {
            "type": "state.sqlite",
            "version": "v1",
            "metadata": [{"name": name, "value": value} for name, value in metadata.items()],
        },
        "scopes": sorted(apps),
    }


def _write_yaml(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False))
