"""Imports a project and tells what its crews hold. Run as a script, in a clean process of its own.

The interpreter is the project's, which may not have meshgate: standard library and CrewAI only,
Python 3.10 or newer. Reads one JSON request on standard input and writes one JSON answer to the file
descriptor that the request names, since the project's own code may print. Kicks no crew off.
"""

import importlib
import importlib.util
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

TRACEBACK_LINES = 6


def main() -> None:
    """Answers the one request."""
    request = json.load(sys.stdin)
    for root in reversed(request["roots"]):
        sys.path.insert(0, root)
    describe = _load(request["tool_identity"]).describe
    reserved = _load(request["internal_tools"]).reserved_id
    scanner = Scanner(describe, reserved, request["project"])
    crews = [scanner.crew(module, name) for module, name in request["targets"]]
    loose = [scanner.loose(module) for module in request["modules"]]
    with os.fdopen(request["answer_fd"], "w") as answer:
        json.dump({"crews": crews, "modules": loose, "python": sys.version.split()[0]}, answer)
        answer.flush()
    os._exit(0)  # threads that the project's imports started must not keep us


def _load(path: str) -> Any:
    name = "_meshgate_scan_" + os.path.basename(path).removesuffix(".py")  # noqa: PTH119 (plain text)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Scanner:
    """Turns live objects of CrewAI into plain data."""

    def __init__(
        self, describe: Callable[..., dict[str, str]], reserved: Callable[..., Any], project: str
    ) -> None:
        self._describe = describe
        self._reserved = reserved
        self._project = os.path.realpath(project)

    def crew(self, module: str, name: str) -> dict[str, Any]:
        """One crew of the project, of a JSON file where `name` is empty; `error` if it cannot be built."""
        found: dict[str, Any] = {"module": module, "name": name}
        try:
            if name:
                crew, keys = _crew_of_code(module, name)
            else:
                crew, keys = _crew_of_json(os.path.join(self._project, module))  # noqa: PTH118 (plain text)
            manager = getattr(crew, "manager_agent", None)
            hierarchical = getattr(crew.process, "value", crew.process) == "hierarchical"
            agents = _all_agents(crew)
            found["agents"] = [
                self._agent(
                    agent,
                    keys(agent),
                    _tools_of_tasks(crew, agent),
                    sys.modules.get(module),
                    manager=hierarchical and agent is manager,
                    may_delegate=not hierarchical and len(agents) > 1,
                )
                for agent in agents
            ]
            found["manages"] = hierarchical and manager is None
            found["not_carried"] = _not_carried(crew)
            files = [getattr(task, "output_file", None) for task in crew.tasks]
            found["files"] = [str(path) for path in files if path]
            found["memory"] = bool(getattr(crew, "memory", False))
        except (Exception, SystemExit) as error:  # noqa: BLE001 (reported, whatever it is)
            found["error"] = _why(error)
        return found

    def loose(self, module: str) -> dict[str, Any]:
        """Agents and tools that a module holds by name, for programs without a crew."""
        found: dict[str, Any] = {"module": module, "agents": [], "tools": []}
        try:
            loaded = importlib.import_module(module)
            for name, value in sorted(vars(loaded).items()):
                if _is_agent(value):
                    found["agents"].append(self._agent(value, name, [], loaded))
                elif _is_tool(value):
                    found["tools"].append(self._tool(value, loaded))
        except (Exception, SystemExit) as error:  # noqa: BLE001
            found["error"] = _why(error)
        return found

    def _agent(  # noqa: PLR0913 - what CrewAI makes of it in its crew
        self,
        agent: Any,
        key: str,
        extra: list[Any],
        module: Any,
        *,
        manager: bool = False,
        may_delegate: bool = True,
    ) -> dict[str, Any]:
        delegates = manager or (may_delegate and bool(getattr(agent, "allow_delegation", False)))
        builtins = ["crewai.delegate_work", "crewai.ask_question"] if delegates else []
        return {
            "key": key,
            "delegates": delegates,
            "manager": manager,
            "role": str(agent.role).strip(),
            "tools": [self._tool(tool, module) for tool in [*(agent.tools or []), *extra]],
            "builtins": builtins,
            "mcps": [_server(server) for server in getattr(agent, "mcps", None) or []],
        }

    def _tool(self, tool: Any, module: Any) -> dict[str, Any]:
        identity = self._describe(tool, root=self._project)
        found = {
            "name": str(tool.name),
            "description": str(getattr(tool, "description", "")),
            "identity": identity,
            "schema": _schema(tool),
            "env_vars": [
                str(getattr(variable, "name", variable)) for variable in getattr(tool, "env_vars", ())
            ],
            "reserved": self._reserved(type(tool)),
        }
        return {**found, **self._entry(tool, identity, module)}

    def _entry(self, tool: Any, identity: dict[str, str], module: Any) -> dict[str, Any]:
        """How the manifest can name this very tool, tried out before it is said."""
        place = self._place(tool, module)
        if identity["kind"] == "function":
            return {"entry": place, "problem": "" if place else "the function has no name in any module"}
        config, left_out = self._config(tool)
        public = _public_name(type(tool), identity["qualname"])
        if public and not left_out:
            for candidate in (self._relative(config), config):
                if self._same(type(tool), candidate, identity):
                    return {"entry": {"class": public, "config": candidate}, "problem": ""}
        if place:
            return {"entry": place, "problem": ""}
        values = ", ".join(left_out) or "its constructor's values"
        return {
            "entry": None,
            "problem": f"{values} cannot be written as JSON: name a factory module:function",
        }

    def _place(self, tool: Any, near: Any) -> dict[str, str] | None:
        """A module of the project, the nearest first, that holds the object by name."""
        definition = getattr(tool, "func", None) or type(tool)
        own = sys.modules.get(getattr(definition, "__module__", ""))
        others = [module for module in list(sys.modules.values()) if self._in_project(module)]
        for module in [own, near, *others]:
            if module is None or not self._in_project(module):
                continue
            for name, value in list(vars(module).items()):
                if value is tool:
                    return {"tool": f"{module.__name__}:{name}"}
        return None

    def _in_project(self, module: Any) -> bool:
        path = os.path.realpath(getattr(module, "__file__", None) or os.sep)
        return path.startswith(self._project + os.sep) and "site-packages" not in path

    def _config(self, tool: Any) -> tuple[dict[str, Any], list[str]]:
        """Constructor values that were set to something else than the default; those that are no JSON."""
        config: dict[str, Any] = {}
        left_out = []
        fields = getattr(type(tool), "model_fields", {})
        inherited = _base_fields(type(tool))
        for name in sorted(set(getattr(tool, "model_fields_set", ())) - inherited):
            value = getattr(tool, name, None)
            if name in fields and value == fields[name].default:
                continue
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError):
                left_out.append(name)
            else:
                config[name] = value
        return config, left_out

    def _relative(self, config: dict[str, Any]) -> dict[str, Any]:
        """The values without the project's place on this machine."""
        start = self._project + os.sep
        return {
            name: os.path.relpath(value, self._project)
            if isinstance(value, str) and (value == self._project or value.startswith(start))
            else value
            for name, value in config.items()
        }

    def _same(self, kind: type, config: dict[str, Any], identity: dict[str, str]) -> bool:
        try:
            made = kind(**config)
        except (TypeError, ValueError):  # pydantic's refusals are ValueErrors
            return False
        return self._describe(made, root=self._project)["fields_sha256"] == identity["fields_sha256"]


def _server(server: Any) -> dict[str, Any]:
    """An MCP server of an agent, without its environment and headers: those hold secrets."""
    if getattr(server, "command", None):
        command = [str(part) for part in (server.command, *(server.args or ()))]
        return {"shown": " ".join(command), "command": command}
    url = str(getattr(server, "url", server))
    return {"shown": url.partition("?")[0], "url": url.partition("?")[0] if "://" in url else ""}


def _schema(tool: Any) -> Any:
    model_json_schema = getattr(getattr(tool, "args_schema", None), "model_json_schema", None)
    return model_json_schema() if model_json_schema else {}


def _crew_of_code(module: str, name: str) -> tuple[Any, Callable[[Any], str]]:
    """A crew that a module holds or makes, and how its agents are called."""
    holder = _attribute(importlib.import_module(module), name)
    if inspect.isclass(holder):
        holder = holder()
    crew = holder
    if not hasattr(crew, "kickoff"):
        crew = holder.crew() if hasattr(holder, "crew") else holder()
    return crew, lambda agent: _key(agent, holder, sys.modules[module])


def _crew_of_json(path: str) -> tuple[Any, Callable[[Any], str]]:
    """A crew of a JSON file; its agents are called as their own files are."""
    crew, _ = importlib.import_module("crewai.project.crew_loader").load_crew(path)
    written = importlib.import_module("crewai.project.json_loader").load_jsonc_file(path)
    keys = {id(agent): str(key) for key, agent in zip(written["agents"], crew.agents)}  # noqa: B905 (3.10)
    if crew.manager_agent is not None and isinstance(written.get("manager_agent"), str):
        keys.setdefault(id(crew.manager_agent), written["manager_agent"])
    return crew, lambda agent: keys.get(id(agent), "")


def _all_agents(crew: Any) -> list[Any]:
    """Each once: a task's agent need not be in the crew's list, and a manager is never."""
    listed = [*crew.agents, crew.manager_agent, *(task.agent for task in crew.tasks)]
    return list({id(agent): agent for agent in listed if agent is not None}.values())


def _not_carried(crew: Any) -> list[str]:
    """What of it is refused where its agents are apps; in their own processes nobody could do it."""
    found = []
    if any(getattr(task, "human_input", False) for task in crew.tasks):
        found.append("a task has human_input")
    if getattr(crew, "stream", False):
        found.append("it streams its output")
    return found


def _tools_of_tasks(crew: Any, agent: Any) -> list[Any]:
    """What the tasks of an agent give to it beyond its own."""
    return [
        tool
        for task in crew.tasks
        if task.agent is agent
        for tool in task.tools or []
        if all(tool is not own for own in agent.tools or [])
    ]


def _attribute(module: Any, path: str) -> Any:
    value = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _key(agent: Any, holder: Any, module: Any) -> str:
    """The YAML key of an agent, else the name of what makes or holds it; empty if there is neither."""
    configured = getattr(holder, "agents_config", None)
    role = str(agent.role).strip()
    if isinstance(configured, dict):
        for key, config in configured.items():
            if isinstance(config, dict) and str(config.get("role", "")).strip() == role:
                return str(key)
    methods = getattr(holder, "__crew_metadata__", {}).get("original_agents", {})  # each makes its agent once
    held = {**{name: getattr(holder, name)() for name in methods}, **vars(module)}
    return next((name for name, value in held.items() if value is agent), "")


def _is_agent(value: Any) -> bool:
    return not inspect.isclass(value) and any(base.__name__ == "BaseAgent" for base in type(value).__mro__)


def _is_tool(value: Any) -> bool:
    return not inspect.isclass(value) and any(
        (base.__module__, base.__name__) == ("crewai.tools.base_tool", "BaseTool")
        for base in type(value).__mro__
    )


def _base_fields(kind: type) -> set[str]:
    for base in kind.__mro__:
        if (base.__module__, base.__name__) == ("crewai.tools.base_tool", "BaseTool"):
            return set(base.model_fields)  # type: ignore[attr-defined]
    return set()


def _public_name(kind: type, qualname: str) -> str:
    """Where a class is imported from: the package that offers it, else its own module, else its file."""
    if "<locals>" in kind.__qualname__:
        return ""
    if kind.__module__ not in sys.modules:
        return qualname if ".py:" in qualname else ""
    top = kind.__module__.partition(".")[0]
    if getattr(sys.modules.get(top), kind.__qualname__, None) is kind:
        return f"{top}:{kind.__qualname__}"
    return f"{kind.__module__}:{kind.__qualname__}"


def _why(error: BaseException) -> str:
    lines = traceback.format_exception(type(error), error, error.__traceback__, limit=-2)
    return "".join(lines[-TRACEBACK_LINES:]).strip()


if __name__ == "__main__":
    main()
