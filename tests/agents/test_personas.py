"""What the process of an agent that may delegate is told of coworkers, as the inputs made them."""

import json
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from agents.test_delegations import DELEGATION
from agents.test_launcher_bounds import eventually
from agents.test_split import make  # noqa: F401 - a fixture
from meshgate_agents.child import carrying, colleagues, delegating, personas

LEAD = colleagues.Colleague("desk", "x", "Lead", "lead")
ROLES = {"lead": "Lead of {shop}", "clerk": "Clerk for {shop}", "writer": "Writer"}
CLERK = {"role": "Clerk for S", "goal": "pays at S", "backstory": "b"}
WRITER = {"role": "Writer", "goal": "writes for S", "backstory": "b"}
GIVEN = {
    **DELEGATION,
    "agent": "the_lead",
    "persona": {"role": "Lead of S", "goal": "g", "backstory": "b"},
}


def agent(role: str, **more: Any) -> Any:
    texts = {"role": role, "goal": "g", "backstory": "b"}
    return SimpleNamespace(**{**texts, "allow_delegation": False, **more})


def task(**more: Any) -> Any:
    plain = {"name": None, "description": "d", "expected_output": "e", "tools": [], "agent": None}
    return SimpleNamespace(id=uuid.uuid4(), **{**plain, **more})


def crewed(lead: Any, *others: Any, **more: Any) -> Any:
    """The lead, in a crew with these others, and the task it has there."""
    given = task()
    crew = {"agents": [lead, *others], "tasks": [given], "manager_agent": None, "id": uuid.uuid4()}
    lead.crew = SimpleNamespace(**{**crew, **more})
    return given


@pytest.fixture
def told(monkeypatch):
    """Tells this process which agents are apps, by their keys."""
    monkeypatch.setattr(colleagues, "_told", colleagues._Told())

    def learn(**roles: str) -> None:
        listed = [{"crew": "desk", "agent": key, "role": role, "app": key} for key, role in roles.items()]
        colleagues.learn({"app": "desk", "colleagues": listed})

    return learn


def sent(lead: Any, given: Any) -> Any:
    asked = delegating.prepare(lead, given, None)
    assert asked is not None
    return json.loads(asked.request["arguments"]).get("colleagues")


def test_who_may_delegate_is_told_of_its_coworkers(told) -> None:
    """Of each that is an app, by its key and as it is by now; only where the inputs made something of one."""
    told(lead="Lead", clerk="Clerk for {shop}", writer="Writer")
    lead, writer = agent("Lead", allow_delegation=True), agent("Writer")
    clerk = agent("Clerk for S", _original_role="Clerk for\n {shop}")
    given = crewed(lead, clerk, writer, agent("Nobody's app"))
    assert sent(lead, given) == {"clerk": personas.of(clerk), "writer": personas.of(writer)}
    clerk.role = "Clerk for {shop}"
    clerk._original_role = clerk.role
    assert sent(lead, given) is None
    writer._original_goal = "{shop}"
    assert set(sent(lead, given)) == {"clerk", "writer"}


def test_who_may_not_delegate_is_told_of_nobody(told) -> None:
    """Nor a coworker that is asked for something, which CrewAI gives nobody to ask; a manager always may."""
    told(lead="Lead", clerk="Clerk for {shop}")
    lead, clerk = agent("Lead"), agent("Clerk for S", _original_role="Clerk for {shop}")
    given = crewed(lead, clerk)
    assert sent(lead, given) is None
    lead.crew.manager_agent = lead
    assert sent(lead, given) == {"clerk": personas.of(clerk)}
    assert sent(lead, task()) is None
    lead.crew.agents, given.agent = [], clerk
    assert sent(lead, given) == {"clerk": personas.of(clerk)}


@pytest.mark.parametrize("text", personas.NAMES)
def test_a_coworker_that_is_no_app_is_not_known_there(told, text) -> None:
    """It would work there as it is written: said before anything is asked."""
    told(lead="Lead", writer="Writer")
    lead, writer = agent("Lead", allow_delegation=True), agent("Writer", _original_goal="{shop}")
    given = crewed(lead, writer, agent("Clerk", **{f"_original_{text}": "{shop}"}))
    with pytest.raises(delegating.DelegationRefused, match="its coworker 'Clerk', which is no app"):
        delegating.prepare(lead, given, None)
    assert carrying.hindrance(lead, given, index=None, to=LEAD) == ""
    lead.allow_delegation = False
    assert carrying.hindrance(lead, given, index=0, to=LEAD) == ""


def test_many_personas_are_refused_by_their_size(told) -> None:
    """With the rest they must fit into one delegation."""
    told(lead="Lead", writer="Writer")
    lead = agent("Lead", allow_delegation=True)
    given = crewed(lead, agent("Writer", goal="x" * 262_144, _original_goal="{shop}"))
    with pytest.raises(delegating.DelegationRefused, match="task, context and personas have"):
        delegating.prepare(lead, given, None)


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"nobody": CLERK}, "tells of a colleague that its crew has not"),
        ({"the_lead": CLERK}, "tells of a colleague that its crew has not"),
        ({"the_clerk": CLERK, "the_ghost": CLERK}, "tells of a colleague that its crew has not"),
        ({"the_clerk": {**CLERK, "role": 7}}, "the delegation cannot be read"),
        ({"the_clerk": {**CLERK, "llm": "other"}}, "the delegation cannot be read"),
        ({"the_clerk": {"role": "Clerk for S"}}, "the delegation cannot be read"),
        ([CLERK], "the delegation cannot be read"),
        (None, "the delegation cannot be read"),
    ],
    ids=["nobody", "itself", "not-built", "number", "more", "less", "array", "null"],
)
def test_only_texts_of_its_own_crew_are_taken(make, change, detail) -> None:  # noqa: F811
    """Whoever asks: nothing runs, and the caller is told why in a sentence, after one attempt."""
    desk = make("named", {**ROLES, "ghost": "Ghost"})
    played = play(desk, change)
    assert played.gateway.finished == [("failed", detail)], played.err
    assert (played.gateway.ended, desk.lines("prompts"), desk.apps.calls) == ([], [], [])


def test_a_persona_makes_no_other_app_of_a_colleague(make) -> None:  # noqa: F811
    """Whoever goes by a name, the app that is asked is that of the written role."""
    desk = make("named", ROLES)
    played = play(desk, {"the_clerk": {**WRITER}, "the_writer": {**CLERK}})
    assert [state for state, _ in played.gateway.finished] == ["completed"], played.err
    asked = [(seen.tool, seen.arguments["agent"], seen.arguments["persona"]) for _, seen in desk.apps.asked]
    assert asked == [("agent:writer", "the_writer", CLERK), ("agent:clerk", "the_clerk", WRITER)]
    assert {caller for caller, _, _ in desk.apps.calls} == {"clerk"}


def play(desk: Any, told_: Any) -> Any:
    """A run of the lead, with these colleagues."""
    seen = SimpleNamespace(run_id="r", step_key="k", arguments={**GIVEN, "colleagues": told_})
    desk.apps._played("lead", seen)
    played = desk.apps.runs[("r", "k")]
    eventually(lambda: played.answer is not None, 60)
    return played
