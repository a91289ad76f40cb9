"""`meshgate.yaml`: one file says who may be started and where tools live. Unknown keys are errors."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from meshgate_deploy.errors import EXIT_NOT_FOUND, EXIT_USAGE, UserError

FILE_NAME = "meshgate.yaml"
RESERVED = ("gateway", "operator")
AppId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
TrustDomain = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,254}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Agent(_Strict):
    """One agent of a crew; its role is an untrusted label while a crew is one app."""

    role: str | None = None


class Crew(_Strict):
    """A crew: one app. `crew` is an object, a factory or a CrewBase class, as `module:name`."""

    crew: str
    agents: dict[str, Agent] = Field(default_factory=dict)
    env: list[VariableName] = Field(default_factory=list)


class Program(_Strict):
    """Any Python program: one app."""

    run: list[str] = Field(default_factory=list)
    env: list[VariableName] = Field(default_factory=list)


class ClassTool(_Strict):
    """A tool class with its constructor's values."""

    cls: str = Field(alias="class")
    config: dict[str, Any] = Field(default_factory=dict)
    name: str | None = None


class FactoryTool(_Strict):
    """A function that returns a tool."""

    factory: str
    name: str | None = None


class FunctionTool(_Strict):
    """A plain function."""

    function: str
    name: str | None = None


class ToolHost(_Strict):
    """A process that runs tools and alone sees their secrets."""

    tools: list[str | ClassTool | FactoryTool | FunctionTool]
    secrets: list[VariableName] = Field(default_factory=list)
    env: list[VariableName] = Field(default_factory=list)
    cwd: str | None = None


class ToolRules(_Strict):
    """What the operator says of a tool. The defaults are the careful ones."""

    effect: Literal["read", "reversible", "external", "irreversible"] = "irreversible"
    idempotent: bool = False
    repeat: Literal["allow", "same", "deny"] | None = None
    deadline_seconds: float = Field(default=30, gt=0, le=3600)
    max_result_bytes: int = Field(default=1_048_576, gt=0, le=1_048_576)


class Manifest(_Strict):
    """The whole file."""

    api_version: Literal["meshgate/v1"] = Field(alias="apiVersion")
    mesh: AppId
    trust_domain: TrustDomain = Field(alias="trustDomain")
    crews: dict[AppId, Crew] = Field(default_factory=dict)
    programs: dict[AppId, Program] = Field(default_factory=dict)
    toolhosts: dict[AppId, ToolHost] = Field(default_factory=dict)
    tools: dict[str, ToolRules] = Field(default_factory=dict)
    operators: list[str] = Field(default_factory=list)
    policies: str = "policies"
    store: Literal["sqlite"] = "sqlite"

    @model_validator(mode="after")
    def _apps_are_unique(self) -> "Manifest":
        seen: set[str] = set(RESERVED)
        for app in (*self.crews, *self.programs, *self.toolhosts):
            if app in seen:
                raise ValueError(f"the app id '{app}' is taken; give every crew, program and host its own")
            seen.add(app)
        return self

    def apps(self) -> dict[str, str]:
        """Every app with its kind."""
        kinds = (("crew", self.crews), ("program", self.programs), ("toolhost", self.toolhosts))
        return {app: kind for kind, group in kinds for app in group}


def load(path: Path) -> Manifest:
    """Reads and checks a manifest.

    Raises:
        UserError: with file, line, and what to write instead.
    """
    if not path.is_file():
        raise UserError(
            f"there is no {path.name} here",
            why=f"looked for {path}",
            fix="run `meshgate init`, or `meshgate scan` in a CrewAI project",
            exit_code=EXIT_NOT_FOUND,
        )
    text = path.read_text()
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_duplicates(node, path)
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _invalid(path, line, str(error.problem), "write valid YAML") from error
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        line = _line(node, first["loc"])
        raise _invalid(
            path, line, f"{'.'.join(map(str, first['loc']))}: {first['msg']}", _advice(first)
        ) from error


def _invalid(path: Path, line: int, why: str, fix: str) -> UserError:
    return UserError(f"{path}:{line}: the manifest is not valid", why=why, fix=fix, exit_code=EXIT_USAGE)


def _refuse_duplicates(node: yaml.Node | None, path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise _invalid(
                    path, key.start_mark.line + 1, f"'{key.value}' occurs twice", "keep one of them"
                )
            seen.add(key.value)
            _refuse_duplicates(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item, path)


def _line(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """The line of the deepest part of the location that the file has."""
    line = 1
    for part in location:
        found: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, found = key.start_mark.line + 1, value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = node.value[part]
            line = found.start_mark.line + 1
        if found is None:
            break
        node = found
    return line


def _advice(problem: Any) -> str:
    kind = problem["type"]
    if kind == "extra_forbidden":
        return (
            f"remove '{problem['loc'][-1]}' or correct its spelling; `meshgate init --print` shows every key"
        )
    if kind == "missing":
        return f"add `{problem['loc'][-1]}:`"
    if kind == "string_pattern_mismatch":
        return "use a-z, 0-9 and dashes, at most 63 characters"
    return re.sub(r"^Value error, ", "", problem["msg"])
