"""Which tool a live object is: one rule for the agent's side and for the tool host.

The agent's side asks "which manifest entry is this object?", the host says "this is what I
serve". Both call `describe`, so the answers are equal exactly when the tools are. Standard
library only, Python >= 3.10; CrewAI's objects are recognised by their shape.

What `fields_sha256` does not see: values that are not JSON (clients, connections, callables)
and private attributes. Two tools that differ only there look like one.
"""

import enum
import hashlib
import json
import math
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

WITHHELD = "meshgate:withheld"  # what an agent's process sees in place of a host's secret
PROJECT = "meshgate:project"  # stands for the project root at the start of a path
PROJECT_ROOT_VARIABLE = "MESHGATE_PROJECT_ROOT"
SCRIPT_MODULE_PREFIX = "_meshgate_script_"  # the tool host's name for an entry script it loaded
JSON_TOOLS_PREFIX = "custom_tools."  # CrewAI's name for a file of a JSON crew's tools/, which no import finds
MAX_DEPTH = 32  # deeper values are no constructor arguments anyone writes

MIN_PARTIAL_SECRET = 8  # characters; a shorter secret is only recognised as a whole value

_WRAPPERS = ("Tool", "CrewStructuredTool")
_MAIN_NAMES = ("__main__", "__mp_main__")
# What CrewAI's own base class carries: it changes how a tool is shown or counted, or moves
# while the program runs, never what the tool does.
_NOT_IDENTITY = frozenset(
    {
        "name",
        "description",
        "env_vars",
        "args_schema",
        "result_schema",
        "description_updated",
        "cache_function",
        "result_as_answer",
        "max_usage_count",
        "tool_failure_policy",
        "current_usage_count",
        "tool_type",
        "func",
    }
)


class _NotJson(Exception):
    """A value that has no place in the digest."""


def describe(tool: Any, *, withheld: Iterable[str] = (), root: str | None = None) -> dict[str, str]:
    """Describes a live tool object or a plain function.

    Args:
        tool: a CrewAI tool (an `@tool` object or an instance of a BaseTool subclass), or a function.
        withheld: values of secrets; where a field holds one, the digest is made as an agent,
            who sees `meshgate:withheld` there, would make it.
        root: the project's root folder; by default MESHGATE_PROJECT_ROOT, else the working folder.

    Returns:
        `kind` ("function", "class" or "mcp"), `qualname` ("module:qualname", or "path/of/script.py:name"
        for what an entry script defines), `name` (what the tool calls itself), `fields_sha256`.
    """
    base = root or os.environ.get(PROJECT_ROOT_VARIABLE) or os.getcwd()  # noqa: PTH109 - plain text
    if type(tool).__module__.startswith("crewai.tools.mcp") and hasattr(tool, "original_tool_name"):
        return describe_mcp(str(tool.server_name), str(tool.original_tool_name))
    fields = _fields(tool, tuple(filter(None, withheld)), base)
    inner = getattr(tool, "func", None)
    if _is_function(tool):
        kind, definition = "function", tool
    elif callable(inner) and _wraps_functions(type(tool)):
        kind, definition = "function", inner
    else:
        kind, definition = "class", type(tool)
        if callable(inner):
            fields["func"] = _qualname(inner, base)
    name = getattr(tool, "name", None) or getattr(tool, "__name__", "")
    return {
        "kind": kind,
        "qualname": _qualname(definition, base),
        "name": str(name),
        "fields_sha256": _digest(fields),
    }


def describe_mcp(server: str, tool: str) -> dict[str, str]:
    """Describes a tool of an MCP server.

    Args:
        server: the command line that starts it, joined with underscores: CrewAI's name for it.
        tool: the tool's name on that server.
    """
    plain = re.sub(r"[^A-Za-z0-9]+", "_", server).strip("_").lower()
    return {"kind": "mcp", "qualname": f"{plain}:{tool}", "name": tool, "fields_sha256": _digest({})}


def _is_function(tool: Any) -> bool:
    return callable(tool) and hasattr(tool, "__qualname__") and not isinstance(tool, type)


def _wraps_functions(kind: type) -> bool:
    """CrewAI's own wrappers, which add nothing to the function that they hold."""
    return kind.__module__.startswith("crewai.tools.") and kind.__qualname__.split("[")[0] in _WRAPPERS


def _qualname(definition: Any, base: str) -> str:
    """`module:qualname`; a partial or a callable object counts as its class."""
    if not hasattr(definition, "__qualname__"):
        definition = type(definition)
    name = str(definition.__module__)
    file = _file_of(definition) if name.startswith(JSON_TOOLS_PREFIX) and name not in sys.modules else ""
    return f"{_from_project(file, base) if file else _module_name(name, base)}:{definition.__qualname__}"


def _file_of(definition: Any) -> str:
    """The file that a class or function was read from; empty if its code does not tell."""
    function: Any = vars(definition).get("_run") if isinstance(definition, type) else definition
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return str(getattr(getattr(function, "__code__", None), "co_filename", ""))


def _module_name(name: str, base: str) -> str:
    """The module's name, alike in a process where it is the entry script and in one where it is not."""
    if name not in _MAIN_NAMES and not name.startswith(SCRIPT_MODULE_PREFIX):
        return name
    module = sys.modules.get(name)
    specification = getattr(module, "__spec__", None)
    if name in _MAIN_NAMES and specification is not None:
        return str(specification.name)  # python -m package.module
    file = getattr(module, "__file__", None)
    if file is None:
        return name
    return _from_project(str(file), base)


def _from_project(file: str, base: str) -> str:
    path, top = os.path.realpath(file), os.path.realpath(base)
    if path.startswith(top + os.sep):
        path = path[len(top) + 1 :]
    return path.replace(os.sep, "/")


def _fields(tool: Any, withheld: tuple[str, ...], base: str) -> dict[str, Any]:
    """The fields that were set to something else than their default, as JSON values.

    `Tool()` and `Tool(encoding="utf-8")` are one tool when utf-8 is the default.
    """
    declared = getattr(type(tool), "model_fields", None)
    given = getattr(tool, "model_fields_set", None)
    if not isinstance(declared, Mapping) or given is None:
        return {}
    found: dict[str, Any] = {}
    for name in sorted(set(given) - _NOT_IDENTITY):
        value = getattr(tool, name, None)
        default = getattr(declared.get(name), "default", None)
        if callable(value) or value is default or (type(value) is type(default) and value == default):
            continue
        try:
            found[name] = _json(value, withheld, base, MAX_DEPTH)
        except _NotJson:
            continue
    return found


def _json(value: Any, withheld: tuple[str, ...], base: str, depth: int) -> Any:  # noqa: PLR0911
    """A JSON value for the digest.

    Raises:
        _NotJson: there is none.
    """
    if depth == 0:
        raise _NotJson
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return _json(value.value, withheld, base, depth - 1)
    if isinstance(value, (str, pathlib.PurePath)):
        return _text(str(value), withheld, base)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [_json(item, withheld, base, depth - 1) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _json(item, withheld, base, depth - 1) for key, item in value.items()}
    if isinstance(getattr(type(value), "model_fields", None), Mapping):
        return _fields(value, withheld, base)
    raise _NotJson


def _text(value: str, withheld: tuple[str, ...], base: str) -> str:
    """A string without secrets, and with the project's place on this machine taken out."""
    if value in withheld:
        return WITHHELD
    for secret in sorted(withheld, key=len, reverse=True):
        if len(secret) >= MIN_PARTIAL_SECRET:
            value = value.replace(secret, WITHHELD)
    top = os.path.realpath(base)
    if value == top or value.startswith(top + os.sep):
        return PROJECT + value[len(top) :].replace(os.sep, "/")
    return value


def _digest(fields: dict[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
