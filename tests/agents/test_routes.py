"""Every route by which CrewAI reaches a tool, in a real child of a real launcher."""

import json
from collections import Counter
from collections.abc import Callable

import pytest
from fakes.fake_gateway import FakeGateway, Reply, Seen, denied, done, failed

ROUTES = "routes.py"
TOOL_ROUTES = {
    "native": ("desk.refund", {"order": "native", "amount": 5.0}),
    "react_route": ("desk.refund", {"order": "react", "amount": 5.0}),
    "kickoff_async": ("desk.refund", {"order": "kickoff_async", "amount": 5.0}),
    "akickoff": ("desk.refund", {"order": "akickoff", "amount": 5.0}),
    "agent_kickoff": ("desk.refund", {"order": "agent_kickoff", "amount": 5.0}),
    "task_alone": ("desk.lookup", {"order": "task_alone", "deep": False}),
    "hooks_cleared": ("desk.refund", {"order": "cleared", "amount": 5.0}),
    "akickoff_react": ("desk.refund", {"order": "akickoff_react", "amount": 5.0}),
    "agent_akickoff": ("desk.refund", {"order": "agent_akickoff", "amount": 5.0}),
    "agent_kickoff_async": ("desk.refund", {"order": "agent_kickoff_async", "amount": 5.0}),
    "async_task": ("desk.refund", {"order": "async_task", "amount": 5.0}),
    "with_timeout": ("desk.refund", {"order": "timeout", "amount": 5.0}),
    "fuzzy": ("desk.delete_files", {"path": "fuzzy"}),
}


def behave(seen: Seen, _nth: int) -> Reply:
    """Says yes, but to some orders."""
    if seen.arguments.get("order") == "denied":
        return denied("tool_not_granted")
    if seen.arguments.get("order") == "fails":
        return failed("no such order")
    return done(seen.arguments) if seen.tool == "desk.box" else done(f"{seen.tool} ok")


@pytest.fixture(scope="module")
def gateway():
    """What the gateway saw of all routes."""
    return FakeGateway(behave=behave)


@pytest.fixture(scope="module")
def ended(gateway: FakeGateway, make_desk: Callable):
    """All routes, run in one program."""
    desk = make_desk(gateway)
    ended = desk.script(ROUTES)
    assert ended.status == 0, ended.err
    return ended


def calls(gateway: FakeGateway, **wanted: object) -> list[Seen]:
    return [seen for seen in gateway.seen if wanted.items() <= seen.arguments.items()]


def test_no_tool_body_ran_in_the_agent(ended):
    """Not one body left its mark in the agent's process."""
    assert ended.marks == []


def test_no_route_raised(ended):
    """Refusals and failures come back as values."""
    assert {name: second for name, (first, second) in ended.routes.items() if first == "raised"} == {}


@pytest.mark.parametrize("route", TOOL_ROUTES)
def test_a_loop_ends_at_the_broker_once(route, ended, gateway):
    """One brokered call per logical call, and its result reaches the model."""
    tool, arguments = TOOL_ROUTES[route]
    assert [(seen.tool, seen.role) for seen in calls(gateway, **arguments)] == [(tool, "Clerk")]
    assert ended.routes[route][0] == "finished"
    assert f"{tool} ok" in ended.routes[route][1]


def test_a_flow_that_runs_a_tool_itself_is_brokered(ended, gateway):
    """Flow code passes no loop and no hook."""
    assert ended.routes["flow_direct"][0] == "desk.refund ok"
    assert len(calls(gateway, order="flow_direct")) == 1


def test_functions_run_by_the_model_layer(ended, gateway):
    """A tool's `run` is brokered there; a raw function is refused."""
    first, second = ended.routes["functions_of_the_model_layer"]
    assert first.startswith("desk.refund ok; refused: 'b' is a plain function")
    assert second.startswith("refused: 'c' is a plain function")
    assert len(calls(gateway, order="layer")) == 1


def test_crewais_own_model_client(ended, gateway):
    """The function that CrewAI's OpenAI client runs is brokered; a raw one is refused."""
    brokered, raw = ended.routes["real_model_layer"]
    assert brokered == "desk.refund ok"
    assert raw.startswith("refused: 'refund' is a plain function")
    assert len(calls(gateway, order="real_layer")) == 1


def test_each_of_several_kickoffs_makes_its_own_call(ended, gateway):
    """`kickoff_for_each` with two inputs: two steps."""
    assert len({seen.step_key for seen in calls(gateway, order="for_each")}) == 2


def test_direct_calls_with_positions_have_the_same_form(ended, gateway):
    """Positional, keyword and default arguments arrive validated and complete."""
    assert ended.routes["direct_run"] == ("desk.lookup ok", "desk.lookup ok")
    assert [
        seen.arguments for seen in gateway.seen if seen.arguments.get("order", "").startswith("direct")
    ] == [
        {"order": "direct_run", "deep": False},
        {"order": "direct__run", "deep": True},
    ]


def test_async_entries_are_brokered(ended, gateway):
    """`arun`, `_arun`, an async function, and a class that overrides `arun`."""
    assert ended.routes["arun"] == (
        "desk.lookup ok desk.lookup ok desk.fetch ok {'thing': 'box.arun'}",
        "desk.fetch ok",
    )
    assert [len(calls(gateway, order=o)) for o in ("arun", "_arun")] == [1, 1]
    assert [len(calls(gateway, url=u)) for u in ("fetch", "fetch.run")] == [1, 1]


def test_an_overridden_run_is_one_call_and_keeps_its_kind(ended, gateway):
    """`run` that would call `super().run` and `_run` is brokered once; JSON comes back as a value."""
    assert ended.routes["overridden"] == ("dict", '{"thing": "json"}')
    assert len(calls(gateway, thing="json")) == 1


def test_a_body_from_a_mixin_is_brokered(ended):
    """The body lies in a class that is no BaseTool."""
    assert ended.routes["mixin"] == ("desk.mixed ok", "desk.mixed ok")


def test_structured_tools(ended, gateway):
    """One made from a tool is brokered; one around a plain function is refused."""
    plain, made = ended.routes["structured"]
    assert "refused: 'plain' wraps a plain function" in plain
    assert made == "desk.refund ok"


def test_the_cache_answers_nothing(ended, gateway):
    """Four equal calls, native and ReAct, two agents, cache on: four brokered calls."""
    assert [seen.role for seen in calls(gateway, order="cached")] == ["Clerk", "Clerk", "Clerk", "Other"]


def test_parallel_twins_have_their_own_keys(ended, gateway):
    """Three equal native calls of one reply are three steps."""
    seen = calls(gateway, order="twins")
    assert len(seen) == 3
    assert len({one.step_key for one in seen}) == 3


def test_every_logical_call_has_its_own_key(ended, gateway):
    """No two calls of the whole program share a key."""
    assert [key for key, n in Counter(seen.step_key for seen in gateway.seen).items() if n > 1] == []


def test_an_unknown_tool_is_refused_with_the_line_to_add(ended, gateway):
    """The gateway is not asked; model and person read what to write."""
    line = "is not in meshgate.yaml; add under toolhosts.<host>.tools: - desk_tools:unlisted"
    assert line in ended.routes["unlisted"][1]
    assert line in ended.err
    assert calls(gateway, thing="x") == []


@pytest.mark.parametrize("route", ["denied_native", "denied_react"])
def test_a_denial_is_one_line_and_one_call(route, ended, gateway):
    """Returned as ToolFailure, seen by the model, never tried again."""
    failures, shown = ended.routes[route]
    assert json.loads(failures) == ["denied [D-7]: tool_not_granted; do not retry"]
    assert "denied [D-7]: tool_not_granted; do not retry" in shown
    assert len(calls(gateway, order="denied")) == 2  # one per route


def test_a_failed_tool_is_told_and_not_repeated(ended, gateway):
    """The tool raised in its host."""
    assert "the tool failed (ValueError): no such order" in ended.routes["failed"][1]
    assert len(calls(gateway, order="fails")) == 1


def test_invalid_arguments_ask_nobody(ended, gateway):
    """Arguments that do not fit the schema are told, not sent."""
    assert all("validation failed" in text for text in ended.routes["invalid"])


def test_a_coworkers_calls_are_brokered(ended, gateway):
    """The delegation tool runs in this process; the coworker's tool does not."""
    assert [seen.role for seen in calls(gateway, order="delegated")] == ["Payer"]
    assert "Observation: paid" in ended.routes["delegation"][1]


def test_mcp_tools_of_the_agent_are_refused(ended):
    """No connection is made for them."""
    assert all("no tool host in meshgate.yaml serves" in text for text in ended.routes["mcp"])


def test_a_missing_patch_is_caught_by_the_second_net(ended):
    """Hooks cleared and the body put back: CrewAI's loops still do not run it."""
    assert all("blocked by hook. Tool: late" in text for text in ended.routes["patch_missing"])


def test_run_and_attempt_are_stamped(ended, gateway):
    """The launcher, not the child, says which run and attempt it is."""
    assert {(seen.run_id, seen.attempt) for seen in gateway.seen} == {(gateway.runs[0], 3)}
    assert gateway.finished == [("completed", "exit status 0")]


def test_the_keys_are_the_same_in_another_process(ended, gateway, make_desk):
    """A second run of the same program gives the same step keys, native twins included."""
    again = FakeGateway(behave=behave)
    ended_again = make_desk(again).script(ROUTES)
    assert ended_again.status == 0
    assert {seen.step_key for seen in again.seen} == {seen.step_key for seen in gateway.seen}
