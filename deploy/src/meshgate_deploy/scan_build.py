"""Makes findings of what the source says and what the import gave."""

import dataclasses
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from meshgate_deploy import scan_variables
from meshgate_deploy.errors import DependencyUnavailable
from meshgate_deploy.manifest_agents import MAX_APP_CHARACTERS, RESERVED, one_line
from meshgate_deploy.manifest_agents import app_id as slug
from meshgate_deploy.scan_findings import READING, Agent, App, Findings, Tool, path_arguments, stock_host
from meshgate_deploy.scan_source import Module

_GENERIC = frozenset({"tools", "tool", "custom_tool", "custom_tools", "main", "crew", "utils", "__init__"})


def snake(text: str) -> str:
    """A tool's name on its host: `FileReadTool` is `file_read`."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", text.removesuffix("Tool") or text)
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


class Builder:
    """Makes findings of the source's and the import's answers."""

    def __init__(self, project: Path, modules: Mapping[str, Module], *, isolate: bool = True) -> None:
        self._project, self._isolate = project, isolate
        self._modules = modules
        self._tools: dict[str, Tool] = {}  # by identity
        self._names: set[str] = set(RESERVED)
        self._notes: list[str] = []

    def build(self, answer: Mapping[str, Any], *, explicit: bool) -> Findings:
        """Findings, with one app for each crew or program that could be built.

        Raises:
            DependencyUnavailable: a crew that was asked for by name could not be built.
        """
        crews = [crew for crew in answer["crews"] if self._usable(crew, explicit=explicit)]
        programs = [module for module in answer["modules"] if self._usable(module, explicit=False)]
        named = [
            (self._app_name(crew["module"], crew["name"], file=not crew["name"]), crew) for crew in crews
        ]
        named += [(self._app_name(module["module"], ""), module) for module in programs]
        # Every app has its name before the first tool host gets one: a host gives way.
        keyed = [(name, found, self._keys(name, found)) for name, found in named]
        apps = [self._app(name, found, keys) for name, found, keys in keyed]
        modules = [found["module"] for _, found in named]
        shared = scan_variables.Sharing(self._project, self._modules, tuple(self._tools.values()))
        variables, env = shared.share(dict(zip([app.name for app in apps], modules, strict=True)))
        self._notes += shared.notes(variables)
        apps = [dataclasses.replace(app, env=env.get(app.name, ())) for app in apps]
        self._source_notes()
        mesh = slug(self._project.name)
        return Findings(
            mesh=mesh,
            trust_domain=f"{mesh}.example",
            apps=tuple(apps),
            tools=tuple(self._tools.values()),
            variables=variables,
            notes=tuple(self._notes),
        )

    def _usable(self, found: Mapping[str, Any], *, explicit: bool) -> bool:
        error = found.get("error")
        place = f"{found['module']}:{found['name']}" if "name" in found else found["module"]
        if error and explicit:
            raise DependencyUnavailable(
                f"{place} cannot be built",
                why=error,
                next_step="mend it, or meshgate scan for all that are found",
            )
        if error:
            self._notes.append(f"{place} was left out: {error.splitlines()[-1]}")
        return not error

    def _app_name(self, module: str, name: str, *, file: bool = False) -> str:
        whole = Path(module).parent.parts if file else module.split(".")
        parts = [part for part in whole if part not in _GENERIC]
        plain = name if name and name.lower() not in _GENERIC else self._project.name
        wanted = slug(parts[-1] if parts else plain)
        if wanted in self._names and name:
            wanted = slug(f"{wanted}-{snake(name)}")
        return self._free(wanted)

    def _free(self, wanted: str) -> str:
        name = _other(wanted, self._names, "-")
        self._names.add(name)
        return name

    def _keys(self, name: str, found: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Key and app of each agent of a crew or program; no app where they act in its own process."""
        keys: list[str] = []
        for agent in found["agents"]:
            wanted = agent["key"] or slug(agent["role"]).replace("-", "_")
            keys.append(_other(wanted, keys, "_"))
        roles = [one_line(agent["role"]) for agent in found["agents"]]
        same = next((role for role in roles if not role or roles.count(role) > 1), None)
        if "name" not in found or not self._isolate or same is not None:
            if "name" in found and self._isolate:
                why = f"two have the role {same!r}" if same else "one has no role"
                self._notes.append(
                    f"{name}: its agents stay in one process, as they cannot be told apart: {why}"
                )
            return [(key, "") for key in keys]
        self._notes += [
            f"{name}: {hindrance}: refused at run time while its agents are apps; mend it, or isolate: crew"
            for hindrance in found["not_carried"]
        ]
        return [(key, self._agent_app(name, key)) for key in keys]

    def _agent_app(self, crew: str, key: str) -> str:
        """What the key gives by itself, where that is free."""
        wanted = slug(key)
        return self._free(wanted if wanted not in self._names else slug(f"{crew}-{wanted}"))

    def _app(self, name: str, found: Mapping[str, Any], keys: Sequence[tuple[str, str]]) -> App:
        module = self._modules.get(found["module"])
        agents = [
            self._agent(agent, found, key, app)
            for agent, (key, app) in zip(found["agents"], keys, strict=True)
        ]
        if "name" in found:
            crew = f"{found['module']}:{found['name']}" if found["name"] else found["module"]
            if module:
                crew = module.reference(found["name"])
            writable = tuple(sorted({self._folder(path) for path in found["files"]}))
            return App(name, crew, (), tuple(agents), manages=found["manages"], writable=writable)
        loose = [self._tool(tool) for tool in found["tools"] if not tool["reserved"]]
        if loose:
            agents.append(Agent("program", "", tuple(loose)))
        path = module.path if module else found["module"]
        return App(name, "", ("python", path), tuple(agents))

    def _folder(self, path: str) -> str:
        """The folder of the project that a task's file is written to; all of it where there is none yet."""
        folder = PurePosixPath(path).parent
        inside = not folder.is_absolute() and ".." not in folder.parts
        return str(folder) if inside and (self._project / folder).is_dir() else "."

    def _agent(self, agent: Mapping[str, Any], crew: Mapping[str, Any], key: str, app: str) -> Agent:
        reserved = [tool["reserved"] for tool in agent["tools"] if tool["reserved"]]
        memory = ["crewai.search_memory", "crewai.save_to_memory"] if crew.get("memory") else []
        tools = [self._tool(tool) for tool in agent["tools"] if not tool["reserved"]]
        servers = tuple(server["shown"] for server in agent["mcps"])
        self._notes += [_mcp_note(f"agent {key}", server) for server in agent["mcps"]]
        builtins = dict.fromkeys([*agent["builtins"], *reserved, *memory])
        return Agent(
            key,
            agent["role"],
            tuple(dict.fromkeys(tools)),
            tuple(builtins),
            servers,
            app,
            delegates=agent["delegates"],
            manager=agent["manager"],
        )

    def _tool(self, found: Mapping[str, Any]) -> str:
        """The tool's id; equal tools are one."""
        identity = json.dumps([found["identity"]["qualname"], found["identity"]["fields_sha256"]])
        if identity not in self._tools:
            made = self._new_tool(found)
            self._tools[identity] = made
            if made.problem:
                self._notes.append(f"{made.tool_id}: {made.problem}")
            if made.paths and made.effect != "read":
                self._notes.append(
                    f"{made.tool_id} may change almost any file of the project: narrow its grant in policies/"
                )
        return self._tools[identity].tool_id

    def _new_tool(self, found: Mapping[str, Any]) -> Tool:
        module, _, qualname = found["identity"]["qualname"].partition(":")
        entry, name = self._entry(found["entry"], found["identity"])
        stock = module.partition(".")[0] == "crewai_tools"
        host = self._host(module, qualname, stock=stock)
        short = name or (snake(qualname.rpartition(".")[2]) or snake(found["name"]))
        taken = {tool.short for tool in self._tools.values() if tool.host == host}
        if short in taken:
            short = _other(short, taken, "_")
            entry = self._named(entry, short)
        reads = isinstance(entry, dict) and entry.get("class") in READING
        return Tool(
            host=host,
            short=short,
            entry=entry,
            problem=found["problem"] if entry is None else "",
            module=module,
            description=found["description"],
            schema=found["schema"],
            effect="read" if reads else "",
            env_vars=tuple(found["env_vars"]),
            paths=path_arguments(found["schema"]) if stock else (),
        )

    def _entry(self, entry: dict[str, Any] | None, identity: Mapping[str, str]) -> tuple[Any, str]:
        """The manifest's entry and, where it gives the name, the tool's name on its host."""
        if entry is None:
            return None, ""
        if "tool" in entry:
            module, _, name = entry["tool"].partition(":")
            known = self._modules.get(module)
            return (known.reference(name) if known else entry["tool"]), snake(name) if identity[
                "kind"
            ] == "function" else ""
        module, _, name = entry["class"].partition(":")
        known = self._modules.get(module)
        made = {"class": known.reference(name) if known else entry["class"]}
        return ({**made, "config": entry["config"]} if entry["config"] else made), ""

    def _named(self, entry: Any, name: str) -> Any:
        """The entry with a name of its own, where two tools would share one."""
        if isinstance(entry, str):
            return {"tool": entry, "name": name}
        return {**entry, "name": name} if entry is not None else None

    def _host(self, module: str, qualname: str, *, stock: bool) -> str:
        if stock:
            wanted = stock_host(qualname)
        else:
            parts = module.removesuffix(".py").replace("/", ".").split(".")
            plain = [part for part in parts if part not in _GENERIC]
            wanted = slug(plain[-1]) if plain else slug(self._project.name)
            if not plain or parts[-1] in _GENERIC:
                wanted = f"{wanted}-tools"
        return f"{wanted}-tools" if wanted in self._names else wanted

    def _source_notes(self) -> None:
        for module in self._modules.values():
            if module.flow_network:
                lines = ", ".join(map(str, module.flow_network))
                self._notes.append(
                    f"{module.path}:{lines}: a Flow uses the network itself; only tools are brokered"
                )
            for line in module.mcp_adapters:
                self._notes.append(_mcp_note(f"{module.path}:{line}", {"shown": "of MCPServerAdapter"}))


def _other(wanted: str, taken: Collection[str], joint: str) -> str:
    """The name, with a number where it is taken."""
    name, number = wanted, 2
    while name in taken:
        ending = f"{joint}{number}"
        name, number = wanted[: MAX_APP_CHARACTERS - len(ending)] + ending, number + 1
    return name


def _mcp_note(where: str, server: Mapping[str, Any]) -> str:
    """A tool of a server that only an agent's own process speaks to is refused; says what to write."""
    command = json.dumps(server.get("command") or ["PROGRAM", "ARGUMENT"])
    part = f"{{url: {json.dumps(server['url'])}}}" if server.get("url") else f"{{command: {command}}}"
    return (
        f"{where}: the tools of MCP server {server['shown']} are refused until a tool host serves them: "
        f"toolhosts: {{NAME: {{mcp: {part}}}}}"
    )
