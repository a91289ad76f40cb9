"""`meshgate scan` splits a crew by agent: apps, least-privilege policies, JSON crews."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import crewai_project
from meshgate_deploy import manifest, scan
from meshgate_deploy.manifest_checks import check_modules
from meshgate_deploy.scan import Scan
from meshgate_policies import check
from meshgate_policies.lint import Known
from meshgate_policies.rego_tests import run_tests

DELEGATION = ("crewai.delegate_work", "crewai.ask_question")
COMMON = '''
from crewai import Agent, Crew, Process, Task
from crewai.tools import tool


@tool
def look(order: str) -> str:
    """Look an order up."""
    return order


@tool
def pay(order: str) -> str:
    """Pay an order back."""
    return order


def agent(role, *tools, delegates=False):
    return Agent(role=role, goal="g", backstory="b", tools=list(tools), allow_delegation=delegates)


def task(agent=None):
    return Task(description="d", expected_output="e", agent=agent)
'''
CREWS = """
from common import Crew, Process, Task, agent, look, pay, task

clerk = agent("Clerk", look, delegates=True)
cashier = agent("Cashier", pay)
twin = agent("Clerk", pay)
boss = agent("Boss")


def sequential() -> Crew:
    return Crew(agents=[clerk, cashier], tasks=[task(clerk), task(cashier)])


def managed() -> Crew:
    return Crew(agents=[clerk, cashier], tasks=[task()], process=Process.hierarchical, manager_agent=boss)


def by_model() -> Crew:
    return Crew(agents=[cashier], tasks=[task()], process=Process.hierarchical, manager_llm="gpt-4o-mini")


def live() -> Crew:
    asked = Task(description="d", expected_output="e", agent=clerk, human_input=True)
    return Crew(agents=[clerk], tasks=[asked, task(agent("Helper of {customer}", look))], stream=True)


def twins() -> Crew:
    return Crew(agents=[clerk, twin], tasks=[task(clerk), task(twin)])
"""
BASE = """
from common import Crew, agent, look, pay, task
from crewai.project import CrewBase
from crewai.project import agent as makes_agent
from crewai.project import crew, task as makes_task


@CrewBase
class Desk:
    @makes_agent
    def first_clerk(self):
        return agent("Clerk of {place}", look)

    @makes_task
    def work(self):
        return task(self.first_clerk())

    @crew
    def crew(self):
        return Crew(agents=self.agents, tasks=self.tasks)
"""
CREW_JSON = """
{
  // as `crewai create crew` writes it
  "name": "news", "agents": ["senior_researcher", "Writer"],
  "tasks": [
    {"name": "find", "description": "Find {topic}", "expected_output": "l", "agent": "senior_researcher"},
    {"name": "write", "description": "Write", "expected_output": "a text", "agent": "Writer"},
  ],
  "process": "sequential", "inputs": {"topic": "trams"}
}
"""
RESEARCHER = """
{"role": "Senior {topic} Researcher", "goal": "g", "backstory": "b", "llm": "openai/gpt-4o-mini",
 "tools": ["FileReadTool", "custom:archive"], "settings": {"allow_delegation": true}}
"""
WRITER = '{"role": "Writer", "goal": "g", "backstory": "b", "llm": "openai/gpt-4o-mini", "tools": []}'
ARCHIVE = """
import os
from crewai.tools import BaseTool

class ArchiveTool(BaseTool):
    name: str = "archive"
    description: str = "Look into the archive."

    def _run(self, text: str) -> str:
        return os.environ["ARCHIVE_KEY"] + text
"""


def _write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def crews(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scan]:
    """Four crews that share their agents."""
    folder = tmp_path_factory.mktemp("split") / "desk"
    _write(folder, {"common.py": COMMON, "crews.py": CREWS})
    return folder, scan.scan(
        folder, targets=[f"crews:{name}" for name in ("sequential", "managed", "by_model", "twins")]
    )


def _granted(found: Scan) -> dict[str, tuple[str, ...]]:
    return {app: tools for one in found.findings.apps for app, tools in one.grants.items()}


def test_each_agent_may_use_exactly_its_tools(crews: tuple[Path, Scan]) -> None:
    """The crew's app gives tasks and holds no tool; who delegates may give tasks to the others."""
    granted = _granted(crews[1])
    assert granted["crews"] == ("agent:clerk", "agent:cashier")
    assert granted["clerk"] == ("common.look", *DELEGATION, "agent:cashier")
    assert granted["cashier"] == ("common.pay",)


def test_a_manager_gives_the_tasks_of_its_crew(crews: tuple[Path, Scan]) -> None:
    """One that is an agent has an app; one that CrewAI makes acts in the crew's. Nobody else delegates."""
    granted = _granted(crews[1])
    assert granted["crews-managed"] == ("agent:boss",)
    assert granted["boss"] == (*DELEGATION, "agent:crews-managed-clerk", "agent:crews-managed-cashier")
    assert granted["crews-managed-clerk"] == ("common.look",)
    assert set(granted["crews-by-model"]) == {"agent:crews-by-model-cashier", *DELEGATION}


def test_agents_that_share_a_role_stay_together(crews: tuple[Path, Scan]) -> None:
    """At run time nothing tells them apart; the note says so."""
    granted = _granted(crews[1])
    assert set(granted["crews-twins"]) == {"common.look", "common.pay", *DELEGATION}
    assert any("two have the role 'Clerk'" in note for note in crews[1].findings.notes)


def test_what_is_written_loads_and_passes_its_tests(crews: tuple[Path, Scan], opa_binary: Path) -> None:
    """Ids are unique, apps are written where keys do not give them, each app has its package."""
    folder, found = crews
    made = manifest.load(folder / "meshgate.yaml")
    assert check_modules(made, folder) == []
    assert made.crews["crews"].isolate == "agents"
    assert made.crews["crews-twins"].isolate == "crew"
    assert made.crews["crews"].agents["clerk"].app is None
    assert made.crews["crews-managed"].agents["clerk"].app == "crews-managed-clerk"
    assert set(made.runners) == set(_granted(found))
    assert {path.stem for path in (folder / "policies").glob("*.rego")} == {
        f"{app}{end}" for app in made.runners for end in ("", "_test")
    }
    tools = {tool.tool_id for tool in found.findings.tools}
    known = Known(apps=made.runners, tools=tools, agents={one.app for one in made.isolated})
    assert check.check_policies((str(opa_binary),), folder / "policies", known=known) == []
    assert run_tests((str(opa_binary),), folder / "policies").red == ()


def test_what_an_app_of_its_own_cannot_do_is_told(crews: tuple[Path, Scan]) -> None:
    """Such a crew is refused at run time. An agent of a task alone is one of its crew too."""
    found = scan.find(crews[0], targets=["crews:live"])
    assert [agent.role for agent in found.apps[0].agents] == ["Clerk", "Helper of {customer}"]
    notes = "\n".join(found.notes)
    assert "may delegate" not in notes  # what the inputs make of a coworker travels with the task
    assert "a task has human_input: refused" in notes
    assert "it streams its output: refused" in notes
    kept = scan.find(crews[0], targets=["crews:live"], isolate=False)
    assert not any("refused" in note for note in kept.notes)


def test_a_crew_may_stay_one_app(crews: tuple[Path, Scan]) -> None:
    """`--isolate crew`: one process, one policy with all that its agents hold."""
    found = scan.find(crews[0], targets=["crews:sequential", "crews:by_model"], isolate=False)
    first, second = found.apps
    assert set(first.grants) == {"crews"}
    assert set(first.grants["crews"]) == {"common.look", "common.pay", *DELEGATION}
    assert set(second.grants["crews-by-model"]) == {"common.pay", *DELEGATION}


def test_agents_of_a_class_without_yaml_are_called_as_their_methods(tmp_path: Path) -> None:
    """A role with a placeholder would make a worse key."""
    found = scan.find(_write(tmp_path, {"common.py": COMMON, "base.py": BASE}), targets=["base:Desk"])
    assert [(agent.key, agent.app) for agent in found.apps[0].agents] == [("first_clerk", "first-clerk")]


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A JSON crew, scanned from the command line."""
    files = {
        "crew.jsonc": CREW_JSON,
        "agents/senior_researcher.jsonc": RESEARCHER,
        "agents/Writer.json": WRITER,
        "tools/archive.py": ARCHIVE,
        "data/crew.json": '{"people": []}',
        ".env": "OPENAI_API_KEY=k\nARCHIVE_KEY=a\n",
    }
    folder = _write(tmp_path_factory.mktemp("json") / "news", files)
    done = subprocess.run(
        [sys.executable, "-m", "meshgate_deploy.cli", "scan", "-o", "json"],
        cwd=folder, capture_output=True, text=True, check=False, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_a_crew_of_json_files_is_split_too(news: tuple[Path, dict]) -> None:
    """Agents are called as their files are; a file that is no crew is passed over."""
    folder, found = news
    (app,) = found["apps"]
    assert (app["name"], app["crew"]) == ("news", "crew.jsonc")
    assert [(agent["key"], agent["role"], agent["app"]) for agent in app["agents"]] == [
        ("senior_researcher", "Senior {topic} Researcher", "senior-researcher"),
        ("Writer", "Writer", "writer"),
    ]
    made = manifest.load(folder / "meshgate.yaml")
    assert check_modules(made, folder) == []
    assert made.crews["news"].crew == "crew.jsonc"
    assert made.crews["news"].agents["Writer"].app == "writer"
    assert made.runners == {"news": "crew", "senior-researcher": "agent", "writer": "agent"}


def test_the_tools_of_a_json_crew_are_served(news: tuple[Path, dict]) -> None:
    """A stock tool by its class, one of the project by its file, with the secret that it reads."""
    folder, found = news
    entries = {tool["tool"]: tool["entry"] for tool in found["tools"]}
    assert entries == {
        "files.file_read": {"class": "crewai_tools:FileReadTool"},
        "archive.archive": {"class": "tools/archive.py:ArchiveTool"},
    }
    assert manifest.load(folder / "meshgate.yaml").toolhosts["archive"].secrets == ("ARCHIVE_KEY",)
    assert found["apps"][0]["grants"]["senior-researcher"] == [
        "files.file_read", "archive.archive", *DELEGATION, "agent:writer",
    ]  # fmt: skip


def test_crewais_own_scaffold_is_split_by_its_yaml_keys(tmp_path: Path) -> None:
    """A @CrewBase class: keys of `agents.yaml` with dashes, roles with their placeholders."""
    project = crewai_project.create(tmp_path, "my_news")
    found = scan.scan(project)
    made = manifest.load(project / "meshgate.yaml")
    assert [(one.agent, one.app, one.role) for one in made.isolated] == [
        ("researcher", "researcher", "{topic} Senior Data Researcher"),
        ("reporting_analyst", "reporting-analyst", "{topic} Reporting Analyst"),
    ]
    assert _granted(found)["my-news"] == ("agent:researcher", "agent:reporting-analyst")
    assert "app:" not in (project / "meshgate.yaml").read_text()
