"""A real MCP server over stdio, served by a host."""

import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from meshgate_agents.child.tool_identity import describe
from meshgate_toolhost import mcp_server
from meshgate_toolhost.errors import ToolNotLoadable

SERVER = '''
import os, time
from mcp.server.fastmcp import FastMCP

server = FastMCP("clock")

@server.tool()
def get_time(zone: str) -> str:
    """Tells the time."""
    if zone == "nowhere":
        raise ValueError("no such zone")
    return f"noon in {zone} {os.environ.get('CLOCK_KEY', '')}"

@server.tool(name="hang-up")
def hang_up() -> str:
    """Takes long."""
    time.sleep(60)
    return "late"

if __name__ == "__main__":
    server.run()
'''


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """The tools of a server that holds a key of its environment."""
    monkeypatch.setenv("CLOCK_KEY", "k1")
    path = tmp_path / "clock.py"
    path.write_text(SERVER)
    command = [sys.executable, str(path)]
    with ExitStack() as stack:
        yield mcp_server.load(host="time", command=command, stack=stack), command


def test_tools_are_listed_with_their_schemas(clock):
    """Names become ours, schemas are the server's."""
    tools, _ = clock
    assert sorted(tools) == ["time.get_time", "time.hang_up"]
    assert tools["time.get_time"].schema["required"] == ["zone"]
    assert tools["time.get_time"].description == "Tells the time."


def test_a_call_gives_text_and_the_server_has_the_hosts_environment(clock, start):
    """Through a whole delivery."""
    call = start(clock[0]).call("time.get_time", {"zone": "Rome"})
    assert call.state == "done", call.outcome
    text = call.outcome.data.decode()
    assert "noon in Rome k1" in text


def test_an_error_of_the_server_is_a_failure(clock, start):
    """`isError` is not a result."""
    call = start(clock[0]).call("time.get_time", {"zone": "nowhere"})
    assert (call.state, call.outcome.error_class) == ("failed", "tool_reported")
    assert "no such zone" in call.outcome.message


def test_a_slow_server_is_cut_at_the_deadline(clock, start):
    """The deadline is the call's; another tool of the same server is still served."""
    host = start(clock[0])
    call = host.call("time.hang_up", {}, deadline_seconds=0.5)
    assert (call.state, call.outcome.error_class) == ("unknown", "timeout")


def test_an_agents_mcp_tool_is_recognised(clock):
    """CrewAI's own MCP tool for the same command has the host's identity."""
    from crewai.tools.mcp_native_tool import MCPNativeTool

    tools, command = clock
    server_name = f"{command[0]}_{'_'.join(command[1:])}"
    live = MCPNativeTool(
        client_factory=lambda: None,
        tool_name="get_time",
        tool_schema={"description": "d"},
        server_name=server_name,
        original_tool_name="get_time",
    )
    assert describe(live) == tools["time.get_time"].identity


@pytest.mark.parametrize("command", [["meshgate-no-such-command"], [sys.executable, "-c", "pass"]])
def test_a_server_that_does_not_start(command):
    """It is an error of the entry, and nothing stays behind."""
    with ExitStack() as stack, pytest.raises(ToolNotLoadable, match="does not start"):
        mcp_server.load(host="time", command=command, stack=stack)


def test_the_server_ends_with_its_host(clock, tmp_path):
    """No process is left."""
    path = str(tmp_path / "clock.py")

    def running():
        found = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found += [file] if path in file.read_text() else []
            except OSError:
                continue
        return found

    with ExitStack() as stack:
        mcp_server.load(host="time", command=[sys.executable, path], stack=stack)
        assert len(running()) == 2  # the fixture's and ours
    assert len(running()) == 1
