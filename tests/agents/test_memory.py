"""A real crew with CrewAI's memory on, killed again and again: same prompts, answer, effects and records."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from fakes.core_gateway import DESK, CoreGateway
from fakes.fake_gateway import FakeGateway
from gateway.conftest import make_world
from meshgate_gateway.adapters.sqlite_store import SqliteStore

PROGRAM = str(Path(__file__).parent / "project" / "remembers.py")
KILLS = (
    ["embed:1", "after save:1"],
    ["before save:1", "after save:2"],
    ["after ExtractedMemories:1", "after MemoryAnalysis:3"],
    ["after agent:2", "after ConsolidationPlan:1"],
    ["after agent:3", "after save:3"],
)
MINDED = ("agent", "ExtractedMemories", "MemoryAnalysis", "ConsolidationPlan")
pytestmark = pytest.mark.timeout(600)  # several starts of CrewAI in each
VOLATILE = re.compile(r"id=[0-9a-f-]{36}|created=[0-9T:.-]+")  # a run's own; equal within one run


def play(desk, shape, *, kills=(), **settings):
    desk.env["KILLS"] = ",".join(kills)
    return desk.run(sys.executable, PROGRAM, shape, **{"backoff_seconds": 0.01, "attempts": 60, **settings})


def told(ended):
    """The answer, and what is in memory at the end."""
    lines = [line for line in ended.out.splitlines() if line.startswith("ANSWER ")]
    assert lines, (ended.out, ended.err)
    return json.loads(lines[-1].removeprefix("ANSWER "))


def logged(desk, name):
    path = desk.tmp / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def prompts(desk):
    return Counter(VOLATILE.sub("", json.dumps(one)) for one in logged(desk, "model-calls"))


def effects(desk):
    keys = [seen.step_key for seen in desk.gateway.seen]
    assert len(keys) == len(set(keys))
    return sorted((seen.tool, seen.arguments["order"]) for seen in desk.gateway.seen)


@pytest.fixture(scope="module")
def uncut(make_desk):
    """A run that nobody kills: its desk and what it told."""
    desk = make_desk(FakeGateway())
    ended = play(desk, "own")
    assert ended.status == 0, ended.err
    return desk, told(ended)


@pytest.mark.parametrize("kills", KILLS)
def test_a_run_with_memory_goes_on_wherever_it_is_killed(desk, uncut, kills):
    """No other prompt is asked, what is journaled is not asked again, nothing is saved twice."""
    other, expected = uncut
    ended = play(desk, "own", kills=kills)
    assert ended.status == 0, ended.err
    assert told(ended) == expected
    assert effects(desk) == [("desk.refund", "1"), ("desk.refund", "2")]
    deaths = logged(desk, "deaths")
    assert sorted(deaths) == sorted(kills)
    assert set(prompts(desk)) == set(prompts(other))
    assert (prompts(desk) - prompts(other)).total() <= 2 * len(deaths)  # what was under way, two at most
    assert [state for state, _ in desk.gateway.finished] == ["completed"]
    assert desk.marks() == []


def steps(desk):
    """Every finished step that the gateway has of the run: kind and key."""
    entries = desk.gateway.world.journal.read(DESK, run_id=desk.gateway.runs[0], attempt=0)
    return [(one.step.kind, one.step.key) for one in entries]


@pytest.fixture
def make_core_desk(make_desk, tmp_path):
    """Desks before the gateway's real core and store."""
    worlds = []

    def make():
        worlds.append(make_world(SqliteStore(path=tmp_path / f"gateway-{len(worlds)}.db")))
        desk = make_desk(CoreGateway(world=worlds[-1]))
        desk.tools = [{**tool, "tool": tool["tool"].replace("desk.", "orders.")} for tool in desk.tools]
        return desk

    yield make
    for world in worlds:
        world.store.close()


@pytest.mark.timeout(1200)
def test_a_run_with_memory_is_killed_at_every_step(make_core_desk):
    """Once after each call of a model or a tool and each save, and at each question to the embedder."""
    whole, desk = make_core_desk(), make_core_desk()
    desk.patience_seconds = 1100
    expected = told(play(whole, "own"))
    ended = play(desk, "own", kills=["everywhere"], attempts=200, backoff_seconds=1e-6)  # it doubles
    assert ended.status == 0, ended.err
    assert told(ended) == expected
    deaths = Counter(place.rpartition(" ")[0] for place in logged(desk, "deaths"))
    assert set(deaths) == {*(f"after {name}" for name in (*MINDED, "save", "a tool")), "embed"}
    assert len(desk.gateway.ended) == deaths.total() > 20
    assert [state for state, _ in desk.gateway.finished] == ["completed"]
    assert len(desk.gateway.world.runtime.effects) == 2  # each payment once
    kept = steps(desk)
    assert len({key for _, key in kept}) == len(kept)
    assert {key for _, key in kept} >= set(desk.gateway.journal)  # whatever was recorded once is still there
    kinds, uncut = (Counter(kind for kind, _ in steps(one)) for one in (desk, whole))
    assert kinds["tool"] == uncut["tool"] == 2
    assert kinds["model"] >= uncut["model"]  # a save that was cut may ask its models once more
    again = play(desk, "own", replay=True, run_id=desk.gateway.runs[0])
    assert again.status == 0, again.err
    assert f"equal, all {len(kept)} steps" in again.err


def test_a_replay_of_a_run_with_memory_is_equal(uncut):
    """The model calls within a recall or a save are answered with it; nothing is asked, embedded or saved."""
    desk, expected = uncut
    before = logged(desk, "places")
    again = play(desk, "own", replay=True, run_id=desk.gateway.runs[0])
    assert again.status == 0, again.err
    assert f"equal, all {len(desk.gateway.journal)} steps" in again.err
    assert told(again) == expected
    assert logged(desk, "places") == before


def test_memory_is_on_with_one_word(desk):
    """`memory=True` with the store that CrewAI makes: killed in a save, it has every record once."""
    ended = play(desk, "switched_on", kills=["after MemoryAnalysis:1", "after ExtractedMemories:2"])
    assert ended.status == 0, ended.err
    answer, saved = told(ended)
    assert len(logged(desk, "deaths")) == 2
    assert answer == "paid 2"
    assert len(saved) == len({(content, scope) for content, scope in saved}) == 4
    assert effects(desk) == [("desk.refund", "1"), ("desk.refund", "2")]


def test_what_failed_to_be_recalled_stays_unknown(desk):
    """An embedder that was away in the first attempt: the next one's prompts hold no memories either."""
    desk.env["BLIND"] = "1"
    ended = play(desk, "own", kills=["after agent:4"])
    assert ended.status == 0, ended.err
    assert logged(desk, "deaths")
    assert not [one for one in prompts(desk) if "Relevant memories" in one]
    again = play(desk, "own", replay=True, run_id=desk.gateway.runs[0])
    assert again.status == 0, again.err


def test_two_runs_of_a_program_save_each_their_own(desk):
    """The steps of both have the same keys; what they save has not the same ids."""
    counts = []
    for _ in range(2):
        (desk.tmp / "deaths").unlink(missing_ok=True)
        (desk.tmp / "places").unlink(missing_ok=True)
        desk.gateway.journal.clear()
        ended = play(desk, "own", kills=["before save:1"])
        assert ended.status == 0, ended.err
        counts.append(len(told(ended)[1]))
    assert counts == [5, 10]


def test_memory_off_asks_no_model_of_memory(desk):
    """As ever."""
    ended = play(desk, "off", kills=["before agent:3"])
    assert ended.status == 0, ended.err
    assert told(ended) == ["paid 2", []]
    assert prompts(desk).total() == 4
