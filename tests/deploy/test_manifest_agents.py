"""Agents of a crew as apps of their own: what the manifest says of them, and what is made of it."""

import json

import jsonschema
import pytest
import yaml
from meshgate_deploy import catalogue, configs, delegations, generate
from meshgate_deploy.environment import WITHHELD, Environment
from meshgate_deploy.errors import ManifestError, UsageError
from meshgate_deploy.manifest import Manifest, json_schema, load
from meshgate_deploy.manifest_agents import Colleague
from meshgate_deploy.manifest_checks import check_modules
from meshgate_deploy.orders import choose_app
from meshgate_deploy.policy_plane import policy_data
from meshgate_deploy.state import prepare_state

SPLIT = """\
apiVersion: meshgate/v1
mesh: refund-desk
trustDomain: desk.example
crews:
  desk:
    crew: desk.crew:crew
    agents:
      triage_analyst: {role: "Triage {kind} Analyst"}
      billing:
        role: Billing Clerk
        app: billing
        env: [LEDGER_URL]
        secrets: [LEDGER_KEY]
        replicas: 2
        tools: [desk.own:note]
    env: [OPENAI_BASE_URL]
    secrets: [OPENAI_API_KEY]
  night:
    crew: night/crew.jsonc
    isolate: agents
    agents:
      clerk: {role: Night Clerk, app: billing, attempts: 2, env: [NIGHT]}
  alone:
    crew: alone.crew:crew
    isolate: crew
    agents: {billing: {role: Billing Clerk}}
programs:
  nightly: {run: [python, -m, desk.nightly]}
toolhosts:
  orders: {tools: [desk.tools:refund]}
tools:
  orders.refund: {effect: external}
  billing.note: {execute: agent, effect: memory}
"""
CLERK = """    agents:
      clerk: {role: Night Clerk, app: billing, attempts: 2, env: [NIGHT]}
"""
TRIAGE = Colleague("desk", "triage_analyst", "Triage {kind} Analyst", "triage-analyst")
BILLING = Colleague("desk", "billing", "Billing Clerk", "billing")
NIGHT = Colleague("night", "clerk", "Night Clerk", "billing")
TASK = {"index": 1, "name": "", "description": "d", "expected_output": "e"}
PERSONA = {"role": "Triage mail Analyst", "goal": "g", "backstory": "b"}
GIVEN = {
    "crew": "desk",
    "agent": "billing",
    "persona": {"role": "Billing Clerk", "goal": "g", "backstory": "b"},
    "task": TASK,
    "context": None,
}


def _load(folder, text=SPLIT):
    path = folder / "meshgate.yaml"
    path.write_text(text)
    return load(path)


@pytest.fixture
def split(tmp_path) -> Manifest:
    """Two crews that share an agent's app, and one that is kept in one process."""
    return _load(tmp_path)


def test_every_isolated_agent_is_an_app(split):
    """The key with a dash gives the app's id; a shared app is one; who is kept together is none."""
    assert split.runners == {
        "desk": "crew", "night": "crew", "alone": "crew", "nightly": "program",
        "triage-analyst": "agent", "billing": "agent",
    }  # fmt: skip
    assert split.apps == (
        "gateway", "orders", "desk", "night", "alone", "nightly", "triage-analyst", "billing"
    )  # fmt: skip
    assert split.replicas("billing") == ("billing", "billing.2")
    assert split.spiffe_id("billing") == "spiffe://desk.example/ns/refund-desk/billing"
    assert not split.takes_commands("billing")


def test_colleagues_are_the_agents_of_an_apps_crews(split):
    """A crew's app knows its agents, a shared one those of both crews, the others nobody."""
    assert split.colleagues("desk") == split.colleagues("triage-analyst") == (TRIAGE, BILLING)
    assert split.colleagues("billing") == (TRIAGE, BILLING, NIGHT)
    assert split.colleagues("night") == (NIGHT,)
    assert split.colleagues("alone") == split.colleagues("nightly") == ()


def test_a_crews_variables_go_to_all_of_it_and_an_agents_to_that_agent(split):
    """A shared app gets what each of its crews and entries names; a secret stays one."""
    assert split.variables("desk") == ("OPENAI_BASE_URL", "OPENAI_API_KEY")
    assert split.variables("triage-analyst") == ("OPENAI_BASE_URL", "OPENAI_API_KEY")
    assert split.runner("billing").env == ("OPENAI_BASE_URL", "LEDGER_URL", "NIGHT")
    assert split.runner("billing").secrets == ("OPENAI_API_KEY", "LEDGER_KEY")
    assert split.runner("billing").attempts == 2
    assert split.own_tools == {"billing": ("desk.own:note",)}
    with pytest.raises(KeyError):
        split.runner("orders")


def test_a_secret_of_one_agent_is_withheld_from_the_others(tmp_path, split):
    """They import the same module, which may ask for it."""
    values = {"LEDGER_KEY": "s3cret", "OPENAI_API_KEY": "k", "LEDGER_URL": "u"}
    environment = Environment(project=tmp_path, environ=values)
    assert environment.for_agent(split, "billing", {})["LEDGER_KEY"] == "s3cret"
    for other in ("desk", "triage-analyst", "night"):
        assert environment.for_agent(split, other, {})["LEDGER_KEY"] == WITHHELD
    assert "LEDGER_URL" not in environment.for_agent(split, "triage-analyst", {})
    assert environment.for_own_tools(split, "billing")["LEDGER_KEY"] == WITHHELD
    assert environment.missing(split) == [("desk", "OPENAI_BASE_URL"), ("billing", "NIGHT")]


def test_workers_know_their_colleagues(tmp_path, split):
    """An agent's app is started without a crew's command and builds its crews from the same places."""
    state = prepare_state(tmp_path)
    made = {
        app: configs.worker(
            split,
            state,
            app,
            name=app,
            target="t:1",
            sidecar="127.0.0.1:1",
            definitions={},
            env={},
            fork_servers={},
        )
        for app in ("desk", "billing", "nightly")
    }
    assert made["billing"]["kind"] == "agent"
    assert made["billing"]["expects_report"]
    assert made["billing"]["command"][1:] == ["-m", "meshgate_agent"]
    assert made["billing"]["crews"] == {"desk": "desk.crew:crew", "night": "night/crew.jsonc"}
    assert made["billing"]["attempts"] == 2
    assert made["desk"]["command"][1:] == ["-m", "meshgate_kickoff", "desk.crew:crew"]
    assert made["desk"]["crews"] == {}
    assert made["desk"]["colleagues"][1] == {
        "crew": "desk", "agent": "billing", "role": "Billing Clerk", "app": "billing", "same_storage": False
    }  # fmt: skip
    assert len(made["billing"]["colleagues"]) == 3
    assert made["nightly"]["colleagues"] == []


def test_a_named_storage_is_one_for_all(tmp_path):
    """Each app has a folder of its own, unless the crew's `env` names one, which its agents are given too."""
    state, text = prepare_state(tmp_path), SPLIT.replace("OPENAI_BASE_URL", "CREWAI_STORAGE_DIR")

    def same(manifest: Manifest, app: str, env: dict[str, str]) -> list[bool]:
        given = configs.launcher(
            manifest, state, app, target="t:1", definitions={}, env=env, run_id=None, fork_servers={}
        )
        return [one["same_storage"] for one in given["colleagues"]]

    named = {"CREWAI_STORAGE_DIR": "/s"}
    assert same(_load(tmp_path), "desk", named) == [False, False]
    assert same(_load(tmp_path, text), "desk", {}) == [False, False]
    assert same(_load(tmp_path, text), "desk", named) == [True, True]
    assert same(_load(tmp_path, text), "night", named) == [False]


def test_a_run_by_hand_is_no_agents(split):
    """An agent has no task of its own; the app of its crew is named instead."""
    with pytest.raises(UsageError) as refused:
        choose_app(split, "billing", ["python", "main.py"])
    assert refused.value.next_step == "--app desk"
    assert choose_app(split, None, ["python", "-m", "desk.nightly"]) == "nightly"
    assert choose_app(split, "desk", []) == "desk"


def test_dapr_lets_the_gateway_alone_start_an_agents_run(split):
    """As for every app that runs agent code; `dapr.yaml` says the same."""
    (rule,) = generate.access_policy(split, "billing")["spec"]["rules"]
    assert rule["callers"] == [{"appID": "gateway"}]
    assert [activity["name"] for activity in rule["activities"]] == ["start_run"]
    assert {app["appID"] for app in generate.multi_app(split)["apps"]} == set(split.apps)


def test_a_delegation_is_an_entry_of_the_catalogue(split):
    """Of kind delegate, with the agent's app as its host; policies know it by name."""
    definitions = {"orders.refund": {"schema": {}, "definition_sha256": "d"}}
    definitions["billing.note"] = {"schema": {}, "definition_sha256": "d"}
    made = catalogue.catalogue(split, definitions)
    assert [tool for tool in made["tools"] if tool.startswith("agent:")] == [
        "agent:billing",
        "agent:triage-analyst",
    ]
    entry = made["tools"]["agent:billing"]
    assert (entry["host"], entry["kind"], entry["effect"], entry["idempotent"], entry["repeat"]) == (
        "billing", "delegate", "external", False, "allow"
    )  # fmt: skip
    assert "Billing Clerk / Night Clerk" in entry["description"]
    assert made["apps"]["billing"] == {"kind": "agent", "commands": False}
    assert policy_data(split)["tools"]["agent:billing"] == {"effect": "external"}
    assert policy_data(split)["apps"]["billing"] == {"kind": "agent"}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"context": "what came before"},
        {"colleagues": {"triage_analyst": PERSONA}},
        {"task": {**TASK, "index": None}},
        {"crew": "night", "agent": "clerk"},
        {"expects": ["step_callback", "llm_call_completed"]},
        {"tools": ["lookup", "delete files"]},
        {"tools": "0123456789abcdef" * 4},
    ],
)
def test_a_task_of_a_colleague_fits_its_schema(split, change):
    """By its index in the crew, or from its text alone."""
    jsonschema.Draft202012Validator.check_schema(_schema(split))
    jsonschema.validate(GIVEN | change, _schema(split))


@pytest.mark.parametrize(
    "change",
    [
        {"crew": "night"},
        {"agent": "triage_analyst"},
        {"crew": "alone"},
        {"output_pydantic": "os:system"},
        {"task": {**TASK, "index": -1}},
        {"task": {**TASK, "guardrail": "g"}},
        {"persona": {"role": "r"}},
        {"context": 1},
        {"context": "x" * 262_145},
        {"colleagues": {"billing": PERSONA}},
        {"colleagues": {"clerk": PERSONA}},
        {"colleagues": {"nobody": PERSONA}},
        {"colleagues": {"triage_analyst": {**PERSONA, "role": 7}}},
        {"colleagues": {"triage_analyst": {**PERSONA, "llm": "m"}}},
        {"colleagues": {"triage_analyst": {**PERSONA, "role": "x" * 4097}}},
        {"colleagues": [PERSONA]},
        {"expects": "step_callback"},
        {"expects": [7]},
        {"expects": ["a", "a"]},
        {"expects": ["x" * 257]},
        {"expects": [str(n) for n in range(1001)]},
        {"tools": "lookup"},
        {"tools": "0" * 65},
        {"tools": [7]},
        {"tools": ["a", "a"]},
        {"tools": ["x" * 65]},
        {"tools": [str(n) for n in range(101)]},
        {"crew": "night", "agent": "clerk", "colleagues": {"triage_analyst": PERSONA}},
    ],
)
def test_what_is_no_task_of_a_colleague_is_not_taken(split, change):
    """An agent of another crew, a class that a caller names, a text beyond all bounds."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(GIVEN | change, _schema(split))


def _schema(manifest, app="billing"):
    return delegations.entries(manifest)[f"agent:{app}"]["schema"]


def test_an_app_of_one_agent_is_told_of_its_crew_alone(tmp_path, split):
    """Its colleagues are that crew's other agents; one without any is told of nobody."""
    given = GIVEN | {"agent": "triage_analyst"}
    jsonschema.validate(given | {"colleagues": {"billing": PERSONA}}, _schema(split, "triage-analyst"))
    for key in ("clerk", "triage_analyst"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(given | {"colleagues": {key: PERSONA}}, _schema(split, "triage-analyst"))
    apart = SPLIT.replace("Night Clerk, app: billing", "Night Clerk, app: night-clerk")
    alone = _schema(_load(tmp_path, apart), "night-clerk")
    night = GIVEN | {"crew": "night", "agent": "clerk"}
    jsonschema.validate(night, alone)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(night | {"colleagues": {}}, alone)


def test_a_delegations_digest_follows_what_it_leads_to(tmp_path, split):
    """Another module, key or role behind the same app is another definition."""
    before = delegations.entries(split)["agent:billing"]["definition_sha256"]
    for old, new in (("desk.crew:crew", "desk.other:crew"), ("Night Clerk", "Day Clerk"), ("clerk:", "c:")):
        changed = delegations.entries(_load(tmp_path, SPLIT.replace(old, new)))["agent:billing"]
        assert changed["definition_sha256"] != before


def test_the_schema_takes_what_the_loader_takes():
    """The published JSON Schema knows isolated agents."""
    validator = jsonschema.Draft202012Validator(json.loads(json_schema()))
    validator.validate(yaml.safe_load(SPLIT))
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(yaml.safe_load(SPLIT.replace("isolate: crew", "isolate: process")))


PROBLEMS = [
    ("triage_analyst:", "Triage:", 8, "the key 'Triage' of an agent makes no app id", "app: triage"),
    ("triage_analyst:", "operator:", 8, "'operator' is the name of a part of meshgate", "app: desk-operator"),
    ("triage_analyst:", "orders:", 8, "used twice: also in toolhosts, line 30", "app: desk-orders"),
    (
        "triage_analyst: {",
        "triage_analyst: {app: orders, ",
        8,
        "also in toolhosts, line 30",
        "app: desk-orders",
    ),
    ("triage_analyst:", "desk:", 8, "app id 'desk' is used twice: also in crews, line 5", "app: desk-desk"),
    (
        "triage_analyst: {",
        "triage_analyst: {app: billing, ",
        11,
        "of crew 'desk' have one app",
        "desk-billing",
    ),
    ('"Triage {kind} Analyst"', "Billing Clerk", 10, "have the same role 'Billing Clerk'", "isolate: crew"),
    ('"Triage {kind} Analyst"', '" Billing  Clerk\\n"', 10, "have the same role 'Billing Clerk'", "another"),
    ("clerk: {role: Night Clerk, app: billing,", "billing: {role: N,", 22, "used twice", "share the app"),
    ("        app: billing\n", "", 21, "used twice: also in crew desk, line 9", "app: billing at both"),
    ('{role: "Triage {kind} Analyst"}', "{}", 8, "no role to know it by", "role:"),
    ("{billing: {role: Billing Clerk}}", "{billing: {role: B, app: b}}", 26, "has no 'app'", "isolate: "),
    ("{billing: {role: Billing Clerk}}", "{billing: {role: B, env: [X]}}", 26, "has no 'env'", "of the crew"),
    ("attempts: 2", "attempts: 2, replicas: 3", 22, "'replicas' of the shared app 'billing' differs", "same"),
    ("isolate: crew", "isolate: process", 25, "'process'", "'agents' or 'crew'"),
    ("replicas: 2", "commands: true", 14, "unknown key 'crews.desk.agents.billing.commands'", "one of"),
    ("replicas: 2", "replica: 2", 14, "unknown key", "replicas"),
    ("app: billing\n", "app: Billing\n", 11, "'Billing'", "billing"),
    ("night/crew.jsonc", "night/crew.yaml", 19, "path/to/crew.jsonc", "package.module:crew"),
    ("tools: [desk.own:note]", "tools: [desk.tools:refund]", 15, "in the tool host 'orders'", "keep one"),
    ("  orders.refund:", "  agent:billing:", 32, "no tool with a rule", 'allow contains "agent:billing"'),
    (CLERK, "", 20, "lists none", "isolate: crew"),
]


@pytest.mark.parametrize(("old", "new", "line", "said", "fix"), PROBLEMS)
def test_what_cannot_be_an_app_of_its_own_is_told(  # noqa: PLR0917 - one column each
    tmp_path, old, new, line, said, fix
):
    """With its line and what to write instead."""
    with pytest.raises(ManifestError) as caught:
        _load(tmp_path, SPLIT.replace(old, new, 1))
    found = [(problem.line, problem.message, problem.fix) for problem in caught.value.problems]
    assert any(row == line and said in message and fix in remedy for row, message, remedy in found), found


def test_what_is_told_to_write_is_free(tmp_path):
    """A fix that is used already would be no fix."""
    with pytest.raises(ManifestError) as caught:
        _load(tmp_path, SPLIT.replace("triage_analyst:", "orders:").replace("  nightly:", "  desk-orders:"))
    assert [problem.fix for problem in caught.value.problems] == ["app: desk-orders-2"]


def test_two_crews_share_an_app_only_where_both_write_it(tmp_path):
    """Equal keys are chance; written ids are meant."""
    text = SPLIT.replace("clerk: {role: Night Clerk, app: billing, ", "night_clerk: {role: Night Clerk, ")
    assert "night-clerk" in _load(tmp_path, text).runners


def test_a_crews_file_must_be_there(tmp_path):
    """A JSON crew is looked for below the project."""
    manifest = _load(tmp_path)
    problems = {problem.line: problem.message for problem in check_modules(manifest, tmp_path)}
    assert problems[19] == "no crew file 'night/crew.jsonc'"
    assert problems[15] == "no module 'desk.own'"
    (tmp_path / "night").mkdir()
    (tmp_path / "night" / "crew.jsonc").touch()
    assert 19 not in {problem.line for problem in check_modules(manifest, tmp_path)}
