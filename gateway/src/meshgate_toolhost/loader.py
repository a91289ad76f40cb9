"""From a manifest entry to a tool: something with a name, a description, a schema and a call."""

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from meshgate_agents.child import tool_identity
from pydantic import TypeAdapter, create_model

from meshgate_toolhost.errors import ToolNotLoadable


@dataclass(frozen=True, slots=True)
class LoadedTool:
    """One tool.

    Attributes:
        id: canonical, `host.name`.
        schema: JSON Schema of its arguments.
        identity: how an agent's live object is recognised as this tool.
        call: runs the body with keyword arguments; may raise anything.
    """

    id: str
    description: str
    schema: Mapping[str, object]
    identity: Mapping[str, str]
    call: Callable[..., object]


def load(host: str, entry: object, root: Path) -> LoadedTool:
    """Loads one entry of `toolhosts.<host>.tools`.

    Raises:
        ToolNotLoadable: says what the entry should look like.
    """
    if isinstance(entry, str):
        return _wrap(host, _resolve(entry, root), entry, None)
    if isinstance(entry, dict):
        name = entry.get("name")
        if "class" in entry:
            made = _construct(entry, root)
            return _wrap(host, made, str(entry["class"]), name)
        for key in ("factory", "function"):
            if key in entry:
                found = _resolve(str(entry[key]), root)
                return _wrap(host, found() if key == "factory" else found, str(entry[key]), name)
    raise ToolNotLoadable(
        f"{entry!r}: write 'module:name', {{class: 'module:Class', config: {{...}}}}"
        " or {factory: 'module:function'}"
    )


def _construct(entry: Mapping[str, Any], root: Path) -> object:
    kind = _resolve(str(entry["class"]), root)
    config = {key: value for key, value in (entry.get("config") or {}).items() if value is not None}
    try:
        return kind(**config)
    except Exception as error:
        raise ToolNotLoadable(
            f"{entry['class']}: its constructor failed with config {config}: {error}"
        ) from error


def _resolve(reference: str, root: Path) -> Any:
    module_name, _, attribute = reference.partition(":")
    if not attribute:
        raise ToolNotLoadable(f"{reference!r}: write 'module:name'")
    module = _script(module_name, root) if module_name.endswith(".py") else _module(module_name)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ToolNotLoadable(f"{reference}: {module_name} has no {attribute}")
        found = getattr(found, part)
    return found


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ToolNotLoadable(f"cannot import {name}: {error}") from error


def _script(name: str, root: Path) -> ModuleType:
    """Loads an entry script under another name than __main__, so that its main guard stays shut."""
    module_name = "meshgate_entry_" + re.sub(r"\W", "_", name)
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, root / name)
    if spec is None or spec.loader is None or not (root / name).is_file():
        raise ToolNotLoadable(f"there is no file {root / name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


def _wrap(host: str, found: Any, reference: str, name: str | None) -> LoadedTool:
    if inspect.isclass(found):
        found = found()
    if hasattr(found, "args_schema") and callable(getattr(found, "run", None)):
        return _crewai_tool(host, found, name)
    if inspect.isfunction(found):
        return _function(host, found, name)
    raise ToolNotLoadable(f"{reference} is {type(found).__name__}, not a tool or a function")


def _crewai_tool(host: str, tool: Any, name: str | None) -> LoadedTool:
    identity = tool_identity.describe(tool)
    own = identity["qualname"].rpartition(":")[2]
    short = name or (own if identity["kind"] == "function" else snake(own.removesuffix("Tool")))
    return LoadedTool(
        id=f"{host}.{short}",
        description=str(tool.description),
        schema=tool.args_schema.model_json_schema(),
        identity=identity,
        call=tool.run,
    )


def _function(host: str, function: Callable[..., object], name: str | None) -> LoadedTool:
    """A plain function: its type hints are its schema. CrewAI is not needed."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    fields: dict[str, Any] = {
        p.name: (Any if p.annotation is p.empty else p.annotation, ... if p.default is p.empty else p.default)
        for p in parameters
    }
    qualname = f"{tool_identity.module_name(function)}:{function.__qualname__}"
    return LoadedTool(
        id=f"{host}.{name or function.__name__}",
        description=inspect.getdoc(function) or "",
        schema=TypeAdapter(create_model(function.__name__, **fields)).json_schema(),
        identity={"kind": "function", "qualname": qualname, "name": function.__name__, "fields_sha256": ""},
        call=function,
    )


def snake(name: str) -> str:
    """`ScrapeWebsite` becomes `scrape_website`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
