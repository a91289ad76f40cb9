"""An MCP server as a source of tools: this host starts it, lists its tools and calls them.

One session over stdio, kept open by a thread with an event loop of its own. The server gets the
environment of this process; it is the one that holds the secrets.
"""

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from meshgate_agents.child.tool_identity import describe_mcp

from meshgate_toolhost.errors import ToolNotLoadable, ToolReported
from meshgate_toolhost.loader import snake_case
from meshgate_toolhost.model import Arguments, LoadedTool

START_SECONDS = 30.0  # an interpreter with heavy imports, cold
STOP_SECONDS = 5.0


class McpSession:
    """A session with one server. `call` may be used from any thread."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._loop = asyncio.new_event_loop()
        self._ready: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._main, name="mcp", daemon=True)

    def start(self) -> Any:
        """Starts the server and returns what `tools/list` answers.

        Raises:
            ToolNotLoadable: it does not start, or does not speak MCP in time.
        """
        self._thread.start()
        try:
            self._session, listed = self._ready.result(START_SECONDS)
        except concurrent.futures.TimeoutError as error:
            raise ToolNotLoadable(self._command, f"no answer within {START_SECONDS:.0f} s") from error
        except Exception as error:  # whatever the server or its transport does at start
            raise ToolNotLoadable(self._command, f"the MCP server does not start: {error}") from error
        return listed

    def call(self, name: str, arguments: Arguments) -> Any:
        """Calls one tool and waits; the caller's deadline applies, not ours."""
        work = self._session.call_tool(name, arguments)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Ends the session and with it the server."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(STOP_SECONDS)

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _serve(self) -> None:
        from mcp import ClientSession
        from mcp.client.stdio import StdioServerParameters, stdio_client

        program, *rest = self._command
        server = StdioServerParameters(command=program, args=rest, env=dict(os.environ))
        async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            self._ready.set_result((session, (await session.list_tools()).tools))
            await self._stop.wait()


def load(*, host: str, command: list[str], stack: ExitStack) -> Mapping[str, LoadedTool]:
    """Starts the server and makes a tool of each of its tools; `stack` ends it.

    Raises:
        ToolNotLoadable: no server, no `mcp` package, or two tools of one name.
    """
    session = McpSession(command)
    stack.callback(session.close)
    tools: dict[str, LoadedTool] = {}
    for listed in session.start():
        tool = _tool(host, command, session, listed)
        if tool.tool_id in tools:
            raise ToolNotLoadable(command, f"two tools called {tool.tool_id}")
        tools[tool.tool_id] = tool
    return tools


def _tool(host: str, command: list[str], session: McpSession, listed: Any) -> LoadedTool:
    name = str(listed.name)
    return LoadedTool(
        tool_id=f"{host}.{snake_case(name)}",
        description=listed.description or "",
        schema=dict(listed.inputSchema),
        result_schema=dict(listed.outputSchema) if listed.outputSchema else None,
        identity=describe_mcp("_".join(command), name),
        run=lambda arguments: _value(session.call(name, arguments)),
    )


def _value(answer: Any) -> object:
    """Text when the answer is text, its structured content when it has one.

    Raises:
        ToolReported: the server says that the call failed.
    """
    texts = [block.text for block in answer.content if block.type == "text"]
    if answer.isError:
        raise ToolReported("\n".join(texts) or "the MCP server reports an error")
    if len(texts) == len(answer.content):
        return "\n".join(texts)
    if answer.structuredContent is not None:
        return answer.structuredContent
    return [block.model_dump(mode="json", exclude_none=True) for block in answer.content]
