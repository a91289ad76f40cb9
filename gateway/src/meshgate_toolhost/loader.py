"""From the manifest's entries to tools that can be run.

CrewAI's objects are recognised by their shape: a host whose entries are plain functions never
imports CrewAI.
"""

import asyncio
import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from meshgate_agents.child.tool_identity import describe

from meshgate_toolhost import entries
from meshgate_toolhost.entries import Entry, EntryKind
from meshgate_toolhost.errors import ToolNotLoadable
from meshgate_toolhost.functions import FunctionTool
from meshgate_toolhost.model import Arguments, LoadedTool, Schema

_TOOL_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def load_all(
    *, host: str, written: Iterable[object], project_root: Path, withheld: tuple[str, ...] = ()
) -> Mapping[str, LoadedTool]:
    """Loads every entry. The project's folders must be on `sys.path` already.

    Args:
        host: our app's name; tools are called `host.name`.
        written: the manifest's entries.
        project_root: what scripts and paths are relative to.
        withheld: values of secrets, kept out of identities.

    Raises:
        ToolNotLoadable: an entry gives no tool, or two give the same one.
    """
    tools: dict[str, LoadedTool] = {}
    for one in written:
        entry = entries.parse(one)
        tool = _load(entry, host, project_root, withheld)
        if tool.tool_id in tools:
            raise ToolNotLoadable(one, f"a second {tool.tool_id}; give one of them another `name:`")
        tools[tool.tool_id] = tool
    return tools


def _load(entry: Entry, host: str, root: Path, withheld: tuple[str, ...]) -> LoadedTool:
    live = _live_object(entry, entries.resolve(entry, root))
    identity = describe(live, withheld=withheld, root=str(root))
    tool_id = f"{host}.{entry.name or _default_name(entry, identity)}"
    if _is_crewai_tool(live):
        return _crewai_tool(live, tool_id, identity)
    if inspect.isroutine(live):
        function = FunctionTool.of(live, entry.written)
        return LoadedTool(
            tool_id, function.description, function.schema, function.result_schema, identity, function.run
        )
    raise ToolNotLoadable(entry.written, f"a {type(live).__qualname__} is neither a tool nor a function")


def _live_object(entry: Entry, found: object) -> object:
    """Builds what has to be built; the project's own code may raise here, and that is shown as it is."""
    if entry.kind is EntryKind.FACTORY:
        if not callable(found):
            raise ToolNotLoadable(entry.written, "the factory cannot be called")
        return found()
    if entry.kind is EntryKind.CLASS and not isinstance(found, type):
        raise ToolNotLoadable(entry.written, f"{entry.attribute} is no class; write the reference alone")
    if entry.kind is EntryKind.FUNCTION and isinstance(found, type):
        raise ToolNotLoadable(entry.written, f"{entry.attribute} is a class; write `class:`")
    if isinstance(found, type):
        if not hasattr(found, "_run"):
            raise ToolNotLoadable(entry.written, f"{entry.attribute} is no subclass of BaseTool")
        try:
            return found(**entry.config)
        except (TypeError, ValueError) as error:
            raise ToolNotLoadable(entry.written, f"cannot be built: {error}") from error
    return found


def _default_name(entry: Entry, identity: dict[str, str]) -> str:
    """`lookup_order` for a function, `file_read` for FileReadTool."""
    name = identity["qualname"].rsplit(":", 1)[-1].rsplit(".", 1)[-1]
    if identity["kind"] == "class" and name != "Tool":
        name = name.removesuffix("Tool")
    name = snake_case(name)
    if not _TOOL_NAME.fullmatch(name):
        raise ToolNotLoadable(entry.written, f"{name!r} cannot be a tool's name; write `name:`")
    return name


def snake_case(name: str) -> str:
    """`PDFSearch` -> `pdf_search`, `get-time` -> `get_time`."""
    split = re.sub(r"([A-Z]+)([A-Z][a-z])|([a-z0-9])([A-Z])", r"\1\3_\2\4", name)
    return re.sub(r"[^A-Za-z0-9]+", "_", split).strip("_").lower()


def _is_crewai_tool(live: object) -> bool:
    return all(hasattr(live, name) for name in ("args_schema", "run", "_run", "description"))


def _crewai_tool(live: object, tool_id: str, identity: dict[str, str]) -> LoadedTool:
    tool: object = live
    arguments_model = tool.args_schema  # type: ignore[attr-defined]
    result_model = getattr(tool, "result_schema", None)
    if getattr(tool, "max_usage_count", None) is not None:
        # CrewAI counts per task; here it would count for the life of the process.
        tool.max_usage_count = None  # type: ignore[attr-defined]

    def run(arguments: Arguments) -> object:
        result = tool.run(**arguments)  # type: ignore[attr-defined]
        return asyncio.run(result) if inspect.iscoroutine(result) else result

    return LoadedTool(
        tool_id=tool_id,
        description=str(tool.description),  # type: ignore[attr-defined]
        schema=closed(arguments_model.model_json_schema()),
        result_schema=result_model.model_json_schema(mode="serialization") if result_model else None,
        identity=identity,
        run=run,
    )


def closed(schema: Schema) -> Schema:
    """Arguments that a tool does not declare are refused, unless it says that it takes any."""
    return {"additionalProperties": False, **schema}
