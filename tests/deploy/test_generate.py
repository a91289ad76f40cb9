"""The generated Dapr resources: policies on every app, signing on, loopback only."""

import base64
import contextlib
import json
import sqlite3

import pytest
import yaml
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from meshgate_deploy import dapr_plane, generate, store_url
from meshgate_deploy.enrolment import Enroller
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.ports import LOOPBACK, free_ports
from meshgate_deploy.state import prepare_state


@pytest.fixture
def manifest() -> Manifest:
    """One app of each kind."""
    return Manifest.model_validate(
        {
            "apiVersion": "meshgate/v1",
            "mesh": "m",
            "trustDomain": "m.example",
            "crews": {"desk": {"crew": "a.b:c"}},
            "programs": {"nightly": {"run": ["python", "n.py"]}},
            "toolhosts": {"orders": {"tools": ["a.b:c"]}},
        }
    )


@pytest.fixture
def state(tmp_path):
    """A fresh state folder."""
    return prepare_state(tmp_path)


def _load(path):
    return yaml.safe_load(path.read_text())


def test_every_app_has_a_policy_of_its_own(manifest, state):
    """No policy would mean that everybody may do everything to it."""
    generate.dapr_resources(manifest, state)
    policies = [_load(p) for p in (state.generated / "dapr" / "resources").glob("policy-*.yaml")]
    assert sorted(p["scopes"] for p in policies) == [[app] for app in sorted(manifest.apps)]
    callers = {
        p["scopes"][0]: [c["appID"] for r in p["spec"]["rules"] for c in r["callers"]] for p in policies
    }
    assert callers.pop("gateway") == [generate.NOBODY]
    assert set(map(tuple, callers.values())) == {("gateway",)}
    assert generate.NOBODY not in manifest.apps


def test_sidecars_meet_an_actor_store_that_is_in_wal_mode(state):
    """A new file that many switch at once is "database is locked" for one of them; twice is no error."""
    for _ in range(2):
        generate.make_actor_store(state)
        with contextlib.closing(sqlite3.connect(generate.actor_store_file(state))) as database:
            assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert generate.actor_store_file(state).stat().st_mode & 0o777 == 0o600


def test_the_actor_store_follows_to_the_server(manifest, state):
    """Dapr's own tables lie beside the gateway's; who logs in is in the sidecars' environment only."""
    store = "postgresql://m@db.example:5433/d?sslmode=verify-full&sslrootcert=/etc/ca.pem"
    spec = generate.actor_store(manifest.model_copy(update={"store": store}), state)["spec"]
    given = {row["name"]: row["value"] for row in spec["metadata"]}
    assert (spec["type"], spec["version"]) == ("state.postgresql", "v2")
    assert given["actorStateStore"] == "true"
    assert given["tablePrefix"] == "meshgate_dapr_"
    assert given["connectionString"].startswith(
        "postgresql://db.example:5433/d?sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem&"
    )
    assert "synchronous_commit=on" in given["connectionString"]
    assert store_url.for_dapr(store)[1] == "m"
    assert store_url.for_dapr("postgresql:///d?user=n&host=/run/pg")[1] == "n"


def test_hosts_and_agents_open_one_activity_each(manifest):
    """`invoke` at a host, `start_run` at an agent, no workflow anywhere."""
    for app, activity in (("orders", "invoke"), ("desk", "start_run"), ("nightly", "start_run")):
        (rule,) = generate.access_policy(manifest, app)["spec"]["rules"]
        assert [a["name"] for a in rule["activities"]] == [activity]
        assert "workflows" not in rule


def test_signing_is_on_and_sentry_asks_for_tokens(manifest, state):
    """What the probes look for at run time is what is written."""
    generate.dapr_resources(manifest, state)
    features = {
        f["name"]: f["enabled"] for f in _load(state.generated / "dapr" / "config.yaml")["spec"]["features"]
    }
    assert features == {"WorkflowHistorySigning": True, "HotReload": False}
    validators = _load(state.generated / "dapr" / "sentry.yaml")["spec"]["mtls"]["tokenValidators"]
    assert [v["name"] for v in validators] == ["jwks"]


def test_removed_apps_leave_no_resource_behind(manifest, state):
    """A second generation starts from an empty folder."""
    stale = state.generated / "dapr" / "resources"
    stale.mkdir(parents=True)
    (stale / "policy-old.yaml").write_text("{}")
    generate.dapr_resources(manifest, state)
    assert not (stale / "policy-old.yaml").exists()


def test_no_process_of_dapr_listens_beyond_loopback(state):
    """Every listener that a flag can move is on loopback."""
    plane = dapr_plane.Plane("m", "m.example", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "PEM")
    made = [
        dapr_plane.sentry(["sentry"], state, "m.example", [1, 2, 3]),
        dapr_plane.placement(["placement"], state, plane, [1, 2, 3, 4]),
        dapr_plane.scheduler(["scheduler"], state, plane, [1, 2, 3]),
        dapr_plane.sidecar(["daprd"], state, plane, app="desk", ports=[1, 2, 3, 4], api_token="t"),
    ]
    for invocation in made:
        flags = dict(zip(invocation.argv, invocation.argv[1:], strict=False))
        addresses = [
            value for name, value in flags.items() if name.endswith(("listen-address", "listen-addresses"))
        ]
        assert len(addresses) >= 3
        assert set(addresses) == {LOOPBACK}
    assert made[-1].env["DAPR_API_TOKEN"] == "t"
    assert "t" not in made[-1].argv


def test_a_token_enrols_one_app_and_is_signed(state):
    """The subject is the app, the audience Sentry, and the JWKS verifies it."""
    enroller = Enroller(control_trust_domain="dapr.m.example", namespace="m")
    enroller.write_jwks(state.run / "jwks.json")
    (key,) = json.loads((state.run / "jwks.json").read_bytes())["keys"]
    header, claims, signature = enroller.for_app("desk").split(".")
    assert _json(header) | {"kid": key["kid"]} == _json(header)
    assert _json(claims)["sub"] == "spiffe://public/ns/m/desk"
    assert _json(claims)["aud"] == ["spiffe://dapr.m.example/ns/dapr-system/dapr-sentry"]
    x, y = (int.from_bytes(_bytes(key[name])) for name in "xy")
    public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    raw = _bytes(signature)
    der = encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
    public.verify(der, f"{header}.{claims}".encode(), ec.ECDSA(hashes.SHA256()))
    assert "d" not in key


def test_free_ports_differ_and_lie_below_the_ephemeral_range():
    """An outgoing connection cannot take a port between choice and use."""
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(20_000 <= port < 32_000 for port in ports)


def test_state_is_for_its_owner_only(state):
    """Folders 0700."""
    for folder in (state.root, state.run, state.data, state.logs, state.generated, state.dapr_ca):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_long_project_paths_get_short_sockets(tmp_path):
    """Sockets of a deep project lie in a private folder that the next start finds again."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    first, second = prepare_state(deep), prepare_state(deep)
    assert first.sockets == second.sockets
    assert len(str(first.control)) < 108
    assert first.sockets.stat().st_mode & 0o777 == 0o700
    first.sockets.rmdir()


def _bytes(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _json(text):
    return json.loads(_bytes(text))
