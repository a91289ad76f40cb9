"""What CrewAI has beside agents, tasks and tools, in a crew whose agents are apps: the same, or refused."""

from collections import Counter
from typing import Any

import pytest
from agents.conftest import PROJECT, Ended
from agents.test_split import Split, make, results, told  # noqa: F401 - a fixture

PROGRAM = str(PROJECT / "extras.py")
CLERK = {"clerk": "Clerk"}
BOTH = {**CLERK, "writer": "Writer"}


@pytest.fixture
def extra(make):  # noqa: F811
    """Splits of these crews; CrewAI's storage is one folder per app, as a mesh has it, unless it is named."""

    def made(crew: str, roles: dict[str, str], name: str = "many", **more: Any) -> Split:
        split = make(crew, roles, name, program=PROGRAM, **more)
        storages = {app: str(split.desk.tmp / f"crewai-{app}") for app in ("desk", *roles)}
        if more.get("same_storage"):
            storages = dict.fromkeys(storages, str(split.desk.tmp / "crewai"))
        config = split.desk.config

        def with_storage(file: str, **settings: Any) -> Any:
            env = split.desk.env
            split.desk.env = {**env, "CREWAI_STORAGE_DIR": storages[settings.get("app", "desk")]}
            try:
                return config(file, **settings)
            finally:
                split.desk.env = env

        split.desk.config = split.apps.config = with_storage  # type: ignore[method-assign]
        return split

    return made


def played(split: Split, app: str = "clerk") -> Any:
    """The run that was asked of an app."""
    return next(one for one in split.apps.runs.values() if one.app == app)


# crew: its agents' apps, a text that the prompts must show
EQUAL = {
    "memory": (BOTH, "paid 1 is true"),
    "elsewhere": (BOTH, "Relevant memories"),
    "knowledge": (BOTH, "refund no cruise"),
    "checkpoints": (BOTH, ""),
    "in_time": (CLERK, ""),
    "paced": (CLERK, ""),
    "listened": (CLERK, ""),
}


@pytest.mark.parametrize("crew", EQUAL)
def test_it_is_as_in_one_process(extra, crew) -> None:
    """Results, usage, calls, prompts, what was told on the way; each agent's models in its own process."""
    roles, shown = EQUAL[crew]
    more = {"same_storage": True} if crew == "memory" else {}
    one, many = extra(crew, {}, "one"), extra(crew, roles, **more)
    whole, split = kept(one, crew), kept(many, crew)
    errors = split.err + "".join(run.err for run in many.apps.runs.values())
    assert (whole.status, split.status) == (0, 0), whole.err + errors
    # In one process CrewAI counts before its last save into memory has asked its models.
    how = "each_async" if crew in ("memory", "elsewhere") else "once"
    assert results(split, how) == results(whole, how)
    assert many.calls == one.calls
    assert many.prompts == one.prompts
    assert shown in "".join(one.prompts)
    assert Counter(many.lines("notes")) == Counter(one.lines("notes"))
    assert (one.worked, many.worked) == ({"desk"}, set(roles))
    assert {caller for caller, _, _ in many.apps.calls} <= set(roles)
    assert saved(many) == saved(one) == (2 if crew == "checkpoints" else 0)
    assert many.desk.marks() == []


def kept(split: Split, crew: str) -> Ended:
    """A run whose checkpoints were all written: CrewAI's threads may race with events, in any process."""
    for _ in range(6):
        ended = split.run(crew)
        if "changed size during iteration" not in ended.err:
            break
        for path in [split.desk.tmp / "prompts", *(split.desk.tmp / "checkpoints").rglob("*.json")]:
            path.unlink()
        for journal in (split.desk.gateway.journal, split.apps.calls, split.apps.asked, split.apps.runs):
            journal.clear()
        split.apps.keys.clear()
    return ended


def saved(split: Split) -> int:
    """How many checkpoints there are."""
    return len(list((split.desk.tmp / "checkpoints").rglob("*.json")))


def test_a_split_crew_goes_on_from_a_checkpoint(extra) -> None:
    """The task that was done is not asked for again; nothing is written in an agent's process."""
    split = extra("checkpoints", BOTH)
    kept(split, "checkpoints")
    assert saved(split) == 2
    asked = [seen.tool for _, seen in split.apps.asked]
    split.desk.gateway.journal.clear()
    ended = split.run("checkpoints", "restored")
    assert ended.status == 0, ended.err
    assert told(ended)[0]["raw"] == "saw 2"
    assert [seen.tool for _, seen in split.apps.asked][len(asked) :] == ["agent:writer"]
    assert [tool for _, tool, _ in split.apps.calls] == ["desk.lookup"] * 3


REFUSED = {
    "crew_paced": ("once", "the max_rpm of its crew would be counted in each process apart"),
    "memory": ("once", "list CREWAI_STORAGE_DIR in the crew's env"),
    "within": ("once", "checkpoints are to be written at llm_call_completed"),
    "everywhere": ("once", "checkpoints are to be written at *"),
    "files": ("once", "the task comes with files"),
    "plain": ("alone", "kickoff would have it work in this one"),
}


@pytest.mark.parametrize("crew", REFUSED)
def test_what_would_be_lost_is_refused_before_anything_is_asked(extra, crew) -> None:
    """In a sentence that says what to do."""
    how, line = REFUSED[crew]
    split = extra(crew, BOTH)
    ended = split.run(crew, how)
    assert ended.status == 1
    (last,) = [text for text in ended.err.splitlines() if text.startswith("meshgate.DelegationRefused: ")]
    assert line in last
    assert "works in app 'clerk'" in last
    assert split.apps.asked == []
    assert split.lines("prompts") == []


@pytest.mark.parametrize(("how", "what"), [("called", "step_callback"), ("heard", "llm_call_completed")])
def test_what_a_script_adds_later_is_missed_in_the_agents_process(extra, how, what) -> None:
    """It is told of it and declines; whoever asked has a sentence."""
    split = extra("plain", CLERK)
    ended = split.run("plain", how)
    assert ended.status == 1
    assert "is built without a step callback or an event listener that the asking process has" in ended.err
    assert f"the asking process has {what}, which is not set where its crew is built" in played(split).err
    assert split.apps.asked[0][1].arguments["expects"] == [what]
    assert split.lines("prompts") == []


def test_an_agent_that_takes_too_long_has_failed(extra) -> None:
    """As in one process, where the crew raises: the reason is the agent's run's."""
    one, many = extra("too_long", {}, "one"), extra("too_long", CLERK)
    many.apps.apps["clerk"]["attempts"] = 1
    whole, split = one.run("too_long", attempts=1), many.run("too_long", attempts=1)
    assert (whole.status, split.status) == (1, 1)
    assert "TimeoutError: Task 'work' execution timed out after 1 seconds" in whole.err
    assert "agent 'Clerk' (app 'clerk') failed: " in split.err
    assert "TimeoutError" in split.err
    assert "execution timed out after 1 seconds" in played(many).err


def test_a_memory_that_may_not_be_written_to_is_no_memory(extra) -> None:
    """CrewAI would go on and remember nothing; the agent declines instead."""
    split = extra("withheld", CLERK)
    ended = split.run("withheld")
    assert ended.status == 1
    assert "its process may not write where the memory of its crew lies" in ended.err
    assert split.lines("prompts") == []
