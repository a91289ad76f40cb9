"""`execute: agent`: real CrewAI under a real launcher, decided and recorded by the gateway's real core."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.core_gateway import CoreGateway
from fakes.fake_gateway import FakeGateway
from fakes.gateway_parts import ALLOW, deny
from meshgate_gateway.adapters.sqlite_store import SqliteStore
from meshgate_wire import broker_pb2 as pb

from gateway import conftest as gateway_world

PROJECT = Path(__file__).parent / "project"
PROGRAM = str(PROJECT / "own.py")
DESCRIBE = """
import json, own
from meshgate_agents.child.tool_identity import describe
rows = {}
for id, tool in own.LISTED.items():
    rows[id] = {"identity": dict(describe(tool)), "schema": tool.args_schema.model_json_schema()}
print(json.dumps(rows))
"""
TEXTUAL = [["1 5.0", "hello"], "all staged"]
WHOLE = [["1 5.0", "2 5.0", "3 1.5", "hello"], "all staged"]


@pytest.fixture(scope="module")
def described():
    """Identity and schema of the desk's own tools, as `up` finds them."""
    env = {**os.environ, "PYTHONPATH": str(PROJECT), "CREWAI_DISABLE_TELEMETRY": "true"}
    found = subprocess.run(
        [sys.executable, "-c", DESCRIBE], env=env, check=True, capture_output=True, text=True
    )
    rows = json.loads(found.stdout)
    for row in rows.values():  # the program is its entry script, outside of the project's root
        row["identity"]["qualname"] = row["identity"]["qualname"].replace("own:", f"{PROGRAM}:")
    return rows


@pytest.fixture
def own_desk(described, make_desk, tmp_path, monkeypatch):
    """A desk whose gateway knows its own tools."""
    catalogue = json.loads(json.dumps(gateway_world.CATALOGUE))
    for tool, row in described.items():
        entry = gateway_world.entry(row["schema"], host="desk", effect="memory", execute="agent")
        catalogue["tools"][tool] = entry
    monkeypatch.setattr(gateway_world, "CATALOGUE", catalogue)
    world = gateway_world.make_world(SqliteStore(path=tmp_path / "gateway.db"))
    desk = make_desk(CoreGateway(world=world))
    desk.tools = [
        {
            "tool": tool,
            "identity": row["identity"],
            "own_limit_bytes": 1000 if tool == "desk.slim" else 1_000_000,
            "own_deadline_seconds": 0.5 if tool == "desk.hang" else None,
        }
        for tool, row in described.items()
    ]
    yield desk
    world.store.close()


def play(desk, shape, settings=None, **env):
    """Runs one shape of the program to the end of its run."""
    desk.env.update({name: str(value) for name, value in env.items()})
    return desk.run(sys.executable, PROGRAM, shape, **{"backoff_seconds": 0.05, **(settings or {})})


def staged(ended):
    """What the program says that it staged, and what came of it."""
    lines = [line for line in ended.out.splitlines() if line.startswith("STAGED ")]
    assert len(lines) == 1, ended.out + ended.err
    return json.loads(lines[0].removeprefix("STAGED "))


def outcomes(desk):
    return [record["state"] for record in desk.gateway.world.records("outcome")]


@pytest.mark.parametrize(("shape", "expected"), [("native", WHOLE), ("textual", TEXTUAL)])
def test_a_crew_runs_its_own_tools_under_decisions(own_desk, shape, expected):
    """Native and by text, in parallel and async: each body ran once, each call has its records."""
    ended = play(own_desk, shape)
    assert ended.status == 0, ended.err
    assert staged(ended) == expected
    decisions = own_desk.gateway.world.records("decision")
    assert len(decisions) == len(outcomes(own_desk)) == len(expected[0])
    assert {record["executed_in"] for record in decisions} == {"agent"}
    assert {asked["call"]["effect"] for asked in own_desk.gateway.world.policy.asked} == {"memory"}
    assert own_desk.gateway.world.runtime.effects == []


def test_every_way_in_runs_the_body_once(own_desk):
    """run, _run, arun; a function, an async function, also inside of a running loop."""
    ended = play(own_desk, "plain")
    kept, *answers = staged(ended)
    assert kept == ["1 2.0", "2 5.0", "3 5.0", "m", "n", "t", "u", "v"]
    assert answers[:3] == [{"staged": order, "first": "1"} for order in "123"]
    assert answers[3:] == ["kept n", "kept m", "thought t", "thought u", "thought v"]
    assert len(own_desk.gateway.world.records("decision")) == len(answers)


def test_failures_have_the_form_that_hosted_tools_have(own_desk):
    """No JSON, over the limit, raised: one line each; nothing is raised into CrewAI."""
    _, odd, large, none, bad = staged(play(own_desk, "odd"))
    assert "the tool failed (result_not_json)" in odd
    assert "(result_too_large): the tool ran; its result has 2000 bytes, the limit is 1000" in large
    assert none is None
    assert "the tool failed (tool_raised): ValueError: no such order" in bad
    assert outcomes(own_desk) == ["failed", "failed", "done", "failed"]


def test_a_body_past_its_deadline_has_failed_and_is_not_run_again(own_desk):
    """Its process is ended, as nobody knows what it has changed; the next attempt is told of the failure."""
    ended = play(own_desk, "hangs")
    assert ended.status == 0, ended.err
    kept, *answers = staged(ended)
    assert kept == ["1 2.0", "4 5.0"]
    assert len(answers) == 2
    for answer in answers:
        assert "the tool failed (timeout): no answer before its deadline" in answer
    assert (own_desk.tmp / "hung").read_text() == "11"
    assert outcomes(own_desk) == ["done", "failed", "failed", "done"]
    failed = [record for record in own_desk.gateway.world.records("outcome") if record["state"] == "failed"]
    assert {record["error_class"] for record in failed} == {"timeout"}
    why = "the body of tool 'hang' ran past its deadline of 0.5 s"
    assert [(state, why in detail) for state, detail in own_desk.gateway.ended] == [("restarting", True)] * 2
    replayed = play(own_desk, "hangs", {"replay": True, "run_id": own_desk.gateway.runs[0]})
    assert "equal, all 4 steps" in replayed.err


def test_a_denied_body_does_not_run(own_desk):
    """Nothing is staged; the program goes on with the denial."""
    own_desk.gateway.world.policy.answer = lambda asked: (
        deny("no") if asked["call"]["args"].get("order") == "2" else ALLOW
    )
    ended = play(own_desk, "native")
    assert staged(ended) == [["1 5.0", "3 1.5", "hello"], "all staged"]


def test_without_a_verdict_no_body_runs_and_the_attempt_ends(own_desk):
    """Unavailable is no answer for a model."""
    own_desk.gateway.world.policy.away = True
    ended = play(own_desk, "native", {"step_deadline_seconds": 0.5, "attempts": 1})
    assert ended.status != 0
    assert "STAGED" not in ended.out
    assert outcomes(own_desk) == []


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_killed_crew_stages_again_what_it_had_staged(own_desk, cut):
    """SIGKILL before each later model reply: the memory and the answer of an uncut run."""
    ended = play(own_desk, "native", DIE_AT_REPLY=cut)
    assert ended.status == 0, ended.err
    assert staged(ended) == WHOLE
    assert len(own_desk.gateway.world.records("decision")) == len(outcomes(own_desk)) == 4
    assert [state for state, _ in own_desk.gateway.ended] == ["restarting"]


def test_killed_between_decision_and_outcome_it_is_run_again(own_desk):
    """Decided twice, settled once, never unknown."""
    ended = play(own_desk, "native", DIE_IN_BODY="1")
    assert ended.status == 0, ended.err
    assert staged(ended) == WHOLE
    assert outcomes(own_desk) == ["done"] * 4
    assert len(own_desk.gateway.world.records("decision")) == 5


def test_calls_made_at_once_are_run_again_in_their_order(own_desk):
    """However their threads come in the next attempt; a call that a body makes itself is no sibling of it."""
    ended = play(own_desk, "crowd")
    assert ended.status == 0, ended.err
    kept, given = staged(ended)
    assert len(kept) == 7
    assert [given[order]["nth"] for order in ("1", "nested", "3", "4", "5", "6")] == [1, 3, 4, 5, 6, 7]
    assert given["nested"]["inner"] == "kept of nested"
    assert [state for state, _ in own_desk.gateway.ended] == ["restarting"]


def test_another_result_than_recorded_parks_the_run(own_desk):
    """Both sides are kept for the operator; the program does not see a second answer."""
    own_desk.env["DRIFT"] = "1"
    argv = own_desk.argv(sys.executable, PROGRAM, "native", backoff_seconds=0.05)
    config = own_desk.tmp / "launcher.json"
    made = json.loads(config.read_text())
    made["env"]["DIE_AT_REPLY"] = "1"
    config.write_text(json.dumps(made))
    world = own_desk.gateway.world
    launcher = subprocess.Popen(
        argv,
        cwd=own_desk.tmp,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = iter(launcher.stderr.readline, "")
        assert any("is held up" in line for line in lines)
        (run,) = world.store.read(lambda tables: tables.runs.list(5))
        assert (run.state, run.detail.split(" ")[:2]) == ("waiting", ["diverged:", "desk.stage"])
        sides = world.store.read(lambda tables: world.vault.get(tables, run.traceback)).decode()
        assert sides.count('{"staged":') == 2
        world.runs.control(run_id=run.run_id, action="fail", operator="op")
        launcher.communicate(timeout=60)
    finally:
        launcher.kill()
        launcher.wait()
    assert launcher.returncode != 0


def test_a_replay_runs_bodies_and_compares_without_the_gateway(own_desk):
    """Equal: nothing is asked. Another result: the first difference, both sides."""
    play(own_desk, "native")
    world = own_desk.gateway.world
    before = len(world.records())
    run_id = own_desk.gateway.runs[0]
    again = play(own_desk, "native", {"replay": True, "run_id": run_id})
    assert again.status == 0, again.err
    assert staged(again) == WHOLE
    assert "equal, all 8 steps" in again.err
    other = play(own_desk, "native", {"replay": True, "run_id": run_id}, DRIFT=1)
    assert other.status == 1
    assert "first difference: the result of 'stage': recorded" in other.err
    assert len(world.records()) == before


def test_a_permit_for_a_hosted_tool_is_not_followed(own_desk):
    """Only what the manifest has run in the agent is run there, whatever a gateway answers."""
    for row in own_desk.tools:
        row.pop("own_limit_bytes")
    ended = play(own_desk, "native", {"attempts": 1})
    assert ended.status != 0
    assert "is of no tool that runs in the agent" in ended.err
    assert "STAGED" not in ended.out


class Deciding(FakeGateway):
    """Has decided on other arguments than those that the program passed."""

    def FinishOwnCall(self, request, context):  # noqa: N802 - gRPC's shape
        """Echoes the result."""
        result = {"kind": request.result.kind, "result": request.result.data}
        return pb.CallToolResponse(call_id=request.call_id, state=pb.CALL_STATE_DONE, **result)


def test_the_body_gets_the_bytes_that_were_decided_on(described, make_desk):
    """Not what the program holds: nothing can be slipped in between decision and body."""
    arguments = b'{"amount":1,"order":"decided"}'
    run = pb.CallToolResponse(call_id="c1", state=pb.CALL_STATE_RUN, arguments_json=arguments, take=1)
    desk = make_desk(Deciding(behave=lambda _seen, _nth: run))
    desk.tools = [
        {"tool": tool, "identity": row["identity"], "own_limit_bytes": 1000}
        for tool, row in described.items()
    ]
    kept, sync, awaited = staged(play(desk, "decided"))
    assert kept == ["decided 1.0", "decided 1.0"]
    assert sync["staged"] == awaited["staged"] == "decided"
    assert {seen.arguments["order"] for seen in desk.gateway.seen} == {"asked"}
