"""Tools that one process of a split crew built and another did not: a task is declined, or goes on."""

import pytest
from agents.conftest import PROJECT
from agents.test_split import Split, make, told  # noqa: F401 - a fixture
from agents.test_split_extras import CLERK, played
from meshgate_agents.child import held_tools
from meshgate_deploy import delegations

PROGRAM = str(PROJECT / "keyed.py")
DECLINED = (
    "its crew is built without a tool that the asking process has for this task; its log names the tool"
)


@pytest.fixture
def keyed(make):  # noqa: F811
    """Splits of these crews: only the clerk is an app."""
    return lambda crew, roles=CLERK, name="many": make(crew, roles, name, program=PROGRAM)


def shown(split: Split, crew: str, how: str = "once") -> str:
    """What the log of the agent's run says; the task was declined before any model was asked."""
    ended = split.run(crew, how)
    assert ended.status == 1
    assert "agent 'Clerk' (app 'clerk') failed: " in ended.err
    assert DECLINED in ended.err
    assert (split.lines("prompts"), split.apps.calls) == ([], [])
    (run,) = split.apps.runs.values()
    assert len(run.gateway.finished) == 1
    return run.err


# crew: how it is kicked off, which tool is said to be missing
MISSING = {
    "agents_tool": ("once", "refund"),
    "tasks_tool": ("once", "refund"),
    "no_task_tools": ("once", "lookup"),
    "none_here": ("once", "lookup"),
    "script": ("later", "refund"),
    "strange": ("once", "pay?meshgate: all is well xxxxxxxxxxxxxxxxxxxxx~"),
    "hundreds": ("once", "more than 100 tools that are not the 150 here"),
    "more_hundreds": ("once", "more than 100 tools that are not the 151 here"),
}


@pytest.mark.parametrize("crew", MISSING)
def test_a_tool_that_the_agents_process_lacks_is_said(keyed, crew) -> None:
    """After one attempt, in both logs; nothing was done without the tool."""
    how, missing = MISSING[crew]
    log = shown(keyed(crew), crew, how)
    (line,) = [text for text in log.splitlines() if "the process that asks built" in text]
    assert f"built agent 'the_clerk' of crew 'desk' with {missing}" in line
    assert "give this agent what they are made from" in line


def test_a_coworkers_tool_that_is_lacking_is_told_to_who_asked(keyed) -> None:
    """Inside CrewAI's delegation tool that is a text for its model."""
    split = keyed("coworkers_tool")
    ended = split.run("coworkers_tool")
    assert ended.status == 0, ended.err
    assert "with refund, and this one without" in played(split).err
    assert any(DECLINED in line for line in split.lines("prompts"))
    assert (split.worked, split.apps.calls) == ({"desk"}, [])


@pytest.mark.parametrize("crew", ["own_tool", "coworkers_own"])
def test_a_tool_that_the_agents_process_alone_has_is_its_own(keyed, crew) -> None:
    """Its own key made it, its own grants decide on each call; its log says that the other has it not."""
    split = keyed(crew)
    ended = split.run(crew)
    assert ended.status == 0, ended.err + played(split).err
    assert [(app, tool) for app, tool, _ in split.apps.calls] == [("clerk", "desk.refund")]
    log = played(split).err
    more = "lookup, refund" if crew == "own_tool" else "refund"
    assert f"meshgate: agent 'the_clerk' of crew 'desk' has {more} here, and not in the process" in log
    assert "tools" not in split.apps.asked[0][1].arguments


@pytest.mark.parametrize("crew", ["equal_hundreds", "a_hundred"])
def test_a_crew_of_very_many_tools_is_carried_over(keyed, crew) -> None:
    """By name, or as one digest, with a bound: the results are those of one process."""
    one, many = keyed(crew, {}, "one"), keyed(crew)
    whole, split = one.run(crew), many.run(crew)
    assert (whole.status, split.status) == (0, 0), split.err
    assert told(split) == told(whole)
    assert many.prompts == one.prompts
    said = many.apps.asked[0][1].arguments["tools"]
    assert len(said) == (100 if crew == "a_hundred" else 64)
    assert "here, and not in the process that asks" not in played(many).err


def test_tools_that_a_program_hands_over_with_a_task_of_its_own_are_refused(keyed) -> None:
    """The other process makes such a task from its text, and would not have them."""
    split = keyed("script")
    ended = split.run("script", "handed")
    assert ended.status == 1
    assert "the task is none of its crew's, so that its tools would be lost; make it one" in ended.err
    assert (split.apps.asked, split.lines("prompts")) == ([], [])


def test_what_is_told_fits_the_agents_schema() -> None:
    """Both sides of the same bounds."""
    assert held_tools.MAX_LISTED == delegations.MAX_TOOLS
    assert held_tools.MAX_CHARACTERS == delegations.MAX_TOOL_CHARACTERS
    for name in ("x" * 64, "x" * 65, "a\nb", "\ud800", ""):
        (said,) = held_tools.of(_Holds(name), None, index=None)
        assert (len(said) <= held_tools.MAX_CHARACTERS, said.isprintable()) == (True, True)
    assert held_tools.of(_Holds("x" * 64 + "a"), None, index=None) != held_tools.of(
        _Holds("x" * 64 + "b"), None, index=None
    )


class _Holds:
    def __init__(self, name: str) -> None:
        self.name = name
        self.tools = [self]
