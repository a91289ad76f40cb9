"""The steps of an activation when one of them fails: the old policy stays, and the message says so."""

import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from meshgate_deploy import activation as activations
from meshgate_deploy.activation import Activation
from meshgate_deploy.errors import DependencyUnavailable, MeshError, PolicyProblems, Problem
from meshgate_deploy.policy_plane import Policy
from meshgate_deploy.services import Service
from meshgate_policies.bundle import BundleInfo

PROBLEM = Problem("policies/desk.rego", 3, "bad", "good")


def _policy(revision: str, listing: dict[str, list[str]]) -> Policy:
    return Policy(
        built=BundleInfo(revision, f"sha-{revision}", Path(f"/b/{revision}")),
        service=Service("opa", lambda _: None),
        folder=Path(f"/p/{revision}"), socket=Path(f"/s/{revision}"), gateway_token="g", own_token="o",
        listing=listing,
    )  # fmt: skip


class Plane:
    """Stands for PolicyPlane; `fails` names the step that does."""

    def __init__(self) -> None:
        self.active: Any = _policy("r1", {"desk": ["a.old", "a.both"]})
        self.fails: dict[str, MeshError] = {}
        self.next = "r2"
        self.discarded: list[str] = []

    def _step(self, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]

    def sources(self) -> Any:
        return nullcontext(self)

    def build(self, sources: object) -> BundleInfo:
        assert sources is self
        self._step("build")
        return BundleInfo(self.next, f"sha-{self.next}", Path("/b"))

    def test(self, sources: object) -> int:
        assert sources is self
        self._step("test")
        return 3

    def engine(self, built: BundleInfo) -> Policy:
        return _policy(built.revision, {})

    def rehearse(self, policy: Policy, _tools: object) -> Policy:
        self._step("rehearse")
        return _policy(policy.revision, {"desk": ["a.both", "a.new"]})

    def discard(self, policy: Policy) -> None:
        self.discarded.append(policy.revision)


class FakeServices:
    """Counts what runs."""

    def __init__(self, plane: Plane) -> None:
        self.plane, self.started, self.retired = plane, 0, 0

    def start(self, _service: Service) -> None:
        self.plane._step("start")
        self.started += 1

    def retire(self, _service: Service) -> None:
        self.retired += 1


class FakeGateway:
    """Holds a revision; can refuse, lose its answer after the switch, or be away."""

    def __init__(self) -> None:
        self.revision, self.asked = "r1", []
        self.refuses: MeshError | None = None
        self.loses_answer = self.dies = self.away = False

    def call(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        if self.away:
            raise DependencyUnavailable("away")
        if method == "Status":
            return {"policy_revision": self.revision}
        self.asked.append(request)
        self.away = self.dies
        if self.refuses:
            raise self.refuses
        self.revision = request["revision"]
        if self.loses_answer:
            raise DependencyUnavailable("no answer in time")
        return {"revision": self.revision}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch):
    """An activation among fakes."""
    monkeypatch.setattr(activations, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(activations, "POLL_SECONDS", 0.001)
    plane, gateway = Plane(), FakeGateway()
    services = FakeServices(plane)
    made = Activation(plane=plane, services=services, gateway=gateway, tools={})
    return made, plane, services, gateway


def test_the_switch_names_place_listing_and_operator(parts) -> None:
    """What the gateway is told belongs to one policy; the OPA before is stopped afterwards."""
    activation, plane, services, gateway = parts
    told = activation.activate(dry_run=False, say=lambda _: None)
    (request,) = gateway.asked
    assert request.pop("operator")
    assert request == {
        "socket_path": "/s/r2", "token_file": "/p/r2/gateway.token", "revision": "r2", "digest": "sha-r2",
        "listing_file": "/p/r2/listing.json",
    }  # fmt: skip
    assert told == {
        "status": "activated", "revision": {"old": "r1", "new": "r2"}, "digest": "sha-r2",
        "appear": [{"app": "desk", "tool": "a.new"}], "vanish": [{"app": "desk", "tool": "a.old"}],
    }  # fmt: skip
    assert (plane.active.revision, plane.discarded, services.retired) == ("r2", ["r1"], 1)


@pytest.mark.parametrize(
    ("step", "error", "started"),
    [
        ("build", PolicyProblems([PROBLEM]), 0),
        ("test", PolicyProblems([PROBLEM]), 0),
        ("start", DependencyUnavailable("opa did not start"), 0),
        ("rehearse", DependencyUnavailable("OPA did not take the policies"), 1),
    ],
)
def test_a_failing_step_leaves_the_old_policy(parts, step: str, error: MeshError, started: int) -> None:
    """The gateway is not asked, the second OPA is gone; the error keeps its kind, says what is in force."""
    activation, plane, services, gateway = parts
    old, plane.fails[step] = plane.active, error
    with pytest.raises(type(error)) as caught:
        activation.activate(dry_run=False, say=lambda _: None)
    assert caught.value.what.endswith("; nothing was changed, policy r1 stays in force")
    assert (plane.active, gateway.asked, services.started) == (old, [], started)
    assert plane.discarded == (["r2"] if step in ("start", "rehearse") else [])


def test_a_gateway_that_refuses_keeps_the_old_policy(parts) -> None:
    """Its reason is told; the second OPA is stopped."""
    activation, plane, _, gateway = parts
    gateway.refuses = MeshError("the gateway did not accept ActivatePolicy", why="listing_mismatch")
    with pytest.raises(MeshError) as caught:
        activation.activate(dry_run=False, say=lambda _: None)
    assert caught.value.what.endswith("policy r1 stays in force")
    assert caught.value.why == "listing_mismatch"
    assert (plane.active.revision, plane.discarded) == ("r1", ["r2"])


def test_a_lost_answer_is_looked_up(parts) -> None:
    """The switch happened although nobody heard of it: the gateway's word counts."""
    activation, plane, _, gateway = parts
    gateway.loses_answer = True
    assert activation.activate(dry_run=False, say=lambda _: None)["status"] == "activated"
    assert (plane.active.revision, plane.discarded) == ("r2", ["r1"])


@pytest.mark.parametrize("came_back_with", ["r1", "r2"])
def test_an_unknown_outcome_keeps_both_engines_until_it_is_known(parts, came_back_with: str) -> None:
    """No claim is made while the gateway is away; the next activation stops what is not in force."""
    activation, plane, services, gateway = parts
    gateway.dies, gateway.loses_answer = True, True
    with pytest.raises(DependencyUnavailable, match="does not say which policy is in force") as caught:
        activation.activate(dry_run=False, say=lambda _: None)
    assert "stays in force" not in str(caught.value.what)
    assert (services.retired, plane.discarded) == (0, [])
    gateway.away = gateway.dies = gateway.loses_answer = False
    gateway.revision = plane.next = came_back_with
    assert activation.activate(dry_run=False, say=lambda _: None)["status"] == "unchanged"
    assert plane.active.revision == came_back_with
    assert plane.discarded == [{"r1": "r2", "r2": "r1"}[came_back_with]]


def test_a_dry_run_stops_what_it_started(parts) -> None:
    """The gateway is only asked for its revision."""
    activation, plane, services, gateway = parts
    assert activation.activate(dry_run=True, say=lambda _: None)["status"] == "would_activate"
    assert (plane.active.revision, gateway.asked) == ("r1", [])
    assert (services.started, services.retired, plane.discarded) == (1, 1, ["r2"])


def test_unchanged_policies_start_nothing(parts) -> None:
    """Same sources, same revision."""
    activation, plane, services, gateway = parts
    plane.next = "r1"
    told = activation.activate(dry_run=False, say=lambda _: None)
    assert (told["status"], told["appear"], told["vanish"]) == ("unchanged", [], [])
    assert (services.started, gateway.asked) == (0, [])


def test_one_activation_at_a_time(parts) -> None:
    """A second one is refused while the first is under way, and possible after it."""
    activation, plane, _, _ = parts
    reached, go_on = threading.Event(), threading.Event()

    def wait(_sources: object) -> int:
        reached.set()
        go_on.wait(20)
        return 1

    plane.test = wait
    first = threading.Thread(target=activation.activate, kwargs={"dry_run": True, "say": lambda _: None})
    first.start()
    assert reached.wait(20)
    with pytest.raises(DependencyUnavailable, match="under way"):
        activation.activate(dry_run=True, say=lambda _: None)
    go_on.set()
    first.join(20)
    assert activation.activate(dry_run=True, say=lambda _: None)["status"] == "would_activate"
