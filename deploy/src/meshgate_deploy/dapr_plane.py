"""How each Dapr process is called: arguments, environment, health address. Starts nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshgate_deploy.enrolment import CONTROL_NAMESPACE
from meshgate_deploy.ports import LOOPBACK
from meshgate_deploy.state import State

MAX_BODY = "4Mi"  # only call ids travel; histories stay far below


@dataclass(frozen=True, slots=True)
class Plane:
    """What every Dapr process of one mesh shares.

    Attributes:
        sentry, placement, scheduler: `host:port`, empty while not started yet.
        trust_anchors: PEM of Sentry's root.
    """

    mesh: str
    trust_domain: str
    sentry: str
    placement: str
    scheduler: str
    trust_anchors: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One process to start.

    Attributes:
        address: where its peers reach it.
        health: URL that answers 2xx when it is ready.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    address: str
    health: str


def control_trust_domain(trust_domain: str) -> str:
    """The control plane's own trust domain; apps of a self-hosted Dapr are always in `public`."""
    return f"dapr.{trust_domain}"


def token_file(state: State, name: str) -> Path:
    """Where the enrolment token of a process lies."""
    return state.run / f"{name}.enrol"


def api_token_file(state: State, app: str) -> Path:
    """Where the API token of an app's sidecar lies."""
    return state.run / f"{app}.dapr-api"


def sentry(binary: Sequence[str], state: State, trust_domain: str, ports: Sequence[int]) -> Invocation:
    """Sentry, validating by JWKS. `ports`: service, health, metrics."""
    port, health, metrics = ports
    argv = (
        *binary, "--config", str(state.generated / "dapr" / "sentry.yaml"),
        "--issuer-credentials", str(state.dapr_ca),
        "--trust-domain", control_trust_domain(trust_domain),
        "--port", str(port), "--listen-address", LOOPBACK, *_side_ports(health, metrics),
        "--enable-metrics=false",  # Sentry ignores the metrics address and would listen everywhere
    )  # fmt: skip
    env = {"NAMESPACE": CONTROL_NAMESPACE}
    return Invocation(argv=argv, env=env, address=f"{LOOPBACK}:{port}", health=_healthz(health))


def placement(binary: Sequence[str], state: State, plane: Plane, ports: Sequence[int]) -> Invocation:
    """Placement. `ports`: service, health, metrics, raft."""
    port, health, metrics, raft = ports
    argv = (
        *binary, *_control_flags(state, plane), "--port", str(port), "--listen-address", LOOPBACK,
        "--initial-cluster", f"dapr-placement-0={LOOPBACK}:{raft}", *_side_ports(health, metrics),
    )  # fmt: skip
    env = {"NAMESPACE": CONTROL_NAMESPACE, "DAPR_SENTRY_TOKEN_FILE": str(token_file(state, "placement"))}
    return Invocation(argv=argv, env=env, address=f"{LOOPBACK}:{port}", health=_healthz(health))


def scheduler(binary: Sequence[str], state: State, plane: Plane, ports: Sequence[int]) -> Invocation:
    """Scheduler, whose store has no port. `ports`: service, health, metrics."""
    port, health, metrics = ports
    argv = (
        *binary, *_control_flags(state, plane), "--port", str(port), "--listen-address", LOOPBACK,
        "--override-broadcast-host-port", f"{LOOPBACK}:{port}",
        "--etcd-data-dir", str(state.data / "scheduler"), *_side_ports(health, metrics),
    )  # fmt: skip
    env = {"NAMESPACE": CONTROL_NAMESPACE, "DAPR_SENTRY_TOKEN_FILE": str(token_file(state, "scheduler"))}
    return Invocation(argv=argv, env=env, address=f"{LOOPBACK}:{port}", health=_healthz(health))


def sidecar(  # noqa: PLR0913 - the parts of one command line
    binary: Sequence[str], state: State, plane: Plane, *, app: str, ports: Sequence[int], api_token: str
) -> Invocation:
    """An app's sidecar. `ports`: gRPC API, HTTP API, internal, metrics. Its address is the gRPC API's."""
    grpc, http, internal, metrics = ports
    argv = (
        *binary, "--app-id", app, "--enable-mtls", "--sentry-address", plane.sentry,
        "--control-plane-trust-domain", control_trust_domain(plane.trust_domain),
        "--control-plane-namespace", CONTROL_NAMESPACE,
        "--placement-host-address", plane.placement, "--scheduler-host-address", plane.scheduler,
        "--resources-path", str(state.generated / "dapr" / "resources"),
        "--config", str(state.generated / "dapr" / "config.yaml"),
        "--dapr-grpc-port", str(grpc), "--dapr-http-port", str(http),
        "--dapr-internal-grpc-port", str(internal), "--dapr-internal-grpc-listen-address", LOOPBACK,
        "--dapr-listen-addresses", LOOPBACK, "--metrics-port", str(metrics),
        "--metrics-listen-address", LOOPBACK, "--max-body-size", MAX_BODY, "--log-as-json",
    )  # fmt: skip
    env = {
        "NAMESPACE": plane.mesh,
        "DAPR_TRUST_ANCHORS": plane.trust_anchors,
        "DAPR_SENTRY_TOKEN_FILE": str(token_file(state, app)),
        "DAPR_CONTROLPLANE_NAMESPACE": CONTROL_NAMESPACE,
        "DAPR_API_TOKEN": api_token,
    }
    health = f"http://{LOOPBACK}:{http}/v1.0/healthz/outbound"
    return Invocation(argv=argv, env=env, address=f"{LOOPBACK}:{grpc}", health=health)


def _control_flags(state: State, plane: Plane) -> tuple[str, ...]:
    return (
        "--tls-enabled", "--sentry-address", plane.sentry,
        "--trust-domain", control_trust_domain(plane.trust_domain),
        "--trust-anchors-file", str(state.dapr_ca / "ca.crt"),
    )  # fmt: skip


def _side_ports(health: int, metrics: int) -> tuple[str, ...]:
    return (
        "--healthz-port", str(health), "--healthz-listen-address", LOOPBACK,
        "--metrics-port", str(metrics), "--metrics-listen-address", LOOPBACK, "--log-as-json",
    )  # fmt: skip


def _healthz(port: int) -> str:
    return f"http://{LOOPBACK}:{port}/healthz"
