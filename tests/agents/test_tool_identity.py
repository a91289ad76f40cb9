"""One rule says which tool a live object is, in the agent's process and in the tool host."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from meshgate_agents.child.tool_identity import SCRIPT_MODULE_PREFIX, describe

SCRIPT = '''
import json, sys
from crewai.tools import BaseTool, tool

@tool
def refund(order: str) -> str:
    """Gives money back."""
    return order

class Lookup(BaseTool):
    name: str = "Lookup"
    description: str = "Finds."
    table: str = "orders"
    key: str = ""
    limit: float = 1.0
    client: object = None
    def _run(self, order: str) -> str:
        return order

def all_tools():
    odd = Lookup(client=object())
    return [refund, Lookup(), Lookup(table="x"), Lookup(key="SECRET-VALUE"), Lookup(limit=2), odd]

if __name__ == "__main__":
    from meshgate_agents.child.tool_identity import describe
    tools = all_tools()
    tools[3] = Lookup(key="meshgate:withheld")
    print(json.dumps([describe(t) for t in tools]))
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    (root / "main.py").write_text(SCRIPT)
    return root


@pytest.fixture(scope="module")
def seen_by_agent(project):
    env = {**os.environ, "MESHGATE_PROJECT_ROOT": str(project), "CREWAI_DISABLE_TELEMETRY": "true"}
    out = subprocess.run(
        [sys.executable, "main.py"], cwd=project, env=env, capture_output=True, text=True, check=True
    )
    return json.loads(out.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def seen_by_host(project):
    name = SCRIPT_MODULE_PREFIX + "main"
    specification = importlib.util.spec_from_file_location(name, project / "main.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return [describe(t, withheld=["SECRET-VALUE"], root=str(project)) for t in module.all_tools()]


def test_entry_script_and_host_agree(seen_by_agent, seen_by_host):
    """The same tools have the same identity as `__main__` and under the host's module name."""
    assert seen_by_agent == seen_by_host
    assert seen_by_agent[0]["qualname"] == "main.py:refund"
    assert seen_by_agent[0]["kind"] == "function"
    assert seen_by_agent[1]["qualname"] == "main.py:Lookup"


def test_constructor_values_tell_instances_apart(seen_by_host):
    """Another constructor value is another tool; a value that is no JSON is not seen."""
    digests = [one["fields_sha256"] for one in seen_by_host]
    assert len(set(digests[1:5])) == 4
    assert digests[5] == digests[1]


def test_use_does_not_change_identity(seen_by_host):
    """Counting a use, or showing another description, leaves the identity as it was."""
    module = sys.modules[SCRIPT_MODULE_PREFIX + "main"]
    tool = module.Lookup(table="x")
    before = describe(tool)
    tool.run(order="1")
    tool.description = "Something else"
    assert describe(tool) == before


def test_paths_under_the_project_are_relative(project, seen_by_host, tmp_path):
    """A path inside the project has the same digest wherever the project lies."""
    module = sys.modules[SCRIPT_MODULE_PREFIX + "main"]
    here = describe(module.Lookup(table=str(project / "data")), root=str(project))
    there = describe(module.Lookup(table=str(tmp_path / "data")), root=str(tmp_path))
    elsewhere = describe(module.Lookup(table="/etc/data"), root=str(project))
    assert here["fields_sha256"] == there["fields_sha256"] != elsewhere["fields_sha256"]


def test_plain_function_is_described_without_crewai():
    """A function is its module and name."""
    seen = describe(json.dumps)
    assert (seen["kind"], seen["qualname"], seen["name"]) == ("function", "json:dumps", "dumps")


def test_standard_library_only():
    """The file imports nothing that an agent's interpreter might lack."""
    path = Path(sys.modules["meshgate_agents.child.tool_identity"].__file__)
    code = (
        "import sys, importlib.util as u; s=u.spec_from_file_location('t', sys.argv[1]);"
        "m=u.module_from_spec(s); s.loader.exec_module(m);"
        "bad=[n for n in sys.modules if n.split('.')[0] not in sys.stdlib_module_names|{'t','__main__'}];"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code, str(path)], check=True)
