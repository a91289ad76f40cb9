"""A real OPA on a Unix socket, and the strict reading of what it says."""

import http.client
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from meshgate_policies import bundle, opa
from meshgate_policies.check import check_policies, run_policy_tests
from meshgate_policies.engine import OpaEngine, UnixConnection
from meshgate_policies.errors import PolicyInvalid, PolicyUnavailable
from meshgate_policies.judge import judge
from meshgate_policies.scaffold import agent_package

TOKENS = {"gateway": "gateway-token", "supervisor": "supervisor-token"}


@dataclass
class RunningOpa:
    """A started OPA."""

    process: subprocess.Popen[bytes]
    socket: Path

    def engine(self, token: str = TOKENS["gateway"]) -> OpaEngine:
        return OpaEngine(socket_path=str(self.socket), token=token)


@pytest.fixture
def running(opa_command: tuple[str, ...], tmp_path: Path) -> Iterator[RunningOpa]:
    """An OPA that serves a scaffolded policy."""
    user = tmp_path / "policies"
    user.mkdir()
    policy, tests = agent_package("my-app", ["orders.lookup", "orders.refund"])
    (user / "my-app.rego").write_text(policy)
    (user / "my-app_test.rego").write_text(tests)
    built = bundle.build(opa=opa_command, user_policies=user, tokens=TOKENS, out_dir=tmp_path / "out")
    socket = tmp_path / "o"
    process = subprocess.Popen(opa.server_argv(opa=opa_command, socket_path=socket, bundle=built.path))
    deadline = time.monotonic() + 20
    while not opa.healthy(socket, TOKENS["supervisor"]):
        assert process.poll() is None
        assert time.monotonic() < deadline
    yield RunningOpa(process, socket)
    process.kill()
    process.wait()


def _ask(app: str, tool: str) -> dict[str, object]:
    return {"caller": {"app": app}, "call": {"tool": tool, "args": {}}}


def test_decides(running: RunningOpa) -> None:
    """A granted tool is allowed, any other is not, nor any other caller."""
    engine = running.engine()
    assert judge(engine.evaluate(_ask("my-app", "orders.lookup"))).allow
    assert judge(engine.evaluate(_ask("my-app", "orders.drop"))).reasons == ("tool_not_granted",)
    assert judge(engine.evaluate(_ask("other", "orders.lookup"))).reasons == ("no_policy_for_caller",)


def test_wrong_token_is_no_verdict(running: RunningOpa) -> None:
    """OPA refuses it, and that is unavailable, not denied."""
    with pytest.raises(PolicyUnavailable):
        running.engine("guess").evaluate(_ask("my-app", "orders.lookup"))


@pytest.mark.parametrize("path", ["/v1/config", "/v1/policies", "/v1/data", "/v1/data/mesh", "/health"])
def test_the_gateways_token_reaches_the_decision_only(running: RunningOpa, path: str) -> None:
    """Everything else is refused."""
    connection = UnixConnection(str(running.socket), 5)
    connection.request("GET", path, headers={"Authorization": f"Bearer {TOKENS['gateway']}"})
    assert connection.getresponse().status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN)
    connection.close()


def test_a_stopped_opa_is_unavailable_and_comes_back(running: RunningOpa) -> None:
    """A hung engine costs one timeout; once it runs again the same engine answers."""
    engine = running.engine()
    engine.evaluate(_ask("my-app", "orders.lookup"))
    os.kill(running.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(PolicyUnavailable):
            engine.evaluate(_ask("my-app", "orders.lookup"))
    finally:
        os.kill(running.process.pid, signal.SIGCONT)
    assert judge(engine.evaluate(_ask("my-app", "orders.lookup"))).allow


def test_a_dead_opa_is_unavailable(running: RunningOpa) -> None:
    """No engine, no verdict."""
    engine = running.engine()
    engine.evaluate(_ask("my-app", "orders.lookup"))
    running.process.kill()
    running.process.wait()
    with pytest.raises(PolicyUnavailable):
        engine.evaluate(_ask("my-app", "orders.lookup"))


GOOD = {"allow": True, "reasons": [], "approval": None, "obligations": {}}


@pytest.mark.parametrize(
    "raw",
    [
        None, True, [], {}, "yes", {"allow": True}, {**GOOD, "allow": "yes"}, {**GOOD, "allow": 1},
        {**GOOD, "reasons": "none"}, {**GOOD, "reasons": ["x"]}, {**GOOD, "obligations": []},
        {**GOOD, "more": 1}, {k: v for k, v in GOOD.items() if k != "reasons"},
    ],
)  # fmt: skip
def test_a_malformed_answer_denies(raw: object) -> None:
    """Anything but a whole, well-formed allow is policy_invalid."""
    assert judge(raw).reasons == ("policy_invalid",)


def test_unknown_obligation_and_approval_deny() -> None:
    """What this gateway cannot keep, it does not allow."""
    assert judge(GOOD).allow
    assert judge({**GOOD, "obligations": {"mask": 1}}).reasons == ("obligation_unknown",)
    assert judge({**GOOD, "approval": {}}).reasons == ("approval_required",)


def test_library_is_formatted_and_tested(opa_command: tuple[str, ...], tmp_path: Path) -> None:
    """`opa check --strict`, `opa fmt` and `opa test` are content with the library and the scaffold."""
    for name, text in zip(("a.rego", "a_test.rego"), agent_package("a", ["x.y"]), strict=True):
        (tmp_path / name).write_text(text)
    assert check_policies(opa_command, tmp_path) == []
    assert opa.run(opa_command, "fmt", "--list", str(bundle.library())).stdout == ""
    passed, report = run_policy_tests(opa_command, tmp_path)
    assert passed, report


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("package mesh.agents.a\n\nallow contains x\n", "unsafe"),
        ("package mesh.agents.a\n\ndefault allow := true\n", "grants every tool"),
        ('package mesh.agents.a\n\nallow contains "x" if input.untrusted.role == "boss"\n', "caller says"),
        ('package mesh.agents.a\n\nallow contains "x" if http.send({}).status == 200\n', "http.send"),
    ],
)
def test_bad_policy_is_named_with_its_line(
    opa_command: tuple[str, ...], tmp_path: Path, text: str, said: str
) -> None:
    """Each problem has a file, a line, a message and a fix."""
    (tmp_path / "a.rego").write_text(text)
    problems = [p for p in check_policies(opa_command, tmp_path) if said in p.message]
    assert problems
    assert problems[0].line == 3
    assert problems[0].fix


def test_a_project_cannot_replace_the_library(opa_command: tuple[str, ...], tmp_path: Path) -> None:
    """A user's package lies under `mesh.`."""
    (tmp_path / "a.rego").write_text("package meshgate\n\ndecision := 1\n")
    with pytest.raises(PolicyInvalid, match="starts with 'mesh"):
        bundle.build(opa=opa_command, user_policies=tmp_path, tokens=TOKENS, out_dir=tmp_path / "out")
