"""What the Dapr plane of a real mesh is like from outside, and that a hole in it stops the start."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from fakes import live_mesh
from fakes.attacked_mesh import MESH, PROJECT, Attacked, ask
from fakes.live_mesh import LiveMesh, abstract_listeners
from meshgate_deploy.enrolment import Enroller
from meshgate_deploy.sockets import tcp_listeners

pytestmark = [pytest.mark.plane, pytest.mark.timeout(300)]

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
SIDECARS = ("gateway", "orders", "nightly", "weekly")


def _metadata(attacked: Attacked, app: str, token: str) -> tuple[int, str]:
    return ask("GET", f"{attacked.api(app)}/v1.0/metadata", token)


def test_every_listener_is_on_loopback(attacked: Attacked) -> None:
    """Services, health and metrics of every process that the supervisor started, and its own."""
    pids = live_mesh.started_in(attacked.mesh.pid)
    assert set(attacked.mesh.pids.values()) < set(pids)
    found = live_mesh.listeners(pids)
    # Sentry has 2, placement 4, scheduler 3, each of the sidecars 4, the gateway 1.
    assert len(found) >= 2 + 4 + 3 + 4 * len(SIDECARS) + 1
    assert {row for row in found if row[0] not in LOOPBACK} == set()


def test_the_scheduler_s_store_has_no_port(attacked: Attacked) -> None:
    """It has ports for service, health and metrics; none of them speaks etcd."""
    ports = [port for _, port in tcp_listeners(attacked.mesh.pids["scheduler"])]
    assert len(ports) == 3
    assert {_asks_the_store(f"127.0.0.1:{port}") for port in ports} == {"UNAVAILABLE"}


def test_the_scheduler_s_store_takes_its_own_process_alone(attacked: Attacked) -> None:
    """Whoever finds its socket, even as the same user, gets no answer."""
    names = abstract_listeners(attacked.mesh.pids["scheduler"])
    assert len(names) == 1
    assert _asks_the_store(f"unix-abstract:{names[0]}") == "UNAVAILABLE"


def _asks_the_store(target: str) -> str:
    """The status of a read of etcd; were it served, it would miss the key (INVALID_ARGUMENT)."""
    with grpc.insecure_channel(target) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/etcdserverpb.KV/Range")(b"", timeout=20)
    return str(caught.value.code().name)


@pytest.mark.parametrize("app", SIDECARS)
def test_a_sidecar_asks_for_its_own_token(attacked: Attacked, app: str) -> None:
    """None, a wrong one, and another app's: 401 each."""
    other = "weekly" if app == "gateway" else "gateway"
    for token in ("", "wrong", attacked.mesh.secret(f"{other}.dapr-api")):
        status, _ = _metadata(attacked, app, token)
        assert status == 401, token
    status, _ = _metadata(attacked, app, attacked.mesh.secret(f"{app}.dapr-api"))
    assert status == 200


def _own_key() -> str:
    """Shaped like the supervisor's, signed by somebody else."""
    return Enroller(control_trust_domain="dapr.desk.example", namespace=MESH).for_app("nightly")


def _unsigned() -> str:
    """The same claims with `alg: none`."""
    _, claims, _ = _own_key().split(".")
    header = base64.urlsafe_b64encode(json.dumps({"alg": "none"}).encode()).rstrip(b"=").decode()
    return f"{header}.{claims}."


@pytest.mark.parametrize(
    ("app", "made"),
    [("gateway", None), ("orders", None), ("nightly", ""), ("nightly", _own_key), ("nightly", _unsigned)],
    ids=["as the gateway", "as a tool host", "no token", "own key", "unsigned"],
)
def test_sentry_signs_for_the_supervisor_s_tokens_only(attacked: Attacked, app: str, made: object) -> None:
    """An agent's token is no other app's; a token of one's own making is nobody's."""
    token = made() if callable(made) else made
    token = attacked.mesh.secret("nightly.enrol") if token is None else str(token)
    answer, enrolled = attacked.enrol(app, token)
    assert answer.status == "PERMISSION_DENIED"
    assert enrolled is None


def test_sentry_signs_as_what_the_token_says(attacked: Attacked) -> None:
    """The counterpart: refused above for no other reason than the token."""
    answer, enrolled = attacked.enrol("nightly", attacked.mesh.secret("nightly.enrol"))
    assert enrolled is not None, answer
    assert enrolled.spiffe_id == f"spiffe://public/ns/{MESH}/nightly"


def test_histories_are_signed(attacked: Attacked) -> None:
    """Every sidecar says so, and a call's history has its signatures in the store."""
    for app in SIDECARS:
        _, text = _metadata(attacked, app, attacked.mesh.secret(f"{app}.dapr-api"))
        assert "WorkflowHistorySigning" in json.loads(text)["enabledFeatures"]
    (call_id,) = attacked.ran("refund", "S-1")
    parts = {key.split("||")[-1].rpartition("-")[0] for key in attacked.histories(call_id)}
    assert {"history", "signature"} <= parts


def test_doctor_shows_the_plane(attacked: Attacked) -> None:
    """While a mesh is up, its probes are among the checks, and all is well."""
    checks = {row["check"]: row for row in attacked.mesh.asked("doctor")}
    assert [name for name, row in checks.items() if not row["ok"]] == []
    expected = {"sentry enrols only our tokens", "every listener is on loopback"}
    for app in SIDECARS:
        expected |= {f"sidecar of {app} {what}" for what in ("asks for its token", "signs histories")}
        expected |= {f"sidecar of {app} has its access policy"}
    for target in ("gateway", "orders"):
        for agent in ("nightly", "weekly"):
            expected |= {f"policy on {target} refuses {agent} ({kind})" for kind in ("workflow", "activity")}
    assert expected <= set(checks)


def _fingerprints(attacked: Attacked) -> dict[str, str]:
    folder = attacked.root / ".meshgate/ca/dapr"
    read = {
        name: x509.load_pem_x509_certificate((folder / name).read_bytes())
        for name in ("ca.crt", "issuer.crt")
    }
    return {name: found.fingerprint(hashes.SHA256()).hex() for name, found in read.items()}


def test_root_and_issuer_outlive_a_start(attacked: Attacked) -> None:
    """The same root and issuer after `down` and `up`; an enrolment token of before is worth nothing."""
    before, stale = _fingerprints(attacked), attacked.mesh.secret("nightly.enrol")
    attacked.mesh.down()
    attacked.mesh.up()
    assert _fingerprints(attacked) == before
    answer, enrolled = attacked.enrol("nightly", attacked.mesh.secret("nightly.enrol"))
    assert enrolled is not None, answer
    answer, _ = attacked.enrol("nightly", stale)
    assert answer.status == "PERMISSION_DENIED"


@pytest.fixture
def holed(tmp_path: Path) -> Iterator[LiveMesh]:
    """A project whose mesh is not up."""
    mesh = LiveMesh(tmp_path, PROJECT)
    yield mesh
    mesh.remove()


@pytest.mark.parametrize("app", ["gateway", "orders", "weekly"])
def test_a_lost_policy_stops_the_start(holed: LiveMesh, app: str) -> None:
    """Status 6, what is open, the next command, and no process left."""
    done = holed.without_policy(app)
    assert done.returncode == 6, done.stderr
    assert "the Dapr plane does not refuse what it must" in done.stderr
    assert f"sidecar of {app} has its access policy: none" in done.stderr
    assert f"meshgate logs dapr-{app}" in done.stderr
    if app != "weekly":  # nothing runs there yet: its policy is looked at, no attack is tried
        assert f"policy on {app} refuses nightly (workflow): 200" in done.stderr
    assert not (holed.root / ".meshgate/run/control.sock").exists()
