"""What a scan found: crews, agents, tools, variables, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Stock tools that only read. Whoever adds one here has read its source.
READING = frozenset(
    {
        "crewai_tools:DirectoryReadTool",
        "crewai_tools:FileReadTool",
        "crewai_tools:ScrapeWebsiteTool",
    }
)
# How crewai_tools' classes call an argument that is a path on the host's disk.
_PATH_ARGUMENTS = frozenset(
    {
        "csv", "directory", "docx", "file_path", "filename", "input_path", "json_path", "mdx", "output_path",
        "pdf", "txt", "xml",
    }
)  # fmt: skip
MANAGING = ("crewai.ask_question", "crewai.delegate_work")  # what CrewAI gives to whoever delegates
_HOSTS = (("File", "files"), ("Directory", "files"), ("Scrape", "web"), ("Website", "web"), ("Search", "web"))


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool, however many agents hold it.

    Attributes:
        host: the tool host that the manifest puts it on.
        short: its name on that host.
        entry: how the manifest names it; None when it cannot, `problem` says why.
        module: where its code is defined.
        effect: `read` where that is certain, else empty: the careful default.
        paths: its arguments that are paths, where that is known.
    """

    host: str
    short: str
    entry: str | Mapping[str, Any] | None
    problem: str
    module: str
    description: str
    schema: Mapping[str, Any]
    effect: str = ""
    env_vars: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    @property
    def tool_id(self) -> str:
        """As policies write it."""
        return f"{self.host}.{self.short}"


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent and the ids of what it holds.

    Attributes:
        app: the app that it is; empty where it acts in another one's process.
        delegates: CrewAI lets it give tasks to the others.
        manager: the crew gives its tasks to this agent, and to nobody else.
    """

    key: str
    role: str
    tools: tuple[str, ...]
    builtins: tuple[str, ...] = ()
    mcps: tuple[str, ...] = ()
    app: str = ""
    delegates: bool = False
    manager: bool = False

    @property
    def held(self) -> tuple[str, ...]:
        """Its tools, CrewAI's own included."""
        return tuple(dict.fromkeys((*self.tools, *self.builtins)))


@dataclass(frozen=True, slots=True)
class App:
    """A crew, or a program without one.

    Attributes:
        manages: CrewAI makes a manager that gives the crew's tasks to its agents, in the crew's process.
        writable: folders of the project that its tasks' files go to.
    """

    name: str
    crew: str
    run: tuple[str, ...]
    agents: tuple[Agent, ...]
    env: tuple[str, ...] = ()
    manages: bool = False
    writable: tuple[str, ...] = ()

    @property
    def isolated(self) -> bool:
        """Whether each of its agents is an app."""
        return any(agent.app for agent in self.agents)

    @property
    def grants(self) -> dict[str, tuple[str, ...]]:
        """What each of its apps may call, by app, itself first.

        Split, the crew itself holds no tool: it gives tasks to its agents, as those do that may delegate.
        """
        own = MANAGING if self.manages else ()
        if not self.isolated:
            return {self.name: tuple(sorted({*own, *(tool for agent in self.agents for tool in agent.held)}))}
        given = [agent for agent in self.agents if agent.manager] or self.agents
        granted = {self.name: (*(f"agent:{agent.app}" for agent in given), *own)}
        for agent in self.agents:
            others = [f"agent:{other.app}" for other in self.agents if other is not agent]
            granted[agent.app] = (*agent.held, *(others if agent.delegates else ()))
        return granted


@dataclass(frozen=True, slots=True)
class Use:
    """A variable, where it is read, and which apps get it."""

    name: str
    places: tuple[str, ...]
    secret: bool
    apps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Findings:
    """The whole result of a scan."""

    mesh: str
    trust_domain: str
    apps: tuple[App, ...]
    tools: tuple[Tool, ...]
    variables: tuple[Use, ...]
    notes: tuple[str, ...] = field(default=())

    def hosts(self) -> dict[str, list[Tool]]:
        """The tools that can be served, by host."""
        served: dict[str, list[Tool]] = {}
        for tool in self.tools:
            if tool.entry is not None:
                served.setdefault(tool.host, []).append(tool)
        return served

    def as_dict(self) -> dict[str, Any]:
        """The JSON output."""
        return {
            "mesh": self.mesh,
            "trust_domain": self.trust_domain,
            "apps": [
                {
                    "name": app.name,
                    "crew": app.crew or None,
                    "run": list(app.run),
                    "grants": {name: list(tools) for name, tools in app.grants.items()},
                    "agents": [
                        {
                            "key": agent.key,
                            "role": agent.role,
                            "app": agent.app or None,
                            "tools": list(agent.tools),
                            "builtins": list(agent.builtins),
                            "mcp_servers": list(agent.mcps),
                        }
                        for agent in app.agents
                    ],
                }
                for app in self.apps
            ],
            "tools": [
                {
                    "tool": tool.tool_id,
                    "entry": tool.entry,
                    "effect": tool.effect or "irreversible",
                    "description": tool.description,
                    "schema": dict(tool.schema),
                    "problem": tool.problem or None,
                }
                for tool in self.tools
            ],
            "variables": [
                {"name": use.name, "secret": use.secret, "places": list(use.places), "apps": list(use.apps)}
                for use in self.variables
            ],
            "notes": list(self.notes),
        }


def path_arguments(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """The arguments of a stock tool that are paths."""
    return tuple(sorted(_PATH_ARGUMENTS.intersection(schema.get("properties", {}))))


def stock_host(class_name: str) -> str:
    """The host for a stock tool, by what it works on."""
    return next((host for start, host in _HOSTS if start in class_name), "stock-tools")
