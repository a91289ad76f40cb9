"""What the tests of delegations have in common: apps that give tasks to each other."""

import json
from typing import Any

from fakes.gateway_parts import ALLOW, peer
from gateway.test_gateway_history import key
from meshgate_gateway import calls

DONE = b'{"output":{"type":"text","value":"paid"}}'


def delegate(
    world: Any, to: str = "billing", *, app: str = "desk", run_id: str = "run-1", **more: Any
) -> Any:
    """Asks for a task; of one step unless another is named."""
    asked = {"step_key": key(f"{run_id} {to}"), "tool": f"agent:{to}", "arguments": {"task": "pay"}, **more}
    return world.call(app, run_id=run_id, **asked)


def run_of(answer: Any) -> str:
    """The run that a delegation started."""
    return calls.delegated_run(answer.call_id)


def begin(world: Any, run_id: str, launcher: str = "w1") -> str:
    """Its app's worker begins to work on a run; which app that is."""
    app = world.run(run_id).app.rpartition("/")[2]
    world.runs.start_attempt(peer(app), run_id=run_id, launcher=launcher)
    return app


def end(world: Any, run_id: str, state: str = "completed", result: bytes = DONE, detail: str = "") -> Any:
    """The current attempt of a run ends it."""
    run = world.run(run_id)
    return world.runs.finish(
        peer(run.app.rpartition("/")[2]),
        run_id=run_id,
        attempt=run.attempt,
        state=state,
        detail=detail,
        result=result,
    )


def descend(world: Any, *apps: str) -> list[str]:
    """Each app delegates to the next one, which begins; the runs of all, from run-1 down."""
    runs = ["run-1"]
    asking = "desk"
    for app in apps:
        runs.append(run_of(delegate(world, app, app=asking, run_id=runs[-1])))
        begin(world, runs[-1])
        asking = app
    return runs


def narrowing(tools: object, *, of: str = "agent:billing") -> Any:
    """A policy that allows everything, one delegation under a `narrow`."""
    narrowed = {**ALLOW, "obligations": {"narrow": {"tools": tools}}}
    return lambda asked: narrowed if asked["call"]["tool"] == of else ALLOW


def kinds(world: Any, call_id: str) -> list[str]:
    """Kinds of a call's records, in their order."""
    return [record["kind"] for record in world.records() if record.get("call_id") == call_id]


def started(world: Any, run_id: str) -> dict[str, Any]:
    """The record of a run's making."""
    rows = [row for row in world.records("lifecycle") if row.get("run_id") == run_id]
    assert rows[0]["event"] == "run_started"
    return rows[0]


def result_of(answer: Any) -> Any:
    """What a delegation gave."""
    return json.loads(answer.result)
