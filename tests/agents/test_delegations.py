"""Asking an agent that is an app: what is sent, what is refused, and what becomes of each answer."""

import json
import sys
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from agents.test_launcher_bounds import Remembering, eventually, made
from agents.test_split import make, told  # noqa: F401 - a fixture
from fakes.fake_gateway import denied, done, failed
from meshgate_agents.child import carrying, colleagues, delegated_forms, delegating
from meshgate_agents.child.framing import BadFrame
from meshgate_agents.launcher.children import Program
from meshgate_agents.launcher.colleagues import Colleagues
from meshgate_agents.launcher.errors import BadSettings
from meshgate_agents.launcher.gateway import Answer
from meshgate_agents.launcher.orders import fit, program
from meshgate_agents.launcher.settings import Colleague, load
from pydantic import BaseModel

CLERK = {"clerk": "Clerk for {shop}"}
BOTH = {**CLERK, "writer": "Writer"}
STEP = {"key": "ab" * 32, "scope": "cd" * 32, "turn": 0, "task": "ef" * 32}
GIVEN = {"crew": "desk", "agent": "a"}
OUTPUT = {"output": {"type": "text", "value": "paid"}, "usage": {"total_tokens": 7, "successful_requests": 1}}


class Asked(Remembering):
    """A gateway that answers calls from a list, and keeps them."""

    def __init__(self, *answers: Answer) -> None:
        super().__init__()
        self.answers, self.calls = list(answers), []
        self.reached, self.go_on = threading.Event(), threading.Event()

    def call_tool(self, call: Any) -> Answer:
        self.calls.append(call)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if self.calls[1:]:  # the first answer was heard
            self.reached.set()
            assert self.go_on.wait(20)
        return answer


def listed(*apps: str) -> Colleagues:
    entries = [Colleague(crew="desk", agent=app, role=app.title(), app=app) for app in apps]
    return Colleagues(own="desk", listed=entries, crews={})


def request(app: object = "clerk", **more: Any) -> dict[str, Any]:
    return {"op": "delegate", "app": app, "arguments": json.dumps(GIVEN), "step": STEP, **more}


def test_only_colleagues_are_asked() -> None:
    """An app that the manifest does not list, the app itself and another tool's name reach no gateway."""
    gateway = Asked(Answer(state="done"))
    session = made(gateway, colleagues=listed("desk", "clerk"))
    for app in ("treasurer", "desk", "", "agent:clerk", "Clerk", "clerk ", "clerk\nx"):
        answer = session.answer(request(app), 1)
        assert answer["state"] == "refused", app
        assert "no colleague" in answer["text"]
    for app in (None, 7, ["clerk"]):
        with pytest.raises(BadFrame):
            session.answer(request(app), 1)
    assert gateway.calls == gateway.asked == []


def test_nothing_but_the_delegation_goes_on() -> None:
    """Neither a forged chain, nor a run, an attempt or a tool of a child's own choice."""
    gateway = Asked(Answer(state="done", kind="json", result=json.dumps(OUTPUT)))
    session = made(gateway, colleagues=listed("clerk"))
    forged = {
        "chain": [{"app": "owner"}],
        "callers": ["owner"],
        "run_id": "other",
        "attempt": 9,
        "tool": "agent:owner",
        "identity": {"qualname": "m:t"},
        "untrusted": {"role": "Lead", "chain": "owner", "app": "owner"},
    }
    assert session.answer(request(**forged), 1)["state"] == "done"
    (call,) = gateway.calls
    assert (call.tool, call.run_id, call.attempt) == ("agent:clerk", "run-1", 1)
    assert (json.loads(call.arguments_json), dict(call.untrusted)) == (GIVEN, {"role": "Lead"})
    assert (call.step_key, call.scope, call.task) == (STEP["key"], STEP["scope"], STEP["task"])


@pytest.mark.parametrize("operation", ["delegate", "call"])
def test_a_pending_delegation_is_no_stall(operation) -> None:
    """The other run takes as long as it takes, and this one may be paused meanwhile; a tool is waited for."""
    gateway = Asked(Answer(state="pending"), Answer(state="done", kind="json", result=json.dumps(OUTPUT)))
    session = made(gateway, colleagues=listed("clerk"))
    session._calls._tools.find = lambda **_: "desk.refund"
    session._moved_at = time.monotonic() - 1000
    asking = threading.Thread(target=session.answer, args=(request(op=operation, identity={}), 1))
    asking.start()
    assert gateway.reached.wait(20)
    delegated = operation == "delegate"
    assert (session.idle_seconds < 100, session.pause()) == (delegated, delegated)
    gateway.go_on.set()
    asking.join(20)
    assert session.steps == 1


def test_a_report_is_answered_with_the_colleagues() -> None:
    """The child learns who is who from its launcher alone."""
    session = made(Remembering(), colleagues=listed("clerk"))
    answer = session.answer({"op": "report", "program": "p"}, 1)
    entry = {"crew": "desk", "agent": "clerk", "role": "Clerk", "app": "clerk", "same_storage": False}
    assert (answer["app"], answer["colleagues"], answer["crews"]) == ("desk", [entry], {})


def test_an_agents_app_is_handed_what_it_was_asked_for() -> None:
    """The order of its run holds the delegation; a crew's holds inputs, also when they are null."""
    own = Program(command=("x",))
    for envelope, given in (
        ({"app": "clerk", "delegation": {"crew": "desk"}}, b'{"crew": "desk"}'),
        ({"app": "desk", "input": None}, b"null"),
        ({"app": "desk"}, None),
    ):
        assert program(json.dumps(envelope).encode(), own).given == given


@pytest.mark.parametrize(
    ("kind", "order", "said"),
    [
        ("agent", {"delegation": {}}, ""),
        ("crew", {"input": {"delegation": 1}}, ""),
        ("program", {}, ""),
        ("crew", {"delegation": {}}, "a task for an agent, and its app is a crew by now"),
        ("program", {"delegation": {}}, "a task for an agent, and its app is a program by now"),
        ("agent", {"input": {"crew": "desk"}}, "acts only when asked"),
        ("agent", {"command": ["x"]}, "acts only when asked"),
        ("agent", 5, "cannot be read"),
    ],
)
def test_only_an_agent_plays_a_task_and_nothing_else(kind, order, said) -> None:
    """What its app was when a run was made, it may not be any more: then nothing of the run is played."""
    with pytest.raises(BadSettings, match=said) if said else nullcontext():
        fit(json.dumps(order).encode(), kind=kind)


@pytest.fixture
def known(monkeypatch):
    """Tells this process who is who."""
    monkeypatch.setattr(colleagues, "_told", colleagues._Told())

    def learn(*entries: tuple[str, str, str], own: str = "desk") -> None:
        names = ("crew", "role", "app")
        items = [{**dict(zip(names, entry, strict=True)), "agent": "x"} for entry in entries]
        colleagues.learn({"app": own, "colleagues": items})

    return learn


def worker(role: str, written: str | None = None) -> Any:
    return SimpleNamespace(role=role, _original_role=written)


def test_an_agent_is_known_by_the_role_that_was_written(known) -> None:
    """Not by what the inputs made of it, nor by its line breaks; one that is listed nowhere works here."""
    known(("desk", "Clerk for {shop}\n", "clerk"), ("desk", "Lead", "desk"))
    assert colleagues.elsewhere(worker("Clerk for S", "Clerk for\n {shop}")).app == "clerk"
    for agent in (worker("Clerk"), worker("Lead"), worker("Crew Manager"), worker("clerk for {shop}")):
        assert colleagues.elsewhere(agent) is None


@pytest.mark.parametrize("role", ["Clerk for S", "Clerk for\n S and T", "Clerk for ", "Clerk for {other}"])
def test_a_role_that_was_filled_in_and_is_lost_is_refused(known, role) -> None:
    """A copy or a restored agent of another app's would work here, with this one's identity."""
    known(("desk", "Clerk for {shop}", "clerk"), ("desk", "{anything}", "any"), ("desk", "Own {x}", "desk"))
    with pytest.raises(colleagues.Ambiguous, match="with inputs filled in"):
        colleagues.elsewhere(worker(role, role))
    for other in ("A Clerk for S", "Clerk", "Own y"):
        assert colleagues.elsewhere(worker(other, other)) is None


def test_a_role_of_two_apps_is_nobodys(known) -> None:
    """Unless this process works for one of the two crews."""
    known(("desk", "Clerk", "a"), ("night", "Clerk", "b"), own="clerk")
    with pytest.raises(colleagues.Ambiguous):
        colleagues.elsewhere(worker("Clerk"))
    colleagues.works_for("night")
    assert colleagues.elsewhere(worker("Clerk")).app == "b"


class Report(BaseModel):
    paid: int


class Other(BaseModel):
    paid: int


TASK = SimpleNamespace(output_pydantic=Report)
REPORT = {"type": "pydantic", "class": f"{__name__}:Report", "value": {"paid": 1}}


PLAIN = [{"a": [1, None, "x"]}, [], None, 3, 0.5, True]


@pytest.mark.parametrize("of_crew", [True, False])
@pytest.mark.parametrize("output", ["text", "", "null", "7", Report(paid=2)])
def test_what_an_agent_gave_is_the_same_on_the_other_side(output, of_crew) -> None:
    """Text and objects of the task's class, by way of JSON."""
    form = json.loads(json.dumps(delegated_forms.encode(output, TASK, of_crew=of_crew)))
    rebuilt = delegated_forms.rebuild(form, TASK, of_crew=of_crew)
    assert (rebuilt, type(rebuilt)) == (output, type(output))


@pytest.mark.parametrize("output", PLAIN)
def test_plain_values_are_for_coworkers_only(output) -> None:
    """A tool gives them on to a model; a task of a crew would end with CrewAI's own TypeError."""
    form = json.loads(json.dumps(delegated_forms.encode(output, TASK, of_crew=False)))
    assert delegated_forms.rebuild(form, TASK, of_crew=False) == output
    with pytest.raises(delegated_forms.NoForm):
        delegated_forms.encode(output, TASK, of_crew=True)
    with pytest.raises(delegated_forms.NoForm):
        delegated_forms.rebuild(form, TASK, of_crew=True)


@pytest.mark.parametrize("of_crew", [True, False])
def test_objects_of_other_classes_have_no_form(of_crew) -> None:
    """Nothing is imported by a name: only a class that the task at hand names is made."""
    for output in (Other(paid=1), object(), {1: 2}, [object()], (1,)):
        with pytest.raises(delegated_forms.NoForm):
            delegated_forms.encode(output, TASK, of_crew=of_crew)
    bad = [None, 3, [], {}, {"type": "text", "value": 3}, {"type": "json"}, {"type": "pickle", "value": "x"}]
    wrong = [{"class": "os:system"}, {"class": f"{__name__}:Other"}, {"class": 7}, {"value": {"paid": "x"}}]
    wrong += [{"value": value} for value in (None, 7, "paid", [])]
    for form in [*bad, *({**REPORT, **one} for one in wrong)]:
        with pytest.raises(delegated_forms.NoForm):
            delegated_forms.rebuild(form, TASK, of_crew=of_crew)


def test_usage_is_added_where_crewai_counts() -> None:
    """To the model, else to the agent's own count; what is no number of tokens counts for nothing."""
    counts = {"total_tokens": 1, "prompt_tokens": 1}
    agent = SimpleNamespace(llm=SimpleNamespace(_token_usage=counts))
    for usage in (
        {"total_tokens": 4, "other": 9},
        {"total_tokens": -5, "prompt_tokens": "7"},
        {"total_tokens": 10**4000},
        None,
        [],
        {"x": True},
    ):
        delegated_forms.account(agent, usage)
    assert counts == {"total_tokens": 5, "prompt_tokens": 1}
    before = delegated_forms.spent([agent, agent])
    delegated_forms.account(agent, {"prompt_tokens": 2})
    assert delegated_forms.since(before, delegated_forms.spent([agent])) == {
        "total_tokens": 0,
        "prompt_tokens": 2,
    }


def test_a_task_made_on_the_way_keeps_nothing_of_its_own() -> None:
    """What only its own process knows of it would be lost: it is said before anything is asked."""
    tool = object()
    agent = SimpleNamespace(role="A", tools=[tool], crew=None)
    plain = SimpleNamespace(tools=[tool], description="d")
    assert carrying.hindrance(agent, plain, index=None, to=None) == ""
    assert "A2A" in carrying.hindrance(SimpleNamespace(**vars(agent), a2a=[1]), plain, index=0, to=None)
    for more in ({"output_pydantic": Report}, {"markdown": True}, {"tools": [object()]}):
        text = carrying.hindrance(agent, SimpleNamespace(**{**vars(plain), **more}), index=None, to=None)
        assert next(iter(more)) in text


def test_what_triggered_a_crew_is_carried_over() -> None:
    """As a part of the description, as CrewAI's prompt has it; the other process has no inputs."""
    agent = SimpleNamespace(crew=SimpleNamespace(_inputs={"crewai_trigger_payload": "mail"}))
    task = SimpleNamespace(description="read", allow_crewai_trigger_context=True)
    assert carrying.description(agent, task) == "read\n\nTrigger Payload: mail"
    task.allow_crewai_trigger_context = None
    assert carrying.description(agent, task) == "read"


def split(make, crew: str, roles: dict[str, str], **answers: Any) -> Any:  # noqa: F811
    made_ = make(crew, roles)
    made_.apps.answers.update(answers)
    return made_


@pytest.mark.parametrize(
    ("answer", "error", "line"),
    [
        (denied("delegation_cycle"), "Denied", "denied [D-7]: delegation_cycle"),
        (
            failed("given up after 5 attempts: it broke"),
            "Failed",
            "failed: given up after 5 attempts: it broke",
        ),
        (done([1]), "Failed", "gave no usable result"),
    ],
    ids=["denied", "failed", "unusable"],
)
def test_what_did_not_come_to_pass_is_raised(make, answer, error, line) -> None:  # noqa: F811
    """As by an agent that fails; as the answer is on record, no further attempt is made."""
    desk = split(make, "sequential", CLERK, clerk=answer)
    ended = desk.run("sequential")
    assert ended.status == 1
    last = [text for text in ended.err.splitlines() if text.startswith(f"meshgate.Delegation{error}: ")]
    assert last, ended.err
    assert "agent 'Clerk for S' (app 'clerk')" in last[-1]
    assert line in last[-1]
    assert desk.desk.gateway.ended == []
    assert desk.desk.gateway.finished == [
        ("failed", f"the program ended with status 1 (meshgate.Delegation{error})")
    ]
    assert len(desk.apps.asked) == 1


@pytest.mark.parametrize("result", ["{", "[]", "7", '{"output": 1}', "[" * 100_000 + "]" * 100_000])
def test_a_result_that_is_no_result_is_a_failure_of_its_agent(result) -> None:
    """Also one that is nested too deep to be read: any other error would be tried again, five times."""
    agent = SimpleNamespace(role="Clerk")
    to = colleagues.Colleague("desk", "clerk", "Clerk", "clerk")
    asked = delegating.Asked(agent, TASK, to, {}, of_crew=True)
    with pytest.raises(delegating.DelegationFailed, match="gave no usable result"):
        delegating._output(asked, {"state": "done", "result": result})


@pytest.mark.parametrize(("crew", "value"), [("sequential", 7), ("pydantic", {"paid": 1}), ("jotted", None)])
def test_json_for_a_task_of_a_crew_is_a_failure_of_its_agent(make, crew, value) -> None:  # noqa: F811
    """Whatever the callee says that it is: CrewAI would end with a TypeError that names nobody."""
    answer = done({"output": {"type": "json", "value": value}, "usage": {}})
    desk = split(make, crew, {"clerk": "Clerk for {shop}" if crew == "sequential" else "Clerk"}, clerk=answer)
    ended = desk.run(crew)
    assert ended.status == 1
    last = [text for text in ended.err.splitlines() if text.startswith("meshgate.DelegationFailed: ")]
    assert last, ended.err
    assert "gave no usable result: JSON, where a task of a crew takes text" in last[-1]
    assert len(desk.apps.asked) == 1
    assert desk.desk.gateway.ended == []


def test_an_agent_that_gives_no_text_says_so(make) -> None:  # noqa: F811
    """In its own process, where its code is; the caller is told in one line, after one attempt."""
    desk = make("odd", {"clerk": "Clerk"})
    ended = desk.run("odd")
    assert ended.status == 1
    assert "failed: gave what is neither text nor an object of a class that the task names" in ended.err
    (played,) = desk.apps.runs.values()
    assert "an output of class builtins:dict" in played.err


def test_a_coworker_may_give_json(make) -> None:  # noqa: F811
    """CrewAI's tool shows it to the model."""
    answer = done({"output": {"type": "json", "value": {"paid": 1}}, "usage": {}})
    desk = split(make, "delegates", BOTH | {"clerk": "Clerk"}, clerk=answer, writer=done(OUTPUT))
    ended = desk.run("delegates")
    assert (ended.status, told(ended)[0]["raw"]) == (0, "all done"), ended.err
    assert "paid" in desk.lines("prompts")[1]


def test_a_model_is_told_why_its_coworker_was_not_asked(make) -> None:  # noqa: F811
    """CrewAI's own delegation tools make text of it; the question names the one who asks."""
    desk = split(
        make,
        "delegates",
        {"clerk": "Clerk", "writer": "Writer"},
        clerk=denied("narrowed"),
        writer=done(OUTPUT),
    )
    ended = desk.run("delegates")
    assert (ended.status, told(ended)[0]["raw"]) == (0, "all done"), ended.err
    assert told(ended)[0]["usage"]["total_tokens"] == 3 * 15 + 7
    assert "denied [D-7]: narrowed; do not retry" in desk.lines("prompts")[1]
    assert [(seen.tool, seen.role) for _, seen in desk.apps.asked] == [
        ("agent:clerk", "Lead"),
        ("agent:writer", "Lead"),
    ]
    delegation = desk.apps.asked[0][1].arguments
    assert (delegation["task"]["index"], delegation["context"]) == (None, "now")


def test_the_same_work_handed_over_twice_is_two_delegations(make) -> None:  # noqa: F811
    """In one reply of a model, so side by side; in one process the agent would be at work already."""
    desk = make("twins", {"clerk": "Clerk"})
    ended = desk.run("twins")
    assert ended.status == 0, ended.err
    (first, second) = (seen for _, seen in desk.apps.asked)
    assert (first.arguments, first.task) == (second.arguments, second.task)
    assert first.step_key != second.step_key
    assert told(ended)[0]["usage"]["total_tokens"] == 6 * 15
    assert [caller for caller, _, _ in desk.apps.calls] == ["clerk", "clerk"]


def test_a_later_attempt_is_answered_from_the_journal(make) -> None:  # noqa: F811
    """The crew is killed after its agent has done its part: it is not asked again, and usage is the sum."""
    desk = make("sequential", CLERK)
    desk.desk.env["DIE_AT"] = "all written"
    ended = desk.run("sequential")
    assert ended.status == 0, ended.err
    assert [state for state, _ in desk.desk.gateway.ended] == ["restarting"]
    assert told(ended)[0]["usage"]["total_tokens"] == 3 * 15
    assert [len(desk.apps.asked), len(desk.apps.runs), len(desk.apps.calls)] == [1, 1, 1]
    replayed = desk.run("sequential", replay=True, run_id=desk.desk.gateway.runs[0])
    assert "equal, all 2 steps" in replayed.err
    assert told(replayed) == told(ended)
    desk.colleagues.clear()
    assert "the first difference" in desk.run("sequential", replay=True, run_id="r").err


def test_an_agent_that_is_killed_goes_on(make) -> None:  # noqa: F811
    """Its run has attempts of its own; whoever asked waits, and its effect is made once."""
    desk = make("sequential", BOTH)
    desk.desk.env["DIE_AT"] = "paid 1"
    ended = desk.run("sequential")
    assert ended.status == 0, ended.err
    runs = {played.app: played.gateway for played in desk.apps.runs.values()}
    assert [state for state, _ in runs["clerk"].ended] == ["restarting"]
    assert desk.desk.gateway.ended == runs["writer"].ended == []
    assert told(ended)[0]["usage"]["total_tokens"] == 3 * 15
    assert len(desk.apps.calls) == 1


@pytest.mark.parametrize(
    ("crew", "how", "roles", "line"),
    [
        ("human", "once", {"clerk": "Clerk"}, "the task asks for human input"),
        ("sequential", "stream", CLERK, "its output is streamed"),
        ("large", "once", {"writer": "Writer"}, "262144 at most can be carried over"),
    ],
    ids=["human", "stream", "large"],
)
def test_what_cannot_be_carried_is_refused_before_anything_is_asked(make, crew, how, roles, line) -> None:  # noqa: F811
    """In a sentence that says what to do."""
    desk = make(crew, roles)
    ended = desk.run(crew, how)
    assert ended.status == 1
    assert "works in app" in ended.err
    assert line in ended.err
    assert desk.apps.asked == []


DELEGATION = {
    "crew": "desk",
    "agent": "the_clerk",
    "persona": {"role": "Clerk for S", "goal": "g", "backstory": "b"},
    "task": {"index": 0, "name": "", "description": "pay", "expected_output": "done"},
    "context": "",
}


@pytest.mark.parametrize(
    ("crew", "role", "change", "detail"),
    [
        ("sequential", "Clerk for {shop}", {"task": {"index": 1}}, "asks for a task it was not given"),
        ("sequential", "Clerk for {shop}", {"task": {"index": 2}}, "asks for a task it was not given"),
        ("hierarchical", "Clerk", {}, "asks for a task it was not given"),
        ("sequential", "Nobody", {}, "its crew has no agent of that role"),
        ("sequential", "Clerk for {shop}", {"agent": "the_writer"}, "asks for an agent that this app is not"),
        ("sequential", "Clerk for {shop}", {"crew": "night"}, "asks for a crew that this app is no agent of"),
        ("sequential", "Clerk for {shop}", {"task": {"index": -1}}, "the delegation cannot be read"),
        ("human", "Clerk", {}, "the task holds what cannot be carried over"),
        ("flow", "Clerk", {}, "its reference gives no crew"),
    ],
    ids=[
        "other-task",
        "no-task",
        "managers-task",
        "no-agent",
        "other-agent",
        "other-crew",
        "unreadable",
        "human",
        "flow",
    ],
)
def test_an_agent_does_only_what_it_was_given(make, crew, role, change, detail) -> None:  # noqa: F811
    """Whoever asks: nothing runs, and the caller is told why in a sentence, after one attempt."""
    desk = make(crew, {"clerk": role, "writer": "Writer"})
    asked = {**DELEGATION, **change, "task": {**DELEGATION["task"], **change.get("task", {})}}
    desk.apps._played("clerk", SimpleNamespace(run_id="r", step_key="k", arguments=asked))
    (played,) = desk.apps.runs.values()
    eventually(lambda: played.answer is not None, 60)
    assert played.gateway.finished == [("failed", detail)], played.err
    assert (played.gateway.ended, desk.lines("prompts"), desk.apps.calls) == ([], [], [])


def test_what_is_too_large_to_hand_back_is_said(make) -> None:  # noqa: F811
    """It would be kept with no run; the caller learns it, after one attempt."""
    desk = make("huge", {"clerk": "Clerk"})
    ended = desk.run("huge")
    assert "failed: gave a result that is too large" in ended.err
    (played,) = desk.apps.runs.values()
    assert "the result has 1100" in played.err
    assert played.gateway.ended == []


def test_a_colleague_is_written_whole(tmp_path) -> None:
    """A config that leaves something out starts nothing."""
    config = {
        "app": "desk", "kind": "crew", "mesh": "m", "trust_domain": "t", "workload_api": "w",
        "gateway": {"target": "t", "server_name": "s"}, "project_root": "/", "socket_dir": "/", "tools": [],
        "expects_report": True, "env": {}, "isolation": None,
    }  # fmt: skip
    entry = {"crew": "desk", "agent": "a", "role": "A", "app": "a"}
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**config, "colleagues": [entry], "crews": {"desk": "m:c"}}))
    settings = load(path)
    assert (settings.colleagues, settings.crews) == ((Colleague(**entry),), {"desk": "m:c"})
    for left in entry:
        path.write_text(json.dumps({**config, "colleagues": [{k: v for k, v in entry.items() if k != left}]}))
        with pytest.raises(BadSettings):
            load(path)


def test_an_agents_app_that_nobody_asked_does_nothing(make) -> None:  # noqa: F811
    """It has no task; by hand it says so."""
    desk = make("sequential", CLERK)
    ended = desk.desk.run(sys.executable, "-m", "meshgate_agent", **desk.apps.apps["clerk"], app="clerk")
    assert ended.status == 2
    assert "acts only when its crew asks it for something" in ended.err
