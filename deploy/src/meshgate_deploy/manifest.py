"""The manifest `meshgate.yaml`, version 1: what people write, and nothing generated."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from meshgate_deploy import manifest_agents, manifest_lines, own_tools, store_url, users
from meshgate_deploy.errors import ManifestError, NotFound, Problem
from meshgate_deploy.manifest_agents import Colleague
from meshgate_deploy.manifest_lines import Document

Kind = Literal["crew", "program", "agent"]  # of an app that runs agent code

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TRUST_DOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,252}[a-z0-9])?")
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*|[\w./-]+\.py:[A-Za-z_][\w.]*")
_JSON_CREW = re.compile(r"[\w-][\w./-]*\.jsonc?")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
LAST_UID = 2**32 - 2  # the one after it stands for none
_KEY = re.compile(r"[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]{0,126}[^\s\x00-\x1f\x7f])?")


def _matches(pattern: re.Pattern[str], what: str) -> Any:
    def check(value: object) -> object:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(what)
        return value

    return BeforeValidator(check)


def _matches_user(what: str) -> Any:
    def check(value: object) -> object:
        named = isinstance(value, str) and _USER.fullmatch(value) and value != "root"
        if not named and (type(value) is not int or not 0 < value <= LAST_UID):
            raise ValueError(what)
        return value

    return BeforeValidator(check)


App = Annotated[
    str, _matches(manifest_agents.APP_ID, "an app's name is 1 to 63 of a-z, 0-9 and '-', not '-' at an end")
]
Port = Annotated[int, Field(ge=1, le=65_535)]
Variable = Annotated[str, _matches(_VARIABLE, "the name of an environment variable, never its value")]
Reference = Annotated[str, _matches(_REFERENCE, "written as package.module:name")]
CrewReference = Annotated[
    str,
    _matches(
        re.compile(f"{_REFERENCE.pattern}|{_JSON_CREW.pattern}"),
        "written as package.module:name, or as path/to/crew.jsonc",
    ),
]
Key = Annotated[str, _matches(_KEY, "an agent's key is CrewAI's own: 1 to 128 characters in one line")]
Role = Annotated[str, Field(min_length=1, max_length=4096)]
TrustDomain = Annotated[
    str, _matches(_TRUST_DOMAIN, "lower-case letters, digits, '.', '-' and '_', 255 at most")
]


User = Annotated[
    int | str, _matches_user("the name of a user of this machine, or a uid of 1 to 4294967294; never root's")
]
_WRITABLE = "folders and files, from the project's, that it may write besides its own"


class _Part(BaseModel):
    """A part of the manifest: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ToolEntry(_Part):
    """A tool that needs more than its name."""

    class_: Reference | None = Field(default=None, alias="class")
    factory: Reference | None = None
    tool: Reference | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    name: str | None = None

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> "ToolEntry":
        if sum(source is not None for source in (self.class_, self.factory, self.tool)) != 1:
            raise ValueError("exactly one of class, factory and tool")
        return self

    @property
    def reference(self) -> str:
        """The `module:name` it is made from."""
        return self.class_ or self.factory or self.tool or ""


class Runner(_Part):
    """An app that runs the user's agent code: how often, how patiently, with what in its own process."""

    tools: tuple[Reference | ToolEntry, ...] = Field(
        default=(), description="tools that this app itself runs; each needs a rule with `execute: agent`"
    )
    attempts: int = Field(default=5, ge=1, le=100, description="attempts of a run before it is given up")
    stall_seconds: float = Field(
        default=1800, alias="stallSeconds", gt=0, description="without a finished step; then a new attempt"
    )
    replicas: int = Field(
        default=1, ge=1, le=8, description="workers, each with a sidecar; a run is played by one of them"
    )
    runs_at_once: int = Field(
        default=16, alias="runsAtOnce", ge=1, le=1000,
        description="of one worker; more wait, in their order",
    )  # fmt: skip
    env: tuple[Variable, ...] = Field(default=(), description="variables it gets from `.env` or the shell")
    secrets: tuple[Variable, ...] = Field(default=(), description="the same; never shown")
    ports: tuple[Port, ...] | None = Field(
        default=None,
        description="TCP ports it may connect to. A crew and its agents: besides 443 and those of "
        "its model's addresses. A program: these and no other; without the key, any",
    )
    user: User | None = Field(
        default=None,
        description="the user that its programs get, and no other app; a crew's is not its agents'. Required "
        "where the kernel has no Landlock; needs a supervisor that is root",
    )


class _Startable(Runner):
    """What an operator may start; an agent of a crew only ever gets tasks."""

    commands: bool = Field(
        default=False,
        description="operators named in `operators` may start any command with the app's identity, not only "
        "what the app runs by itself",
    )


class Agent(Runner):
    """One agent of a crew; an app of its own where the crew isolates its agents."""

    writable: tuple[str, ...] = Field(default=(), description=_WRITABLE)
    role: Role | None = Field(
        default=None, description="as the crew's code has it, before inputs are filled in"
    )
    standby: bool = Field(
        default=True,
        description="a program of it stands ready for the next task, with its crew built; false where the "
        "modules of the crew do something for others when they are imported",
    )
    app: App | None = Field(
        default=None,
        description="its app id; default: the key with '-' for '_'. Two crews that write the same share it",
    )

    def app_id(self, key: str) -> str:
        """The app that an agent is; may be no valid id where `app` was not written."""
        return self.app or key.replace("_", "-")


class Crew(_Startable):
    """A crew: the app that kicks it off and, unless it is kept in one process, an app per agent.

    Its `env`, `secrets` and `ports` go to all of these; its `user` does not.
    """

    crew: CrewReference
    writable: tuple[str, ...] = Field(default=(), description=_WRITABLE)
    isolate: Literal["agents", "crew"] | None = Field(
        default=None,
        description="agents (the default where agents are listed): each is an app with an identity and a "
        "policy of its own. crew: all of them act in the crew's process, with the crew's rights",
    )
    agents: dict[Key, Agent] = Field(default_factory=dict)

    @property
    def isolated(self) -> dict[str, Agent]:
        """The agents that are apps of their own, by key."""
        return {} if self.isolate == "crew" else self.agents


class Program(_Startable):
    """A program that is run as an app, with or without a crew in it."""

    run: tuple[str, ...] = Field(min_length=1)


class Mcp(_Part):
    """An MCP server that a tool host speaks to."""

    command: tuple[str, ...] = ()
    url: str | None = None


class ToolHost(_Part):
    """A process that runs real tools and alone holds their secrets."""

    tools: tuple[Reference | ToolEntry, ...] = ()
    mcp: Mcp | None = None
    secrets: tuple[Variable, ...] = ()
    env: tuple[Variable, ...] = ()
    cwd: str | None = None


class ToolRule(_Part):
    """What is true of a tool's effect. The defaults are the careful ones."""

    effect: Literal["read", "reversible", "external", "irreversible", "memory"] = "irreversible"
    idempotent: bool = False
    execute: Literal["toolhost", "agent"] = Field(
        default="toolhost",
        description="agent: runs in the process of the app that lists it; for effect: memory only",
    )
    repeat: Literal["allow", "same", "deny"] | None = None
    deadline_seconds: float | None = Field(default=None, alias="deadlineSeconds", gt=0, le=86_400)
    max_result_bytes: int | None = Field(default=None, alias="maxResultBytes", gt=0, le=3_145_728)
    reconcile: Reference | None = Field(
        default=None, description="finds out what came of a call nobody knows the end of; runs in the host"
    )


class Manifest(_Part):
    """The whole manifest."""

    api_version: Literal["meshgate/v1"] = Field(alias="apiVersion")
    mesh: App
    trust_domain: TrustDomain = Field(alias="trustDomain")
    crews: dict[App, Crew] = Field(default_factory=dict)
    programs: dict[App, Program] = Field(default_factory=dict)
    toolhosts: dict[App, ToolHost] = Field(default_factory=dict)
    tools: dict[str, ToolRule] = Field(default_factory=dict)
    policies: str = "policies"
    store: str = "sqlite"
    isolation: Literal["landlock", "none"] = Field(
        default="landlock", description="none: agents may do on this host whatever their user may"
    )
    operators: tuple[str, ...] = ()

    @property
    def runners(self) -> dict[str, Kind]:
        """Every app that runs the user's agent code, with its kind."""
        crews: dict[str, Kind] = dict.fromkeys(self.crews, "crew")
        programs: dict[str, Kind] = dict.fromkeys(self.programs, "program")
        agents: dict[str, Kind] = dict.fromkeys((one.app for one in self.isolated), "agent")
        return crews | programs | agents

    @property
    def isolated(self) -> tuple[Colleague, ...]:
        """Every agent of every crew that is an app of its own."""
        return manifest_agents.isolated(self.crews)

    def colleagues(self, app: str) -> tuple[Colleague, ...]:
        """Every isolated agent of the crews that an app belongs to, itself included."""
        crews = {app, *(one.crew for one in self.isolated if one.app == app)}
        return tuple(one for one in self.isolated if one.crew in crews)

    def place(self, app: str, *, of: str = "tools") -> tuple[str, ...]:
        """Where something of an app that runs agent code, such as its own tools, is written."""
        for one in self.isolated:
            if one.app == app and getattr(self.crews[one.crew].agents[one.agent], of):
                return ("crews", one.crew, "agents", one.agent)
        return ("crews" if app in self.crews else "programs", app)

    def runner(self, app: str) -> Runner:
        """How an app that runs agent code is run: an agent's own settings, and what its crews give to all.

        Raises:
            KeyError: it is no such app.
        """
        return self.programs.get(app) or self.kept_part(app)

    def kept_part(self, app: str) -> Crew | Agent:
        """The same of a crew or an agent, whose processes are kept to what the manifest says.

        Raises:
            KeyError: it is neither.
        """
        return self.crews.get(app) or manifest_agents.merged(self.crews, app)

    @property
    def own_tools(self) -> dict[str, tuple[str | ToolEntry, ...]]:
        """What apps run in their own processes, by app."""
        return {app: tools for app in self.runners if (tools := self.runner(app).tools)}

    @property
    def apps(self) -> tuple[str, ...]:
        """Every app with a sidecar, the gateway first."""
        return ("gateway", *self.toolhosts, *self.runners)

    def replicas(self, app: str) -> tuple[str, ...]:
        """The names of an app's workers: the app's own, then `app.2` and so on. No app's name has a dot."""
        count = self.runner(app).replicas if app in self.runners else 1
        return (app, *(f"{app}.{number}" for number in range(2, count + 1)))

    def variables(self, app: str) -> tuple[str, ...]:
        """The variables named for an app."""
        part = self.toolhosts.get(app) or (self.runner(app) if app in self.runners else None)
        return (*part.env, *part.secrets) if part else ()

    def takes_commands(self, app: str) -> bool:
        """Whether an operator from outside may start a command of theirs as this app."""
        runner = self.crews.get(app) or self.programs.get(app)
        return runner is not None and runner.commands

    def spiffe_id(self, app: str) -> str:
        """Who an app is."""
        return f"spiffe://{self.trust_domain}/ns/{self.mesh}/{app}"


_PARTS: dict[str, type[_Part]] = {
    "": Manifest, "crews.*": Crew, "crews.*.agents.*": Agent, "programs.*": Program,
    "crews.*.tools.*": ToolEntry, "programs.*.tools.*": ToolEntry, "crews.*.agents.*.tools.*": ToolEntry,
    "toolhosts.*": ToolHost, "toolhosts.*.mcp": Mcp, "toolhosts.*.tools.*": ToolEntry, "tools.*": ToolRule,
}  # fmt: skip


def load(path: Path) -> Manifest:
    """Reads and checks the manifest. Looks at no other file.

    Raises:
        NotFound: there is no such file.
        ManifestError: every problem with its line and what to write instead.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist", next_step="meshgate init") from error
    document = manifest_lines.parse(path, text)
    problems = [
        *document.duplicates("a key is written twice", "keep one of the two"),
        *_duplicate_apps(document),
    ]
    try:
        manifest = Manifest.model_validate(document.value)
    except pydantic.ValidationError as error:
        seen = {problem.line for problem in problems}
        found = [_problem(document, dict(detail)) for detail in error.errors(include_url=False)]
        problems += [problem for problem in found if problem.line not in seen]
        raise ManifestError(_unique(problems)) from error
    problems += _beyond_shape(document, manifest)
    if problems:
        raise ManifestError(_unique(problems))
    return manifest


def json_schema() -> str:
    """The JSON Schema that editors use."""
    schema = Manifest.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "meshgate.yaml v1"
    return json.dumps(schema, indent=2) + "\n"


def _duplicate_apps(document: Document) -> list[Problem]:
    first: dict[str, str] = {}
    problems = []
    for section in ("crews", "programs", "toolhosts"):
        for name in document.keys(section):
            line = document.line((section, name))
            if name in manifest_agents.RESERVED:
                message, fix = f"{name!r} is the name of a part of meshgate", f"{name}-app"
            elif name in first:
                message = f"app id {name!r} is used twice: also {first[name]}"
                fix = f"{name}-{section.removesuffix('s')}, or any name that is used once in the mesh"
            else:
                first[name] = f"in {section}, line {line}"
                continue
            problems.append(Problem(document.file, line, message, fix))
    return problems


def _beyond_shape(document: Document, manifest: Manifest) -> list[Problem]:
    problems = [
        *manifest_agents.problems(document, manifest),
        *own_tools.problems(document, manifest),
        *users.problems(document, manifest),
    ]
    for tool in manifest.tools:
        host = tool.partition(".")[0]
        if tool.startswith("agent:"):
            message = f"{tool!r} is a task for an agent, which is no tool with a rule"
            fix = f'a grant in policies/: allow contains "{tool}" if {{ … }}'
            problems.append(Problem(document.file, document.line(("tools", tool)), message, fix))
        elif host not in manifest.toolhosts and host not in manifest.own_tools and host != "crewai":
            known = ", ".join(manifest.toolhosts) or "none is defined"
            problems.append(
                Problem(
                    document.file, document.line(("tools", tool)), f"{tool!r} names no tool host",
                    f"<toolhost>.<tool>, with one of the tool hosts: {known}",
                )
            )  # fmt: skip
    for name, host_part in manifest.toolhosts.items():
        if bool(host_part.tools) == (host_part.mcp is not None):
            fix = "either tools: [module:function] or mcp: {command: [...]}"
            line = document.line(("toolhosts", name))
            problems.append(
                Problem(document.file, line, f"tool host {name!r} needs tools or mcp, not both", fix)
            )
    if (wrong := store_url.problem(manifest.store)) is not None:
        problems.append(Problem(document.file, document.line(("store",)), *wrong))
    return problems


def _problem(document: Document, detail: dict[str, Any]) -> Problem:
    path = document.follow(detail["loc"])
    line = document.line(path)
    kind, key = detail["type"], ".".join(map(str, path)) or "the manifest"
    if kind == "extra_forbidden":
        name = str(detail["loc"][-1])
        allowed = _allowed(path[:-1] if path and path[-1] == name else path)
        return Problem(document.file, line, f"unknown key {key!r}", manifest_lines.suggest(name, allowed))
    if kind == "missing":
        name = str(detail["loc"][-1])
        return Problem(
            document.file, line, f"{name!r} is missing", f"{name}: {_EXAMPLES.get(name, '<value>')}"
        )
    message = str(detail["msg"]).removeprefix("Value error, ")
    last = str(path[-1]) if path else ""
    fix = _EXAMPLES.get(last, message)
    if kind == "literal_error":
        fix = str(detail["ctx"]["expected"])
    shown = (
        detail["input"]
        if isinstance(detail["input"], str | int | float | bool)
        else type(detail["input"]).__name__
    )
    return Problem(document.file, line, f"{key} is {shown!r}: {message}", fix)


_EXAMPLES = {
    "apiVersion": "meshgate/v1", "mesh": "refund-desk", "trustDomain": "desk.example",
    "isolate": "agents, or crew", "app": "billing", "crew": "package.module:crew",
    "run": "[python, -m, package.module]",
    "tools": "[package.module:function]", "secrets": "[NAME_OF_VARIABLE]", "env": "[NAME_OF_VARIABLE]",
    "ports": "[5432]", "writable": "[reports]", "user": "desk-billing, or 2001",
}  # fmt: skip


def _allowed(path: tuple[str | int, ...]) -> list[str]:
    wild = ["*" if index % 2 else str(part) for index, part in enumerate(path)]
    part = _PARTS.get(".".join(wild), Manifest if not path else None)
    if part is None:
        return []
    return [field.alias or name for name, field in part.model_fields.items()]


def _unique(problems: list[Problem]) -> list[Problem]:
    return sorted(dict.fromkeys(problems), key=lambda problem: problem.line)
