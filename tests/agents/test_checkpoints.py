"""CrewAI's own checkpoints with brokered tools in them, and files that somebody wrote into."""

import json
import sys
from pathlib import Path

import pytest

PROGRAM = str(Path(__file__).parent / "project" / "restores.py")


def play(desk, what):
    return desk.run(sys.executable, PROGRAM, what, backoff_seconds=0.01, attempts=1)


def restored(ended):
    """What each restored tool answered: class and text."""
    lines = [line.split(" ", 2)[1:] for line in ended.out.splitlines() if line.startswith("RESTORED ")]
    return [(name, text) for name, text in lines]


def files(desk):
    return sorted((desk.tmp / "checkpoints").rglob("*.json"), key=lambda path: path.stat().st_mtime_ns)


def tools_in(value):
    """Every tool in a checkpoint, wherever it lies."""
    if isinstance(value, dict):
        if "tool_type" in value:
            yield value
        for inner in value.values():
            yield from tools_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from tools_in(inner)


@pytest.fixture
def written(desk):
    """A desk whose crew has left its checkpoints."""
    for _ in range(6):
        desk.gateway.journal.clear()  # each time live: a replay is quicker and races more
        ended = play(desk, "write")
        if "changed size during iteration" not in ended.err:  # CrewAI's threads: it wrote while events came
            break
        for file in files(desk):
            file.unlink()
    assert ended.status == 0, ended.err
    assert len(files(desk)) == 2, ended.err
    desk.gateway.seen.clear()
    return desk


def asked(desk):
    return [(seen.tool, seen.arguments["order"]) for seen in desk.gateway.seen]


def test_a_restored_crew_goes_on_with_brokered_tools(written):
    """The first task is not done again; each restored tool's call goes to the gateway."""
    ended = play(written, "restore")
    assert ended.status == 0, ended.err
    assert {name for name, _ in restored(ended)} == {"LookupTool"}
    assert {text for _, text in restored(ended)} == {"desk.lookup ok"}
    assert set(asked(written)) == {("desk.lookup", "9"), ("desk.lookup", "2")}
    assert json.loads(ended.out.rsplit("ANSWER ", 1)[1]) == "saw 2"
    assert written.marks() == []


TAMPERED = {
    "another class": {"tool_type": "desk_evil.EvilTool"},
    "a class that hides": {"tool_type": "desk_evil.HiddenTool"},
    "a function's wrapper": {"tool_type": "crewai.tools.base_tool.Tool", "func": "desk_evil.run_it"},
    "no tool at all": {"tool_type": "desk_evil.NoTool"},
    "another listed tool's name": {"tool_type": "desk_evil.EvilTool", "name": "refund"},
}


@pytest.mark.parametrize("change", TAMPERED)
def test_a_tampered_checkpoint_swaps_in_no_raw_tool(written, change):
    """Whichever class the file names: it is refused by CrewAI, or its calls are refused; no body runs."""
    for path in files(written):
        whole = json.loads(path.read_text())
        found = list(tools_in(whole))
        assert found
        for tool in found:
            tool.update(TAMPERED[change])
        path.write_text(json.dumps(whole))
    ended = play(written, "restore")
    assert written.marks() == []
    assert asked(written) == []
    assert all("refused" in text for _, text in restored(ended))
    assert restored(ended) or ended.status != 0, (ended.out, ended.err)
