"""Real, unmodified CrewAI programs of every shape, killed at a model call: same answer, each effect once."""

import json
import shutil
import sys
from pathlib import Path

import pytest

PROGRAM = str(Path(__file__).parent / "project" / "shapes.py")
R1, R2, R3 = (("refund", order) for order in "123")
L1, L2 = ("lookup", "1"), ("lookup", "2")

# shape: the live call to be killed at, the answer, the effects, model calls of an uncut run
SHAPES = {
    "flow": (4, ["paid 3 after paid 1"], [R1, L2, R3], 4),
    "agent_kickoff": (2, ["paid 1"], [R1], 2),
    "akickoff": (2, ["paid 1"], [R1], 2),
    "async_tasks": (5, ["both paid"], [R1, R2], 5),
    "for_each": (4, ["paid 1", "paid 1", "paid 1"], [R1, R1, R1], 6),
    "hierarchical": (3, ["the clerk has paid"], [R1], 4),
    "pydantic_task": (2, [1, "Report"], [R1], 2),
    "guardrail": (3, ["nicely paid"], [L1, L1], 4),  # `repeat: same` is the gateway's: test_durable.py
    "checkpoints": (4, ["saw 2"], [L1, L2], 4),
}


def play(desk, shape, cut=0, **settings):
    desk.env["DIE_AT_CALL"] = str(cut)
    return desk.run(sys.executable, PROGRAM, shape, backoff_seconds=0.05, **settings)


def answer(ended):
    """What the last attempt printed."""
    lines = [line for line in ended.out.splitlines() if line.startswith("ANSWER ")]
    assert lines, (ended.out, ended.err)
    return json.loads(lines[-1].removeprefix("ANSWER "))


def effects(desk):
    """The calls that reached the gateway, each under its own key."""
    keys = [seen.step_key for seen in desk.gateway.seen]
    assert len(keys) == len(set(keys))  # a finished call is not even asked again
    return sorted((seen.tool.partition(".")[2], seen.arguments["order"]) for seen in desk.gateway.seen)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_killed_program_goes_on(desk, shape):
    """The next attempt is answered from the journal up to the call that was cut."""
    cut, expected, calls, replies = SHAPES[shape]
    ended = play(desk, shape, cut)
    assert ended.status == 0, ended.err
    assert answer(ended) == expected
    assert effects(desk) == sorted(calls)
    assert len((desk.tmp / "model-calls").read_text()) == replies + 1
    assert [state for state, _ in desk.gateway.ended] == ["restarting"]
    assert [state for state, _ in desk.gateway.finished] == ["completed"]
    assert desk.marks() == []


def test_checkpoints_are_written_beside_the_journal(desk):
    """By each attempt, one after each of its tasks: CrewAI restores each, with outputs and brokered tools."""
    for _ in range(6):
        for left in ("died", "model-calls"):
            (desk.tmp / left).unlink(missing_ok=True)
        shutil.rmtree(desk.tmp / "checkpoints", ignore_errors=True)
        desk.gateway.journal.clear()
        ended = play(desk, "checkpoints", cut=4)
        if "changed size during iteration" not in ended.err:  # CrewAI's threads: it wrote while events came
            break
    assert ended.status == 0, ended.err
    lines = [line for line in ended.out.splitlines() if line.startswith("RESTORED ")]
    restored = [json.loads(line.removeprefix("RESTORED ")) for line in lines]
    assert len({name for name, _, _ in restored}) == 3  # the first attempt had done one task
    outputs = sorted([done for _, done, _ in restored], key=str)
    assert outputs == [["saw 1", "saw 2"], ["saw 1", None], ["saw 1", None]]
    assert all(tools == ["LookupTool", "LookupTool"] for _, _, tools in restored)
    for path in (desk.tmp / "checkpoints").rglob("*.json"):
        state = json.loads(path.read_text())
        assert state["trigger"] == "task_completed"
        assert "crew" in [one["entity_type"] for one in state["entities"]]
