"""`execute: agent` in the manifest: opt-in, memory only, never what a tool host holds secrets for."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jsonschema
import pytest
import yaml
from meshgate_deploy import configs, own_tools
from meshgate_deploy.catalogue import catalogue, read_definitions
from meshgate_deploy.environment import WITHHELD, Environment
from meshgate_deploy.errors import DependencyUnavailable, ManifestError
from meshgate_deploy.manifest import json_schema, load
from meshgate_deploy.processes import Command, Processes
from meshgate_deploy.state import State
from meshgate_gateway import catalogue as gateway_catalogue
from meshgate_gateway import hosts

GOOD = """\
apiVersion: meshgate/v1
mesh: desk
trustDomain: desk.example
crews:
  desk:
    crew: desk.crew:crew
    tools: [desk.tools:stage]
    secrets: [MODEL_KEY]
programs:
  nightly: {run: [python, -m, n]}
toolhosts:
  orders:
    tools: [desk.tools:refund]
    secrets: [PAYMENT_KEY]
tools:
  desk.stage: {execute: agent, effect: memory}
"""
TOOLS = """\
from crewai.tools import BaseTool, EnvVar, tool


@tool
def stage(order: str) -> str:
    "Stage a change."
    return order


class Keyed(BaseTool):
    name: str = "keyed"
    description: str = "Needs a key."
    env_vars: list[EnvVar] = [EnvVar(name="SERVICE_KEY", description="k", required=True)]

    def _run(self, order: str) -> str:
        return order


class Running(BaseTool):
    name: str = "running"
    description: str = "Has a run of its own."

    def _run(self, order: str) -> str:
        return order

    def run(self, *args, **kwargs):
        return super().run(*args, **kwargs)


def plain(order: str) -> str:
    "No tool of CrewAI."
    return order
"""
DEFINITION = {"schema": {}, "definition_sha256": "d" * 64, "identity": {}}


def _load(folder: Path, text: str):
    path = folder / "meshgate.yaml"
    path.write_text(text)
    return load(path)


def _problems(folder: Path, text: str) -> list[tuple[int, str, str]]:
    with pytest.raises(ManifestError) as caught:
        _load(folder, text)
    return [(problem.line, problem.message, problem.fix) for problem in caught.value.problems]


def test_the_published_schema_takes_it(tmp_path):
    """Editors and the loader agree."""
    jsonschema.validate(yaml.safe_load(GOOD), json.loads(json_schema()))
    assert _load(tmp_path, GOOD).own_tools == {"desk": ("desk.tools:stage",)}


@pytest.mark.parametrize("effect", ["read", "reversible", "external", "irreversible"])
def test_another_effect_than_memory_is_refused(tmp_path, effect):
    """The rule's line, and what to write instead."""
    ((line, message, fix),) = _problems(tmp_path, GOOD.replace("effect: memory", f"effect: {effect}"))
    assert line == 16
    assert "may be memory only" in message
    assert fix == "desk.stage: {execute: agent, effect: memory}"


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("effect: memory", "nothing else is possible"),
        ("execute: agent", "may be memory only, not irreversible"),
        ("execute: agent, effect: memory, reconcile: a.b:c", "nothing outside has to be asked"),
    ],
)
def test_what_makes_no_sense_there_is_refused(tmp_path, rule, says):
    """Silence would let somebody rely on it."""
    ((_, message, _),) = _problems(tmp_path, GOOD.replace("execute: agent, effect: memory", rule))
    assert says in message


def test_a_result_may_be_as_large_as_the_gateway_takes_it(tmp_path):
    """Of both kinds of tools; the manifest asks for no more, and a launcher goes by what it says."""
    largest = hosts.MAX_RESULT_BYTES
    for rule in ("execute: agent, effect: memory", "effect: read"):
        tool = "desk.stage" if "agent" in rule else "orders.refund"
        given = GOOD + ("" if "agent" in rule else f"  {tool}: {{{rule}}}\n")
        given = given.replace(f"{{{rule}}}", f"{{{rule}, maxResultBytes: LIMIT}}")
        manifest = _load(tmp_path, given.replace("LIMIT", str(largest)))
        assert own_tools.limit_bytes(manifest, tool) == (largest if "agent" in rule else None)
        for wrong in (largest + 1, 0):
            ((_, says, _),) = _problems(tmp_path, given.replace("LIMIT", str(wrong)))
            assert "maxResultBytes" in says


def test_a_hosted_tool_cannot_be_run_in_an_agent(tmp_path):
    """Its host holds the secrets; the line says which."""
    text = GOOD + "  orders.refund: {execute: agent, effect: memory}\n"
    ((line, message, _),) = _problems(tmp_path, text)
    assert line == 17
    assert "tool host 'orders', which holds PAYMENT_KEY" in message


def test_a_tool_that_a_host_serves_cannot_be_listed_by_an_app(tmp_path):
    """One of the two."""
    ((_, message, fix),) = _problems(tmp_path, GOOD.replace("[desk.tools:stage]", "[desk.tools:refund]"))
    assert "in the tool host 'orders'" in message
    assert fix == "keep one of the two"


def test_an_app_without_own_tools_has_no_rules_for_any(tmp_path):
    """A rule alone opts nothing in."""
    found = _problems(tmp_path, GOOD.replace("    tools: [desk.tools:stage]\n", ""))
    assert any("no app's own tool" in message for _, message, _ in found)


def test_a_listed_tool_without_its_rule_stops_the_start(tmp_path):
    """Both are needed: where it is, and that it may."""
    manifest = _load(tmp_path, GOOD)
    made = catalogue(manifest, {"desk.stage": DEFINITION, "orders.refund": DEFINITION})
    tools = gateway_catalogue.parse(json.dumps(made).encode()).tools
    assert (tools["desk.stage"].host, tools["desk.stage"].effect) == ("desk", "memory")
    assert {name: tool.in_agent for name, tool in tools.items()} == {
        "desk.stage": True,
        "orders.refund": False,
    }
    with pytest.raises(ManifestError) as caught:
        catalogue(manifest, {"desk.stage": DEFINITION, "desk.more": DEFINITION})
    assert caught.value.problems[0].fix == "tools: {desk.more: {execute: agent, effect: memory}}"


def test_a_launcher_knows_only_its_own_apps_tools(tmp_path):
    """An object of another app's tool is no tool of this one."""
    manifest, state = _load(tmp_path, GOOD), State(tmp_path, tmp_path)
    rows = {"desk.stage": DEFINITION, "orders.refund": DEFINITION}
    limits = {}
    for app in ("desk", "nightly"):
        made = configs.launcher(manifest, state, app, target="t", definitions=rows, env={}, run_id=None)
        limits[app] = {row["tool"]: row["own_limit_bytes"] for row in made["tools"]}
    assert limits["desk"] == {"desk.stage": 1_048_576, "orders.refund": None}
    assert limits["nightly"] == {"orders.refund": None}


@pytest.mark.parametrize(("rule", "seconds"), [("", 30), (", deadlineSeconds: 2.5", 2.5)])
def test_a_launcher_knows_how_long_a_body_may_take(tmp_path, rule, seconds):
    """As a tool host does: what the rule says, else what every tool has."""
    effect = "execute: agent, effect: memory"
    manifest = _load(tmp_path, GOOD.replace(effect, effect + rule))
    rows = {"desk.stage": DEFINITION}
    state = State(tmp_path, tmp_path)
    made = configs.launcher(manifest, state, "desk", target="t", definitions=rows, env={}, run_id=None)
    assert made["tools"][0]["own_deadline_seconds"] == seconds
    assert catalogue(manifest, rows)["tools"]["desk.stage"]["deadline_seconds"] == seconds


def test_own_tools_are_described_without_a_secret(tmp_path):
    """The app's own secrets are withheld too."""
    values = {"MODEL_KEY": "k", "PAYMENT_KEY": "p", "PATH": "/bin"}
    env = Environment(project=tmp_path, environ=values).for_own_tools(_load(tmp_path, GOOD), "desk")
    assert (env["MODEL_KEY"], env["PAYMENT_KEY"]) == (WITHHELD, WITHHELD)


def _describe(folder: Path, *tools: object) -> tuple[int, str, Path]:
    project = folder / "project"
    (project / "desk").mkdir(parents=True, exist_ok=True)
    (project / "desk" / "tools.py").write_text(TOOLS)
    made, config = folder / "desk.tools.json", folder / "desk.own-tools.json"
    rows = {"app": "desk", "project_root": str(project), "tools": tools, "definitions_file": str(made)}
    config.write_text(json.dumps(rows))
    done = subprocess.run(
        [sys.executable, "-I", "-m", "meshgate_toolhost.own_tools", "--config", str(config)],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "CREWAI_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr, made


def test_a_tool_is_described_under_its_apps_name(tmp_path):
    """Schema, identity and digest, as a tool host would write them."""
    status, err, made = _describe(tmp_path, "desk.tools:stage")
    assert status == 0, err
    ((tool, row),) = read_definitions({"desk": made}).items()
    assert tool == "desk.stage"
    assert row["identity"]["qualname"] == "desk.tools:stage"


@pytest.mark.parametrize(
    ("tool", "says"),
    [
        ({"class": "desk.tools:Keyed"}, "it reads credentials (SERVICE_KEY); put it under a tool host"),
        ({"class": "desk.tools:Running"}, "it has a `run` of its own; put its body into `_run`"),
        ("desk.tools:plain", "no tool of CrewAI"),
    ],
)
def test_what_cannot_run_in_an_agent_is_not_described(tmp_path, tool, says):
    """Credentials first of all."""
    status, err, made = _describe(tmp_path, tool)
    assert status == 1
    assert says in err
    assert not made.exists()


def test_a_description_that_fails_stops_the_start(tmp_path):
    """With the last lines of its log."""
    processes = Processes(record=tmp_path / "processes.json")
    argv = (sys.executable, "-c", "import sys; sys.exit('no such module')")
    command = Command(name="desk-tools", argv=argv, env={}, cwd=tmp_path, log=tmp_path / "log")
    try:
        with pytest.raises(DependencyUnavailable) as caught:
            own_tools.describe(processes, command, threading.Event())
        assert "no such module" in caught.value.why
    finally:
        processes.close()
