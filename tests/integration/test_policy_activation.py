"""`meshgate policy activate` on a real mesh: a new policy without a restart, or the old one unharmed."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakes.small_mesh import Agent, SmallMesh, eventually, small_mesh
from meshgate_wire import broker_pb2 as pb

pytestmark = [pytest.mark.plane, pytest.mark.timeout(600)]

HEAD = "package mesh.agents.nightly\n\n"
LOOK = HEAD + 'allow contains "box.look"\n'
BOTH = LOOK + '\nallow contains "box.spend" if input.call.args.amount <= 50\n'
OTHERWISE = LOOK + '\nallow contains "box.spend" if input.call.args.amount <= 60\n'
CALLERS = 3


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallMesh]:
    """One mesh for all; each test begins with a policy that it activates itself."""
    with small_mesh(tmp_path_factory.mktemp("m"), LOOK) as up:
        yield up


def _activate(mesh: SmallMesh, policy: str, *options: str) -> dict[str, Any]:
    mesh.write_policy(policy)
    done = mesh.meshgate("policy", "activate", "-o", "json", *options)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_a_denied_call_becomes_allowed_without_a_restart(mesh: SmallMesh) -> None:
    """The same gateway, another OPA, another listing; asked again nothing changes."""
    _activate(mesh, LOOK)
    gateway, opa = mesh.process("gateway"), mesh.process("opa")
    with Agent(mesh) as agent:
        denied = agent.call("box.spend", {"amount": 10})
        assert (denied.state, list(denied.reasons)) == (pb.CALL_STATE_DENIED, ["tool_not_granted"])
        assert agent.listed() == ["box.look"]
        told = _activate(mesh, BOTH)
        assert agent.call("box.spend", {"amount": 10}).result == b"spent 10"
        assert list(agent.call("box.spend", {"amount": 51}).reasons) == ["tool_not_granted"]
        assert agent.listed() == ["box.look", "box.spend"]
    assert (told["status"], told["vanish"]) == ("activated", [])
    assert told["appear"] == [{"app": "nightly", "tool": "box.spend"}]
    assert mesh.process("gateway")["pid"] == gateway["pid"]
    now = mesh.process("opa")
    assert (now["state"], now["detail"]) == ("ready", f"policy {told['revision']['new']}")
    assert now["pid"] != opa["pid"]
    assert _alive(opa["pid"]) is False
    record = mesh.records("policy")[-1]
    assert (record["revision"], record["digest"]) == (told["revision"]["new"], told["digest"])
    assert record["operator"].endswith(f"(uid {os.getuid()})")
    again = mesh.meshgate("policy", "activate")
    assert (again.returncode, again.stdout) == (0, "")
    assert "unchanged" in again.stderr
    assert mesh.process("opa")["pid"] == now["pid"]


def test_no_call_fails_and_no_decision_mixes_revisions(mesh: SmallMesh) -> None:
    """Under steady calls all are done; in the log the old policy decides before the switch, the new after."""
    start = _activate(mesh, BOTH)["revision"]["new"]
    seen = len(mesh.records("decision"))
    with _steady(mesh) as count:
        eventually(lambda: count() > CALLERS * 3, "calls before")
        revisions = [start]
        for policy in (OTHERWISE, BOTH):
            revisions.append(_activate(mesh, policy)["revision"]["new"])
            before = count()
            eventually(lambda before=before: count() > before + CALLERS * 3, "calls after")
    assert revisions == [start, revisions[1], start]
    assert revisions[1] != start
    decisions = mesh.records("decision")[seen:]
    switches = [record["seq"] for record in mesh.records("policy")[-2:]]
    for record in decisions:
        expected = revisions[sum(record["seq"] > seq for seq in switches)]
        assert record["policy"]["revision"] == expected, record
        assert record["allow"] is True
    phases = {sum(record["seq"] > seq for seq in switches) for record in decisions}
    assert phases == {0, 1, 2}


class _steady:  # noqa: N801 - used like a function
    """Agents that call all the time; leaving waits for them and raises what went wrong."""

    def __init__(self, mesh: SmallMesh) -> None:
        self._mesh, self._stop = mesh, threading.Event()
        self._done, self._failures = [0] * CALLERS, []
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(CALLERS)]

    def __enter__(self) -> Callable[[], int]:
        for thread in self._threads:
            thread.start()
        return self._count

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert self._failures == []

    def _count(self) -> int:
        assert self._failures == []
        return sum(self._done)

    def _run(self, number: int) -> None:
        try:
            with Agent(self._mesh) as agent:
                while not self._stop.is_set():
                    answer = agent.call("box.spend", {"amount": number})
                    assert answer.result == f"spent {number}".encode(), answer
                    self._done[number] += 1
        except Exception as error:
            self._failures.append(repr(error))
            raise


def test_a_dry_run_tells_and_changes_nothing(mesh: SmallMesh) -> None:
    """Old and new revision and what appears or vanishes; the OPA and the policy are the same after it."""
    old = _activate(mesh, BOTH)["revision"]["new"]
    opa, records = mesh.process("opa"), len(mesh.records("policy"))
    told = _activate(mesh, HEAD + 'allow contains "box.spend"\n\ndeny contains "box.look"\n', "--dry-run")
    assert (told["status"], told["revision"]["old"]) == ("would_activate", old)
    assert told["vanish"] == [{"app": "nightly", "tool": "box.look"}]
    assert told["appear"] == []
    assert (mesh.process("opa")["pid"], len(mesh.records("policy"))) == (opa["pid"], records)
    with Agent(mesh) as agent:
        assert agent.call("box.look", {"name": "a"}).result == b"seen a"
    text = mesh.meshgate("policy", "activate", "--dry-run")
    assert text.stdout.splitlines()[1].split() == ["vanish", "nightly", "box.look"]


@pytest.mark.parametrize(
    ("policy", "test", "said"),
    [
        (HEAD + "allow := true\n", "", "nightly.rego:3: `allow` is a set of tool ids"),
        (HEAD + 'allow contains "box.look" if input.untrusted.role\n', "", "nightly.rego:3: input.untrusted"),
        (LOOK + '\nallow contains "box.spend" if inputt.x\n', "", "nightly.rego:5: "),
        (LOOK, "test_it if 1 == 2", "nightly_test.rego:3: data.mesh.tests.nightly.test_it is red: 1 == 2"),
        (LOOK + "\n# another\n", "test_it if {", "nightly_test.rego:"),
    ],
)
def test_problems_are_told_with_their_lines_and_nothing_changes(
    mesh: SmallMesh, policy: str, test: str, said: str
) -> None:
    """Status 2, the file, the line, what to write instead, and that the old policy stays in force."""
    old = _activate(mesh, BOTH)["revision"]["new"]
    mesh.write_policy(policy, test=test)
    done = mesh.meshgate("policy", "activate")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "write instead: " in done.stderr
    assert f"nothing was changed, policy {old} stays in force" in done.stderr
    assert mesh.process("opa")["detail"] == f"policy {old}"


def test_a_crash_of_the_new_engine_or_of_the_gateway_keeps_the_new_policy(mesh: SmallMesh) -> None:
    """Both are started again, on the policy that was activated last."""
    _activate(mesh, LOOK)
    new = _activate(mesh, BOTH)["revision"]["new"]
    for name in ("opa", "gateway"):
        victim = mesh.process(name)
        os.kill(victim["pid"], signal.SIGKILL)
        eventually(lambda v=victim, n=name: _is_back(mesh, n, v["pid"]), f"{name} is back")
        with Agent(mesh) as agent:
            answer = eventually(lambda a=agent: _answer(a), "an answer")
        assert answer.result == b"spent 7"
    assert mesh.records("decision")[-1]["policy"]["revision"] == new
    assert mesh.process("opa")["detail"] == f"policy {new}"


def _is_back(mesh: SmallMesh, name: str, pid: int) -> bool:
    row = mesh.process(name)
    return row["state"] == "ready" and row["pid"] not in (None, pid)


def _answer(agent: Agent) -> Any:
    try:
        return agent.call("box.spend", {"amount": 7})
    except Exception as error:  # the gateway is not ready again
        if "UNAVAILABLE" not in repr(error):
            raise
        return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
