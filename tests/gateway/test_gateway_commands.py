"""What an operator from outside may have started: what the app runs by itself, unless it says otherwise."""

import json
from pathlib import Path

import grpc
import pytest
from fakes.gateway_wire import DOMAIN, MESH, Wire, serve
from gateway.conftest import CATALOGUE
from meshgate_wire import broker_pb2 as pb

OUTSIDE = "ops"
COMMAND = {"command": ["sh", "-c", "id"], "cwd": "/", "env": {"A": "b"}}


@pytest.fixture
def wire(tmp_path: Path):
    """`nightly` takes commands, `desk` does not."""
    apps = {**CATALOGUE["apps"], "nightly": {"kind": "program", "commands": True}}
    operators = frozenset({f"spiffe://{DOMAIN}/ns/{MESH}/{OUTSIDE}"})
    made = serve(tmp_path, {**CATALOGUE, "apps": apps}, operators=operators)
    made.await_serving(True)
    yield made
    made.close()


def start(wire: Wire, operator: str, run_id: str, app: str = "desk", **more) -> pb.RunRow:
    request = pb.AdminStartRunRequest(app=app, run_id=run_id, operator="ada", **more)
    return wire.admin(operator).StartRun(request, timeout=10).run


def refused(ask) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        ask()
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    return dict(caught.value.trailing_metadata())["meshgate-reason"]


def records(wire: Wire, kind: str) -> list[dict]:
    answer = wire.admin().QueryRecords(pb.QueryRecordsRequest(limit=1000, kind=kind), timeout=10)
    return [json.loads(body) for body in answer.records_json]


def test_a_command_from_outside_is_refused(wire) -> None:
    """Recorded, nothing stored; an input for what the app runs by itself is taken."""
    assert refused(lambda: start(wire, OUTSIDE, "r", **COMMAND)) == "commands_off"
    (refusal,) = [row for row in records(wire, "refusal") if row["reason"] == "commands_off"]
    assert refusal["method"] == "StartRun"
    assert list(wire.admin().ListRuns(pb.ListRunsRequest(limit=10)).runs) == []
    assert start(wire, OUTSIDE, "r", input_json=b"{}").state == "pending"


def test_an_app_may_take_commands_from_outside(wire) -> None:
    """And the record says that there was one; the run's input, which it commits to, holds all of it."""
    assert start(wire, OUTSIDE, "r", "nightly", **COMMAND).state == "pending"
    (started,) = [row for row in records(wire, "lifecycle") if row["event"] == "run_started"]
    assert (started["command"], bool(started["input"])) == (True, True)
    shown = wire.admin().ShowRun(pb.ShowRunRequest(run_id="r"))
    assert json.loads(shown.input_json) == {"app": "nightly", **COMMAND}


def test_the_machines_own_operator_may_give_a_command(wire) -> None:
    """Whoever reaches the control socket may start any program here anyway: `meshgate run -d -- CMD`."""
    assert start(wire, "operator", "r", **COMMAND).state == "pending"


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_command_is_not_started_again_from_outside(wire, dry_run) -> None:
    """A re-run of a run that a command began, in a folder of the asker's choice, is a command."""
    runs = wire.runs("desk")
    runs.StartRun(pb.StartRunRequest(run_id="r", input_json=b'{"app":"desk","command":["true"]}'))
    runs.StartAttempt(pb.StartAttemptRequest(run_id="r", launcher_instance="l"))
    runs.FinishRun(pb.FinishRunRequest(run_id="r", attempt=1, state="failed"))
    again = pb.BranchRunRequest(run_id="r", new_run_id="n", origin="rerun", cwd="/tmp", dry_run=dry_run)
    assert refused(lambda: wire.admin(OUTSIDE).BranchRun(again, timeout=10)) == "commands_off"
    assert wire.admin().BranchRun(again, timeout=10).run.run_id == ("r" if dry_run else "n")
