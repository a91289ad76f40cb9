"""Shows that the Dapr plane refuses what it must. Sends real requests through real sidecars."""

import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshgate_deploy.dapr_plane import Invocation
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.processes import tail
from meshgate_deploy.state import State

PROBE_SECONDS = 10.0  # daprd itself looks 5 s for an actor that nobody hosts
REGISTER_SECONDS = 10.0
POLL_SECONDS = 0.05
NO_HOST = "did not find address for actor"
HTTP_OK = 200
HTTP_UNAUTHORIZED = 401

Metadata = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        ok: whether it is as it must be.
        fix: what to do when it is not.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A running sidecar and its token."""

    app: str
    http: str
    token: str

    @classmethod
    def of(cls, app: str, invocation: Invocation) -> "Sidecar":
        """From what it was started with."""
        base = invocation.health.removesuffix("/v1.0/healthz/outbound")
        return cls(app, base, invocation.env["DAPR_API_TOKEN"])


def check_plane(manifest: Manifest, state: State, sidecars: Mapping[str, Invocation]) -> list[Check]:
    """Every check on a plane that is up."""
    known = [Sidecar.of(app, made) for app, made in sidecars.items()]
    told = {sidecar.app: _metadata(sidecar) for sidecar in known}
    checks = [_sentry_validates(state)]
    for sidecar in known:
        checks += [
            _asks_for_token(sidecar),
            _signs(sidecar.app, told[sidecar.app]),
            _has_policy(sidecar.app, told[sidecar.app]),
        ]
    for attacker in known:
        if attacker.app in manifest.runners:
            targets = [app for app in told if app != attacker.app and _reachable(manifest, app, told[app])]
            checks += _policies_bite(manifest, attacker, targets)
    return checks


def _reachable(manifest: Manifest, app: str, told: Metadata) -> bool:
    """An agent's app has a worker only while it runs; its policy is loaded all the same."""
    return app not in manifest.runners or bool(told.get("workflows", {}).get("connectedWorkers"))


def _policies_bite(manifest: Manifest, attacker: Sidecar, targets: Sequence[str]) -> list[Check]:
    """An agent's own sidecar, asked with its own token, reaches no other app's workflows."""
    checks = []
    for target in targets:
        for actor in ("workflow", "activity"):
            refused, detail = _refused(manifest, attacker, target, actor)
            name = f"policy on {target} refuses {attacker.app} ({actor})"
            checks.append(Check(name, refused, detail, _policy_fix(target)))
    return checks


def _policy_fix(app: str) -> str:
    return f"remove .meshgate/generated and run meshgate up; see meshgate logs dapr-{app}"


def _refused(manifest: Manifest, attacker: Sidecar, target: str, actor: str) -> tuple[bool, str]:
    """Whether a forged start is refused *by the policy*: an error for another reason proves nothing."""
    method = "CreateWorkflowInstance" if actor == "workflow" else "Execute"
    kind = f"dapr.internal.{manifest.mesh}.{target}.{actor}"
    instance = f"meshgate-probe-{uuid.uuid4().hex}" + ("::0::1" if actor == "activity" else "")
    url = f"{attacker.http}/v1.0/actors/{kind}/{instance}/method/{method}"
    body = forged_start(instance) if actor == "workflow" else forged_activity(instance)
    give_up_at = time.monotonic() + REGISTER_SECONDS
    status, text = put(url, attacker.token, body)
    while NO_HOST in text and time.monotonic() < give_up_at:  # the worker is there, placement not yet
        time.sleep(POLL_SECONDS)
        status, text = put(url, attacker.token, body)
    refused = _names_policy(status, text)
    return refused, "refused by its access policy" if refused else f"{status} {text[:160]}"


def _names_policy(status: int, text: str) -> bool:
    return status != HTTP_OK and "access denied by workflow access policy" in text


def forged_start(instance: str, name: str = "call") -> bytes:
    """A CreateWorkflowInstanceRequest as the engine sends it (backend_service.proto)."""
    started = _text(1, name) + _field(3, _wrapped(instance)) + _field(4, _field(1, instance.encode()))
    return _field(1, _MINUS_ONE + _field(3, started))


def forged_activity(instance: str, name: str = "invoke") -> bytes:
    """A history event that schedules an activity (history_events.proto); eventId 0 is left out."""
    return _field(6, _text(1, name) + _field(3, _wrapped(instance)))


def forged_completion(task: int = 0) -> bytes:
    """A history event that says that a task is done."""
    done = bytes([1 << 3, task]) + _field(2, _field(1, b'"forged"'))
    return _MINUS_ONE + _field(7, done)


_MINUS_ONE = bytes([1 << 3]) + b"\xff" * 9 + b"\x01"  # HistoryEvent.eventId = -1


def _wrapped(instance: str) -> bytes:
    """A StringValue that holds the input of `call` and `invoke`."""
    return _field(1, json.dumps({"call_id": instance, "host": "none"}).encode())


def _text(number: int, value: str) -> bytes:
    return _field(number, value.encode())


def _field(number: int, value: bytes) -> bytes:
    """One length-delimited protobuf field."""
    size, digits = len(value), bytearray()
    while True:
        size, low = size >> 7, size & 0x7F
        digits.append(low | (0x80 if size else 0))
        if not size:
            return bytes([number << 3 | 2]) + bytes(digits) + value


def _sentry_validates(state: State) -> Check:
    log = state.log("sentry")
    configuration = (state.generated / "dapr" / "sentry.yaml").read_text()
    ok = "name: jwks" in configuration
    detail = "validator jwks" if ok else "no jwks validator"
    if "Insecure" in tail(log, 65_536):
        ok, detail = False, "its log names the insecure validator"
    return Check(
        "sentry enrols only our tokens", ok, detail, "remove .meshgate/generated and run meshgate up"
    )


def _asks_for_token(sidecar: Sidecar) -> Check:
    status, _ = _get(f"{sidecar.http}/v1.0/metadata", "")
    name = f"sidecar of {sidecar.app} asks for its token"
    return Check(
        name, status == HTTP_UNAUTHORIZED, f"without a token: {status}", "meshgate down, meshgate up"
    )


def _metadata(sidecar: Sidecar) -> Metadata:
    """What a sidecar says of itself; empty when it says nothing."""
    status, text = _get(f"{sidecar.http}/v1.0/metadata", sidecar.token)
    try:
        answer = json.loads(text) if status == HTTP_OK else {}
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _signs(app: str, told: Metadata) -> Check:
    features = told.get("enabledFeatures", [])
    version = str(told.get("runtimeVersion", ""))
    on = "WorkflowHistorySigning" in features and "WorkflowsClusteredDeployment" not in features
    known = version not in ("", "edge")
    detail = f"daprd {version or '?'}, features {', '.join(features) or 'none'}"
    return Check(f"sidecar of {app} signs histories", on and known, detail, "meshgate runtime show")


def _has_policy(app: str, told: Metadata) -> Check:
    names = [str(policy.get("name")) for policy in told.get("workflowAccessPolicies", [])]
    detail = ", ".join(names) or "none: everybody may start and change its workflows"
    return Check(f"sidecar of {app} has its access policy", names == [app], detail, _policy_fix(app))


def _get(url: str, token: str) -> tuple[int, str]:
    return _ask(urllib.request.Request(url, headers={"dapr-api-token": token} if token else {}))  # noqa: S310 - loopback


def put(url: str, token: str, body: bytes) -> tuple[int, str]:
    """A PUT through a sidecar's HTTP API."""
    headers = {"dapr-api-token": token, "content-type": "application/x-protobuf"}
    return _ask(urllib.request.Request(url, data=body, headers=headers, method="PUT"))  # noqa: S310 - loopback


def _ask(request: urllib.request.Request) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=PROBE_SECONDS) as answer:
            return int(answer.status), answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace")
    except OSError as error:
        return 0, str(error)
