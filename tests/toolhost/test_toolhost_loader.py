"""Which entries give which tools, and what is said about those that give none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from meshgate_toolhost import definitions
from meshgate_toolhost.errors import ToolNotLoadable
from meshgate_toolhost.loader import snake_case

CREW = '''
    import os
    from typing import Type
    from crewai.tools import BaseTool, tool
    from pydantic import BaseModel

    class Receipt(BaseModel):
        order: str

    @tool("Look up an order")
    def lookup_order(order: str, verbose: bool = False) -> Receipt:
        """Finds an order."""
        return Receipt(order=order)

    @tool
    async def slow_lookup(order: str) -> str:
        """Finds an order, slowly."""
        return order

    class PDFSearchTool(BaseTool):
        name: str = "Search PDF"
        description: str = "Searches."
        root: str = "."
        key: str = ""
        def _run(self, query: str, pages: list[int] | None = None) -> dict:
            return {"query": query, "root": self.root}

    ready = PDFSearchTool(root="ready", max_usage_count=1)

    def build():
        return PDFSearchTool(root="built", key=os.environ.get("PAYMENT_KEY", "SECRET-VALUE"))

    def plain(n: int) -> int:
        """Doubles.

        Really."""
        return 2 * n

    class NoTool:
        pass

    number = 3

    if __name__ == "__main__":
        raise SystemExit("the entry script ran")
'''


@pytest.fixture
def crew(project):
    return project.write(CREW)


def one(tools):
    """The only tool."""
    (tool,) = tools.values()
    return tool


def test_every_kind_of_entry(project, crew):
    """Decorated functions, classes, instances, factories and plain functions."""
    tools = project.load(
        f"{crew}:lookup_order",
        f"{crew}:PDFSearchTool",
        {"class": f"{crew}:PDFSearchTool", "config": {"root": "docs"}, "name": "docs_search"},
        {"tool": f"{crew}:ready", "name": "ready"},
        {"factory": f"{crew}:build", "name": "built"},
        {"function": f"{crew}:plain"},
    )
    assert list(tools) == [
        "orders.lookup_order",
        "orders.pdf_search",
        "orders.docs_search",
        "orders.ready",
        "orders.built",
        "orders.plain",
    ]
    assert tools["orders.lookup_order"].run({"order": "A"}).order == "A"
    assert tools["orders.docs_search"].run({"query": "q"}) == {"query": "q", "root": "docs"}
    assert tools["orders.built"].run({"query": "q"})["root"] == "built"
    assert tools["orders.plain"].run({"n": 4}) == 8


def test_schemas_are_closed_and_results_described(project, crew):
    """Unknown arguments are refused by schema; a model result has its schema."""
    tool = one(project.load(f"{crew}:lookup_order"))
    assert tool.schema["additionalProperties"] is False
    assert tool.schema["required"] == ["order"]
    assert tool.schema["properties"]["verbose"]["default"] is False
    assert tool.result_schema["properties"]["order"]["type"] == "string"
    assert tool.description.strip() == "Finds an order."


def test_plain_function_has_schema_from_hints(project, crew):
    """Names, types and the docstring of a plain function."""
    tool = one(project.load({"function": f"{crew}:plain"}))
    assert tool.schema["properties"] == {"n": {"title": "n", "type": "integer"}}
    assert tool.schema["additionalProperties"] is False
    assert tool.description == "Doubles.\n\nReally."
    assert tool.identity["qualname"] == f"{crew}:plain"


def test_usage_counts_of_crewai_do_not_add_up_here(project, crew):
    """`max_usage_count` is per task in CrewAI; a host serves many."""
    tool = one(project.load({"tool": f"{crew}:ready", "name": "ready"}))
    assert [tool.run({"query": "q"})["root"] for _ in range(3)] == ["ready"] * 3


def test_async_crewai_tool_is_run(project, crew):
    """An async decorated function gives its value."""
    assert one(project.load(f"{crew}:slow_lookup")).run({"order": "A"}) == "A"


def test_entry_script_is_loaded_but_not_run(project):
    """`main.py:name` loads the file without its main part, and its identity names the path."""
    script = project.write(CREW, name="main.py")
    tools = project.load(f"{script}:lookup_order", f"{script}:plain")
    assert tools["orders.lookup_order"].identity["qualname"] == "main.py:lookup_order"
    assert tools["orders.plain"].identity["qualname"] == "main.py:plain"
    assert "main" not in sys.modules


def test_entry_script_in_a_folder_finds_its_neighbours(project):
    """A script's own folder is on the path, as it is when it runs."""
    project.write("VALUE = 5\n", name="app/neighbour_of_main.py")
    script = project.write(
        "from neighbour_of_main import VALUE\ndef value() -> int:\n    return VALUE\n", name="app/main.py"
    )
    tool = one(project.load(f"{script}:value"))
    assert (tool.run({}), tool.identity["qualname"]) == (5, "app/main.py:value")


def test_identity_is_that_of_an_agent_without_the_secret(project, crew):
    """A secret in a constructor field does not enter the digest; the agent's placeholder does."""
    built = one(
        project.load({"factory": f"{crew}:build", "name": "built"}, withheld=("SECRET-VALUE",))
    ).identity
    agents = one(
        project.load(
            {
                "class": f"{crew}:PDFSearchTool",
                "config": {"root": "built", "key": "meshgate:withheld"},
                "name": "x",
            }
        )
    ).identity
    assert built == agents


def test_definition_digest_moves_with_schema_and_description(project):
    """Another parameter or docstring is another definition; the same source is the same."""
    sources = [
        'def f(a: int) -> int:\n    """A."""\n    return a\n',
        'def f(a: int) -> int:\n    """A."""\n    return a + 1\n',
        'def f(a: int) -> int:\n    """B."""\n    return a\n',
        'def f(a: str) -> int:\n    """A."""\n    return a\n',
    ]
    digests = [definitions.digest(one(project.load(f"{project.write(text)}:f"))) for text in sources]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_definitions_file_is_whole_and_private(project, crew, tmp_path):
    """What the supervisor reads."""
    path = tmp_path / "generated" / "orders.json"
    tools = project.load(f"{crew}:lookup_order")
    definitions.write(path, tools)
    written = json.loads(path.read_text())["orders.lookup_order"]
    assert set(written) == {"description", "schema", "result_schema", "identity", "definition_sha256"}
    assert set(written["identity"]) == {"kind", "qualname", "name", "fields_sha256"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["orders.json"]


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("nocolon", "module:name"),
        (3, "module:name"),
        ({"class": "m:C", "factory": "m:f"}, "one of"),
        ({"class": "m:C", "confg": {}}, "unknown key 'confg'"),
        ({"class": "m:C", "config": [1]}, "mapping"),
        ({"function": "m:f", "name": "Not a name"}, "lower case"),
        ("meshgate_no_such:f", "no module 'meshgate_no_such'"),
        ("nosuch.py:f", "no file"),
        ("../outside.py:f", "outside"),
        ("CREW:nothing", "has no nothing"),
        ("CREW:NoTool", "no subclass of BaseTool"),
        ("CREW:number", "neither a tool nor a function"),
        ({"class": "CREW:plain"}, "no class"),
        ({"function": "CREW:PDFSearchTool"}, "is a class"),
        ({"class": "CREW:PDFSearchTool", "config": {"root": 3}}, "cannot be built"),
        ({"factory": "CREW:number"}, "cannot be called"),
    ],
)
def test_entries_that_give_no_tool(project, crew, entry, says):
    """Each says what is wrong with the entry, and shows it."""
    text = json.loads(json.dumps(entry).replace("CREW", crew))
    with pytest.raises(ToolNotLoadable) as caught:
        project.load(text)
    assert says in str(caught.value)
    assert caught.value.entry == text


def test_missing_import_inside_a_module_is_told_from_a_missing_module(project):
    """The message names what is not installed."""
    name = project.write("import meshgate_not_installed\n")
    with pytest.raises(ToolNotLoadable, match="needs 'meshgate_not_installed': not installed here"):
        project.load(f"{name}:f")


@pytest.mark.parametrize("name", ["main.py", "tools_that_exit"])
def test_a_module_that_ends_the_process_is_an_error(project, name):
    """A script without a main guard does not take the host with it."""
    written = project.write("import sys\nsys.exit(0)\n", name=name)
    with pytest.raises(ToolNotLoadable, match="ends the process"):
        project.load(f"{written}:f")


def test_parameters_without_names_are_refused(project):
    """A caller gives arguments by name."""
    name = project.write("def f(*values: int) -> int:\n    return 1\n")
    with pytest.raises(ToolNotLoadable, match="by name"):
        project.load(f"{name}:f")


def test_two_tools_of_one_name_are_refused(project, crew):
    """The second entry is named."""
    with pytest.raises(ToolNotLoadable, match=r"a second orders\.lookup_order"):
        project.load(f"{crew}:lookup_order", f"{crew}:lookup_order")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("FileRead", "file_read"),
        ("PDFSearch", "pdf_search"),
        ("get-time", "get_time"),
        ("lookup_order", "lookup_order"),
        ("S3Read", "s3_read"),
    ],
)
def test_names(written, name):
    """Tool names are snake case."""
    assert snake_case(written) == name


def test_a_host_of_plain_functions_never_imports_crewai(tmp_path):
    """Loading, describing and composing such a host leaves CrewAI out of the process."""
    (tmp_path / "desk.py").write_text("def refund(order: str) -> str:\n    return order\n")
    config = tmp_path / "host.json"
    config.write_text(json.dumps(host_config(tmp_path, tools=["desk:refund"])))
    code = (
        "import sys; from meshgate_toolhost.__main__ import serve; import meshgate_toolhost.host;"
        "status = serve(['--config', sys.argv[1], '--describe']);"
        "heavy = [m for m in ('crewai', 'crewai_tools', 'mcp', 'litellm') if m in sys.modules];"
        "assert not heavy, heavy; sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(json.loads((tmp_path / "state/orders.json").read_text())) == ["orders.refund"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tools": ["nosuchmodule:f"]}, "no module"),
        ({"cwd": "nowhere"}, "not a folder"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_bad_configuration_ends_before_anything_starts(tmp_path, change, says):
    """Status 1 and a reason; no ready file."""
    config = tmp_path / "host.json"
    config.write_text(json.dumps({**host_config(tmp_path, tools=[]), **change}))
    done = run_host(config)
    assert done.returncode == 1
    assert says in done.stderr
    assert not (tmp_path / "state/ready").exists()


def test_a_host_does_not_start_inside_an_agents_process(tmp_path):
    """Interception would send its own tool calls back to the gateway."""
    config = tmp_path / "host.json"
    config.write_text(json.dumps(host_config(tmp_path, tools=[])))
    done = run_host(config, MESHGATE_SOCKET="/nowhere")
    assert done.returncode == 1
    assert "intercepted" in done.stderr


def test_the_process_ends_though_a_tool_left_a_thread():
    """After a stop nothing waits for a body that hangs, or for threads a tool made."""
    code = (
        "import threading, meshgate_toolhost.__main__ as m\n"
        "def serve(argv=None):\n"
        "    threading.Thread(target=threading.Event().wait).start()\n"
        "    return 7\n"
        "m.serve = serve\n"
        "m.main()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 7


@pytest.mark.parametrize(("given", "seen"), [({}, "true"), ({"CREWAI_DISABLE_TELEMETRY": "no"}, "no")])
def test_crewai_is_quiet_in_a_host_unless_told_otherwise(tmp_path, monkeypatch, given, seen):
    """Telemetry is off when the tools are loaded; what the manifest sets is kept."""
    monkeypatch.delenv("CREWAI_DISABLE_TELEMETRY", raising=False)
    (tmp_path / "desk.py").write_text(
        "import os\ndef f() -> str:\n    return ''\nf.__doc__ = os.environ['CREWAI_DISABLE_TELEMETRY']\n"
    )
    config = tmp_path / "host.json"
    config.write_text(json.dumps(host_config(tmp_path, tools=["desk:f"])))
    assert run_host(config, **given).returncode == 0
    assert json.loads((tmp_path / "state/orders.json").read_text())["orders.f"]["description"] == seen


def run_host(config, **environment):
    """Runs a real host process to its end."""
    return subprocess.run(
        [sys.executable, "-m", "meshgate_toolhost", "--config", str(config), "--describe"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def host_config(root: Path, **more):
    """A complete configuration with nothing behind it."""
    state = root / "state"
    return {
        "app": "orders",
        "mesh": "desk",
        "trust_domain": "desk.example",
        "workload_api": str(state / "w.sock"),
        "gateway": {"target": "127.0.0.1:1", "server_name": "gateway.desk.desk.example"},
        "dapr": {"grpc_port": 1, "api_token_file": str(state / "token")},
        "project_root": str(root),
        "cwd": None,
        "mcp": None,
        "finished_db": str(state / "orders.db"),
        "definitions_file": str(state / "orders.json"),
        "ready_file": str(state / "ready"),
        "tool_overrides": {"orders.refund": {"deadline_seconds": 5, "max_result_bytes": None}},
        **more,
    }
