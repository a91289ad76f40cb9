"""What one run and one app may hold, where a call says it stands, and what enters records of it."""

import json
from dataclasses import replace

import pytest
from fakes.gateway_parts import peer
from gateway.test_gateway_journal import SCOPE, append, entries, key, restart
from meshgate_gateway.bounds import Bounds
from meshgate_gateway.errors import Conflict, InvalidRequest
from meshgate_gateway.model import State


def bound(world, **bounds: int) -> None:
    """Puts small bounds in force."""
    small = replace(Bounds(), **bounds)
    world.broker._bounds = small
    for room in (world.journal, world.runs):
        object.__setattr__(room, "bounds", small)


def refused(world, act) -> str:
    """The reason of a refusal, which is on record."""
    with pytest.raises((Conflict, InvalidRequest)) as caught:
        act()
    assert world.records("refusal")[-1]["reason"] == caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize("step", ["model", "call", "unknown tool"])
def test_a_run_has_so_many_steps(world, step) -> None:
    """Model replies and calls of any kind count together; the next step of any kind is refused."""
    bound(world, run_steps=2)
    append(world, "m0")
    world.call(step_key=key("t0"))
    act = {
        "model": lambda: append(world, "m1", 1),
        "call": lambda: world.call(step_key=key("t1")),
        "unknown tool": lambda: world.call(step_key=key("t1"), tool="orders.nothing"),
    }[step]
    assert refused(world, act) == "run_steps_limit"
    assert len(world.runtime.effects) == 1
    assert len(entries(world)) == 2


def test_what_is_recorded_counts_once(world) -> None:
    """A step that is told or asked again is no further one, and is answered in a full run too."""
    bound(world, run_steps=2)
    for _ in range(3):
        append(world, "m0")
        assert world.call(step_key=key("t0")).state is State.DONE
    assert world.run().recorded_steps == 2


def test_a_run_has_so_many_bytes(world) -> None:
    """Requests, replies, arguments and results; an outcome is taken past the bound, a step is not."""
    bound(world, run_bytes=2_000)
    append(world, "m0", reply=b'"' + b"x" * 1_000 + b'"')
    assert refused(world, lambda: append(world, "m1", 1, reply=b"1" * 1_000)) == "run_bytes_limit"
    world.runtime.tools["orders.refund"] = lambda **_: "r" * 5_000
    assert world.call(step_key=key("t0")).state is State.DONE
    assert world.run().recorded_bytes > 6_000
    assert refused(world, lambda: world.call(step_key=key("t1"))) == "run_bytes_limit"
    assert len(world.runtime.effects) == 1


def test_a_full_run_ends_and_keeps_its_journal(world) -> None:
    """The bound stops steps, not the end of the run, nor who looks at it."""
    bound(world, run_steps=1)
    append(world, "m0")
    refused(world, lambda: world.call(step_key=key("t0")))
    world.runs.finish(peer("desk"), run_id="run-1", attempt=1, state="failed", detail="full")
    assert list(entries(world, 0)) == [key("m0")]


def test_the_bound_of_a_run_outlives_its_attempts(world) -> None:
    """A new attempt does not begin to count anew."""
    bound(world, run_steps=1)
    append(world, "m0")
    restart(world, 2)
    assert refused(world, lambda: append(world, "m1", 1, attempt=2)) == "run_steps_limit"


def test_an_app_has_so_many_open_runs(world) -> None:
    """Its own count, and only what has not ended; a start that is told again is no further run."""
    bound(world, open_runs=2)
    world.begin(run_id="run-2")
    world.begin(run_id="run-2")
    assert refused(world, lambda: world.begin(run_id="run-3")) == "open_runs_limit"
    world.begin("rival", run_id="run-4")
    world.runs.finish(peer("desk"), run_id="run-2", attempt=1, state="completed", detail="")
    world.begin(run_id="run-3")


@pytest.mark.parametrize("place", [{"scope": ""}, {"turn": 2**31}, {"scope": "x"}, {"task": "x"}])
def test_a_call_in_a_run_says_where_it_stands(world, place) -> None:
    """Without its scope no divergence would be found."""
    reason = refused(world, lambda: world.call(step_key=key("t0"), **place))
    assert reason == "step_place_invalid"
    assert world.runtime.effects == []


def test_a_diverging_call_cannot_leave_its_scope_out(world) -> None:
    """The effect that the journal contradicts is not reached by saying less."""
    append(world, "m1", 1)
    restart(world, 2)
    refused(world, lambda: world.call(step_key=key("new"), scope="", turn=0, attempt=2))
    refused(world, lambda: world.call(step_key=key("new"), scope=SCOPE, turn=0, attempt=2))
    assert world.runtime.effects == []


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"order": {"4111-1111": 1}, "amount": 1}, "$.order: type string"),
        ({"order": "a", "amount": 1, "lines": {"4111-1111": "x"}}, "$.lines[key 0]: type number"),
        ({"order": "a", "amount": 1, "lines": {"a": 1, "4111-1111": [{}]}}, "$.lines[key 1]: type number"),
        ({"order": "a", "amount": 1, "parts": [{"order": "4111-1111"}]}, "$.parts[0].order: type number"),
    ],
)
def test_no_key_of_the_arguments_enters_a_record(world, arguments, where) -> None:
    """Keys are clear text like values, unless the tool's own schema names them."""
    tool = world.broker._catalogue.tools["orders.refund"]
    number = {"type": "number"}
    parts = {"type": "array", "items": {"type": "object", "properties": {"order": number}}}
    lines = {"type": "object", "additionalProperties": number}
    properties = {**tool.schema["properties"], "lines": lines, "parts": parts}
    wider = replace(tool, schema={**tool.schema, "properties": properties})
    world.broker._catalogue = replace(
        world.broker._catalogue, tools={**world.broker._catalogue.tools, tool.id: wider}
    )
    world.broker._validators[tool.id] = world.broker._validators[tool.id].evolve(schema=wider.schema)
    answer = world.call(arguments=arguments)
    assert answer.reasons == ("arguments_invalid",)
    (record,) = world.records("refusal")
    assert record["detail"] == where
    assert "4111-1111" not in json.dumps(world.records())
