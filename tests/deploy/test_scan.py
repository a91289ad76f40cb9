"""`meshgate scan` on projects of several shapes, each imported for real."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import crewai_project
from meshgate_deploy import manifest, scan, scan_text
from meshgate_deploy.environment import WITHHELD
from meshgate_deploy.errors import DependencyUnavailable, NotFound, UsageError
from meshgate_deploy.manifest_checks import check_modules
from meshgate_deploy.scan import Scan
from meshgate_deploy.scan_source import reachable, read_project
from meshgate_policies import check
from meshgate_policies.rego_tests import run_tests

TOOLS = '''
import os
from crewai.tools import BaseTool, tool
from crewai_tools import FileReadTool

print("noise on standard output")
KEY = os.environ["SHOP_KEY"]
assert KEY == "meshgate:withheld", KEY
REGION = os.getenv("SHOP_REGION", "eu")


@tool("Find an order")
def find_order(order: str, deep: bool = False) -> str:
    """Find an order."""
    return os.environ["SHOP_URL"] + order


class SearchTool(BaseTool):
    name: str = "search"
    description: str = "Search the shop."
    limit: int = 10
    where: str = "."

    def _run(self, text: str) -> str:
        return text


class ClientTool(BaseTool):
    name: str = "client"
    description: str = "Has a live client."
    client: object = None

    def _run(self, text: str) -> str:
        return text


def local():
    @tool
    def hidden(text: str) -> str:
        """Has no name in a module."""
        return text
    return hidden


by_client = ClientTool(client=object())
notes = FileReadTool(file_path="notes.txt")
'''
CREW = """
import os
from crewai import Agent, Crew, Task
from shop.tools import ClientTool, SearchTool, by_client, find_order, local, notes

STYLE = os.environ.get("SHOP_STYLE", "short")


def agent(role, tools, **more):
    return Agent(role=role, goal="g", backstory="b", tools=tools, **more)


clerk = agent("Clerk", [find_order, SearchTool(limit=3), SearchTool(limit=4), by_client])
held = [find_order, local(), ClientTool(client=object())]
hidden = agent("Helper of {customer}", held, allow_delegation=True)


def make() -> Crew:
    task = Task(description="d", expected_output="e", agent=clerk, tools=[notes])
    last = Task(description="d", expected_output="e", agent=hidden)
    return Crew(agents=[clerk, hidden], tasks=[task, last])
"""
BROKEN = """
from crewai import Crew
raise RuntimeError("cannot be imported")
crew = Crew(agents=[], tasks=[])
"""
FLOW = """
import requests
from crewai.flow.flow import Flow, start

class Sales(Flow):
    @start()
    def begin(self):
        return requests.get("http://127.0.0.1:1/").text
"""
SERVERS = """
from crewai import Agent
from crewai.mcp import MCPServerStdio
from crewai_tools import FileWriterTool

stdio = MCPServerStdio(command="python", args=["server.py"], env={"TOKEN": "t0ken"})
agent = Agent(
    role="r", goal="g", backstory="b", tools=[FileWriterTool()], mcps=[stdio, "https://mcp.example/x?key=t0ken"]
)

if __name__ == "__main__":
    agent.kickoff("hi")
"""
ADAPTER = """
from crewai_tools import MCPServerAdapter

with MCPServerAdapter({}) as tools:
    pass
"""
PROGRAM = '''
from crewai import Agent
from crewai.tools import tool


@tool
def shout(text: str) -> str:
    """Shout."""
    return text.upper()


agent = Agent(role="Shouter", goal="g", backstory="b", tools=[shout])

if __name__ == "__main__":
    print(agent.kickoff("hi"))
'''


def _write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scan]:
    """A project with tools of every shape, scanned."""
    files = {
        "src/shop/__init__.py": "",
        "src/shop/tools.py": TOOLS,
        "src/shop/crew.py": CREW,
        "src/shop/broken.py": BROKEN,
        "src/shop/flow.py": FLOW,
        "src/shop/bad_syntax.py": "def",
        "tests/test_shop.py": "from crewai import Crew\ncrew = Crew()\n",
        ".venv/lib/other.py": "from crewai import Crew\ncrew = Crew()\n",
        "notes.txt": "n",
        ".env": "SHOP_KEY=the-real-key\nANTHROPIC_API_KEY=a\nSTRAY=1\n",
    }
    folder = _write(tmp_path_factory.mktemp("projects") / "My Shop", files)
    return folder, scan.scan(folder)


def _tools(found: Scan) -> dict[str, Any]:
    return {tool.tool_id: tool.entry for tool in found.findings.tools}


def test_agents_hold_tools_by_canonical_ids(shop: tuple[Path, Scan]) -> None:
    """Task tools count for the task's agent; a shared tool is one; two configurations are two."""
    (app,) = shop[1].findings.apps
    assert (app.name, app.crew) == ("shop", "shop.crew:make")
    clerk, helper = app.agents
    assert (clerk.key, helper.key, helper.role) == ("clerk", "hidden", "Helper of {customer}")
    assert set(clerk.tools) == {
        "shop-tools.find_order",
        "shop-tools.search",
        "shop-tools.search_2",
        "shop-tools.client",
        "files.file_read",
    }
    assert clerk.builtins == ()
    assert helper.builtins == ("crewai.delegate_work", "crewai.ask_question")
    assert "shop-tools.find_order" in helper.tools


def test_every_tool_is_named_so_that_a_host_finds_it(shop: tuple[Path, Scan]) -> None:
    """Functions and instances by name, classes with their values; what has no name says so."""
    tools = _tools(shop[1])
    assert tools["shop-tools.find_order"] == "shop.tools:find_order"
    assert tools["shop-tools.search"] == {"class": "shop.tools:SearchTool", "config": {"limit": 3}}
    assert tools["shop-tools.search_2"] == {
        "class": "shop.tools:SearchTool", "config": {"limit": 4}, "name": "search_2",
    }  # fmt: skip
    assert tools["shop-tools.client"] == "shop.tools:by_client"
    assert tools["files.file_read"] == {
        "class": "crewai_tools:FileReadTool", "config": {"file_path": "notes.txt"},
    }  # fmt: skip
    assert tools["shop-tools.hidden"] is None


def test_schemas_are_listed(shop: tuple[Path, Scan]) -> None:
    """Each tool with the JSON Schema of its arguments."""
    (find,) = [tool for tool in shop[1].findings.tools if tool.short == "find_order"]
    assert find.schema["required"] == ["order"]
    assert find.schema["properties"]["deep"]["type"] == "boolean"


def test_secrets_stay_with_the_host_that_needs_them(shop: tuple[Path, Scan]) -> None:
    """The crew gets no secret of its tools; importing saw the withheld text, not `.env`."""
    uses = {use.name: use for use in shop[1].findings.variables}
    assert uses["SHOP_KEY"].apps == ("shop-tools",)
    assert uses["SHOP_KEY"].secret
    assert uses["SHOP_URL"].apps == ("shop-tools",)
    assert set(uses["SHOP_REGION"].apps) == {"shop-tools", "shop"}
    assert uses["SHOP_STYLE"].apps == ("shop",)
    assert uses["ANTHROPIC_API_KEY"].apps == ("shop",)
    assert uses["STRAY"].apps == ()
    assert uses["SHOP_KEY"].places == ("src/shop/tools.py:7",)


def test_what_a_person_must_look_at_is_said(shop: tuple[Path, Scan]) -> None:
    """A module that fails, network use in a Flow, a tool without a name, a variable of nobody."""
    notes = "\n".join(shop[1].findings.notes)
    assert "cannot be imported" in notes or "shop.broken" in notes
    assert "src/shop/flow.py:8" in notes
    assert "shop-tools.hidden" in notes
    assert "STRAY" in notes


def test_the_manifest_is_valid_and_complete(shop: tuple[Path, Scan]) -> None:
    """It loads, everything it names exists, and each tool has the careful default or is known to read."""
    folder, found = shop
    made = manifest.load(folder / "meshgate.yaml")
    assert check_modules(made, folder) == []
    assert made.mesh == "my-shop"
    assert set(made.tools) == {tool.tool_id for tool in found.findings.tools if tool.entry is not None}
    assert made.tools["files.file_read"].effect == "read"
    assert made.tools["shop-tools.find_order"].effect == "irreversible"
    assert made.toolhosts["shop-tools"].secrets == ("SHOP_KEY",)
    assert "SHOP_KEY" not in (*made.crews["shop"].env, *made.crews["shop"].secrets)
    assert "the-real-key" not in (folder / "meshgate.yaml").read_text()
    assert WITHHELD not in (folder / "meshgate.yaml").read_text()


def test_the_policies_check_and_their_tests_pass(shop: tuple[Path, Scan], opa_binary: Path) -> None:
    """What scan writes goes through the same checks as what people write."""
    folder = shop[0] / "policies"
    assert check.check_policies((str(opa_binary),), folder) == []
    assert run_tests((str(opa_binary),), folder).red == ()


def test_a_second_scan_keeps_what_was_edited(shop: tuple[Path, Scan]) -> None:
    """Nothing is written over without --force; findings alone decide what `kept` hides."""
    folder, found = shop
    policy = folder / "policies" / "shop.rego"
    before = policy.read_text()
    policy.write_text("# mine\n")
    (folder / "policies" / "shop_test.rego").unlink()
    again = _written(folder, found, force=False)
    agents = {f"{app}{end}.rego": "unchanged" for app in ("clerk", "hidden") for end in ("", "_test")}
    crew = {"shop.rego": "kept", "shop_test.rego": "written"}
    assert again == {"meshgate.yaml": "unchanged", **crew, **agents}
    assert policy.read_text() == "# mine\n"
    assert _written(folder, found, force=True)["shop.rego"] == "written"
    assert policy.read_text() == before


def _written(folder: Path, found: Scan, *, force: bool) -> dict[str, str]:
    files = scan.write(folder, scan_text.files(found.findings), force=force, dry_run=False)
    return {file.path.name: file.state for file in files}


def test_a_crew_asked_for_by_name_must_build(tmp_path: Path) -> None:
    """A broken target is an error with the project's own traceback, not a note."""
    _write(tmp_path, {"broken.py": BROKEN})
    with pytest.raises(DependencyUnavailable) as failure:
        scan.find(tmp_path, targets=["broken:crew"])
    assert "cannot be imported" in failure.value.why


def test_nothing_to_scan_is_not_found(tmp_path: Path) -> None:
    """A folder without a crew says how to name one."""
    with pytest.raises(NotFound):
        scan.find(tmp_path)
    with pytest.raises(UsageError):
        scan.find(tmp_path, targets=["no-colon"])


def test_a_script_without_a_crew_is_a_program(tmp_path: Path) -> None:
    """Its tools are named by the script's path, as the running script's objects are."""
    _write(tmp_path / "loud", {"main.py": PROGRAM})
    found = scan.scan(tmp_path / "loud")
    (app,) = found.findings.apps
    assert (app.name, app.crew, app.run) == ("loud", "", ("python", "main.py"))
    assert _tools(found) == {"loud-tools.shout": "main.py:shout"}
    made = manifest.load(tmp_path / "loud" / "meshgate.yaml")
    assert made.programs[app.name].run == ("python", "main.py")
    assert not {path.name for path in (tmp_path / "loud").iterdir()} & {"__pycache__"}


def test_servers_that_agents_start_are_named_without_their_secrets(tmp_path: Path) -> None:
    """Their tools are refused until a host serves them; the note has the line and not the token."""
    found = scan.find(_write(tmp_path, {"main.py": SERVERS, "adapter.py": ADAPTER}))
    notes = "\n".join(found.notes)
    assert 'toolhosts: {NAME: {mcp: {command: ["python", "server.py"]}}}' in notes
    assert 'toolhosts: {NAME: {mcp: {url: "https://mcp.example/x"}}}' in notes
    assert "adapter.py:4: the tools of MCP server of MCPServerAdapter are refused" in notes
    assert "t0ken" not in json.dumps(found.as_dict())


def test_file_tools_get_no_grant_for_what_is_hidden(tmp_path: Path, opa_binary: Path) -> None:
    """`.env` and the mesh's own keys lie below a file tool's folder; a writer's grant is pointed at."""
    found = scan.scan(_write(tmp_path, {"main.py": SERVERS}))
    policy = (tmp_path / "policies" / f"{found.findings.apps[0].name}.rego").read_text()
    assert 'allow contains "files.file_writer" if not _out_of_reach(["directory", "filename"])' in policy
    assert any("files.file_writer may change" in note for note in found.findings.notes)
    assert check.check_policies((str(opa_binary),), tmp_path / "policies") == []
    report = run_tests((str(opa_binary),), tmp_path / "policies")
    assert report.red == ()
    assert any(test.name.endswith("test_files_file_writer_reaches_nothing_hidden") for test in report.results)


@pytest.fixture(scope="module")
def scaffold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CrewAI's own scaffold, with a stock tool added where the template invites one."""
    project = crewai_project.create(tmp_path_factory.mktemp("scaffold"), "my_news")
    crewai_project.give_researcher(project, "FileReadTool(file_path='knowledge/user_preference.txt')")
    return project


def test_crewais_own_scaffold_is_understood(scaffold: Path) -> None:
    """A CrewBase class in src/, agents by their YAML keys, roles uninterpolated; from the command line."""
    done = subprocess.run(
        [sys.executable, "-m", "meshgate_deploy.cli", "scan", "-o", "json"],
        cwd=scaffold,
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (app,) = found["apps"]
    assert (app["name"], app["crew"]) == ("my-news", "my_news.crew:MyNews")
    assert [(agent["key"], agent["role"]) for agent in app["agents"]] == [
        ("researcher", "{topic} Senior Data Researcher"),
        ("reporting_analyst", "{topic} Reporting Analyst"),
    ]
    assert [tool["tool"] for tool in found["tools"]] == ["files.file_read"]
    made = manifest.load(scaffold / "meshgate.yaml")
    assert check_modules(made, scaffold) == []
    assert made.crews["my-news"].agents["researcher"].role == "{topic} Senior Data Researcher"
    assert made.crews["my-news"].writable == (".",)  # its report


def test_source_tells_crews_apart(tmp_path: Path) -> None:
    """A result is no crew, a factory with parameters cannot be called, a relative import is followed."""
    source = (
        "from crewai import Crew\nfrom .tools import t\n"
        "done = Crew(agents=[], tasks=[]).kickoff()\nreal = Crew(agents=[], tasks=[])\n"
        "def needs(x):\n    return Crew()\ndef made():\n    c = Crew()\n    return c\n"
    )
    _write(tmp_path, {"a/__init__.py": "", "a/crew.py": source, "a/tools.py": "import b\n", "b.py": ""})
    modules = read_project(tmp_path)
    assert modules["a.crew"].crews == ("real", "made")
    assert reachable(modules, "a.crew") == {"a", "a.crew", "a.tools", "b"}
    assert reachable(modules, "a.crew", stop=["a.tools"]) == {"a", "a.crew"}
