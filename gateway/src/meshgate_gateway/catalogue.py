"""The tools and apps of a mesh, frozen at start."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from meshgate_gateway.errors import ConfigurationError
from meshgate_gateway.model import Kind, Tool, ToolKind

DEFAULT_DEADLINE_SECONDS = 30.0
_EFFECTS = ("read", "reversible", "external", "irreversible", "memory")
_REPEATS = ("allow", "same", "deny")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Tool id to tool, app name to kind, and the apps that take an operator's own command."""

    tools: Mapping[str, Tool]
    apps: Mapping[str, Kind]
    commands: frozenset[str] = frozenset()

    @property
    def reconciled(self) -> frozenset[str]:
        """Tools whose hosts can find out what came of a call."""
        return frozenset(name for name, tool in self.tools.items() if tool.reconcile)

    @property
    def agents(self) -> tuple[str, ...]:
        """Apps that are no tool hosts."""
        return tuple(sorted(app for app, kind in self.apps.items() if kind is not Kind.TOOLHOST))


def parse(text: bytes) -> Catalogue:
    """Reads the catalogue.

    Raises:
        ConfigurationError: names the entry and what is wrong with it.
    """
    try:
        document = json.loads(text)
        tools = {name: _tool(name, entry) for name, entry in document["tools"].items()}
        apps = {name: Kind(entry["kind"]) for name, entry in document["apps"].items()}
        commands = frozenset(
            name for name, entry in document["apps"].items() if entry.get("commands") is True
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"the catalogue cannot be read: {error!r}") from error
    for tool in tools.values():
        if tool.host not in apps:
            raise ConfigurationError(f"tool {tool.id}: its host {tool.host!r} is no app of the catalogue")
        if tool.kind is ToolKind.DELEGATE or name_of_agent(tool.id):
            _check_delegation(tool, apps[tool.host])
        elif tool.in_agent is not (apps[tool.host] is not Kind.TOOLHOST):
            raise ConfigurationError(f"tool {tool.id}: {tool.host} is not where its `execute` says it runs")
        if tool.in_agent and (tool.effect != "memory" or tool.reconcile):
            raise ConfigurationError(f"tool {tool.id}: an agent runs only what has effect: memory")
    return Catalogue(MappingProxyType(tools), MappingProxyType(apps), commands)


def name_of_agent(tool: str) -> str:
    """The app of `agent:APP`; empty for an id of any other shape."""
    kind, _, app = tool.partition(":")
    return app if kind == "agent" else ""


def _check_delegation(tool: Tool, host: Kind) -> None:
    """A task is given to an agent's own app only, under that app's name."""
    own = tool.kind is ToolKind.DELEGATE and tool.id == f"agent:{tool.host}"
    if not own or host is not Kind.AGENT:
        raise ConfigurationError(
            f"tool {tool.id}: a delegation is `agent:APP`, of kind delegate, to an agent"
        )
    if tool.in_agent or tool.reconcile or tool.idempotent:
        raise ConfigurationError(f"tool {tool.id}: a delegation is a run; it is never made again by itself")


def _tool(name: str, entry: Mapping[str, object]) -> Tool:
    effect = str(entry.get("effect") or "irreversible")
    repeat = str(entry.get("repeat") or ("allow" if effect == "read" else "same"))
    schema = entry.get("schema")
    if effect not in _EFFECTS or repeat not in _REPEATS or not isinstance(schema, dict):
        raise ValueError(f"tool {name}: effect, repeat or schema is not valid")
    return Tool(
        id=name,
        host=str(entry["host"]),
        kind=ToolKind(str(entry.get("kind") or "tool")),
        description=str(entry.get("description") or ""),
        schema=MappingProxyType(schema),
        effect=effect,
        idempotent=entry.get("idempotent") is True,
        repeat=repeat,
        deadline_seconds=float(str(entry.get("deadline_seconds") or DEFAULT_DEADLINE_SECONDS)),
        definition_sha256=str(entry["definition_sha256"]),
        reconcile=entry.get("reconcile") is True,
        in_agent=_in_agent(entry.get("execute", "toolhost")),
    )


def _in_agent(execute: object) -> bool:
    if execute not in ("toolhost", "agent"):
        raise ValueError(f"execute: {execute!r} is neither toolhost nor agent")
    return execute == "agent"
