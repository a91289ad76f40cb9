"""Agents of crews as apps of their own: who is one, what each is given, and what may not be written of it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meshgate_deploy.errors import Problem
from meshgate_deploy.manifest_lines import Document

if TYPE_CHECKING:
    from meshgate_deploy.manifest import Agent, Crew, Manifest, Runner

APP_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
MAX_APP_CHARACTERS = 63
RESERVED = ("gateway", "operator")
_OWN = frozenset({"role", "app"})  # what says which agent it is; all else is how its app is run
_GIVEN = frozenset({"env", "secrets", "ports"})  # put together, not taken from one of the two


@dataclass(frozen=True, slots=True)
class Colleague:
    """An agent that is an app of its own.

    Attributes:
        crew: the crew's name, which is the app that kicks it off.
        agent: CrewAI's key.
        role: uninterpolated.
    """

    crew: str
    agent: str
    role: str
    app: str


def isolated(crews: "Mapping[str, Crew]") -> tuple[Colleague, ...]:
    """Every agent that is an app of its own, in the order of the manifest."""
    return tuple(
        Colleague(name, key, one_line(agent.role or ""), agent.app_id(key))
        for name, crew in crews.items()
        for key, agent in crew.isolated.items()
    )


def merged(crews: "Mapping[str, Crew]", app: str) -> "Agent":
    """How the app of an agent is run; where crews share it, what each of them says of it.

    Raises:
        KeyError: it is no agent's app.
    """
    shared = [
        (crew, agent)
        for crew in crews.values()
        for key, agent in crew.isolated.items()
        if agent.app_id(key) == app
    ]
    if not shared:
        raise KeyError(app)
    settings: dict[str, Any] = {}
    for _, agent in shared:
        settings |= {name: getattr(agent, name) for name in agent.model_fields_set}
    parts: list[Runner] = [part for pair in shared for part in pair]
    secrets = tuple(dict.fromkeys(name for part in parts for name in part.secrets))
    env = dict.fromkeys(name for part in parts for name in part.env if name not in secrets)
    ports = tuple(dict.fromkeys(port for part in parts for port in part.ports or ()))
    given = {"env": tuple(env), "secrets": secrets, "ports": ports or None}
    return shared[0][1].model_copy(update={**settings, **given})


def one_line(role: str) -> str:
    """A role as it is compared: YAML folds lines and leaves a last one, so white space tells none apart."""
    return " ".join(role.split())


def app_id(text: str) -> str:
    """An app's id made of any text."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:MAX_APP_CHARACTERS].strip("-") or "app"


def problems(document: Document, manifest: "Manifest") -> Iterator[Problem]:
    """What cannot be an app of its own, with what to write instead."""
    apps = _Apps(document, manifest)
    for name, crew in manifest.crews.items():
        at = ("crews", name)
        if crew.isolate == "crew":
            yield from _kept_together(document, at, crew)
            continue
        if crew.isolate == "agents" and not crew.agents:
            line = document.line((*at, "isolate"))
            message = f"crew {name!r} is to be split by agent and lists none"
            yield Problem(document.file, line, message, "agents: {KEY: {role: ROLE}}, or isolate: crew")
        roles: dict[str, str] = {}
        for key, agent in crew.agents.items():
            yield from _role(document, (*at, "agents", key), agent, roles)
            yield from apps.claim(name, key, agent)


def _kept_together(document: Document, at: tuple[str, ...], crew: "Crew") -> Iterator[Problem]:
    for key, agent in crew.agents.items():
        for name in sorted(agent.model_fields_set - {"role"}):
            written = type(agent).model_fields[name].alias or name
            line = document.line((*at, "agents", key, written))
            message = (
                f"agent {key!r} is no app of its own, so it has no {written!r}: the crew is isolate: crew"
            )
            yield Problem(document.file, line, message, f"{written}: of the crew, or isolate: agents")


def _role(
    document: Document, at: tuple[str, ...], agent: "Agent", roles: dict[str, str]
) -> Iterator[Problem]:
    """An agent is known by its role at run time: two with one role cannot be told apart."""
    key, crew = at[-1], at[1]
    role = one_line(agent.role or "")
    if not role:
        message = f"agent {key!r} is an app of its own and has no role to know it by"
        yield Problem(document.file, document.line(at), message, "role: <as the crew's code has it>")
    elif role in roles:
        message = f"agents {roles[role]!r} and {key!r} of crew {crew!r} have the same role {role!r}"
        fix = "another role for one of them in the crew's code and here, or isolate: crew"
        yield Problem(document.file, document.line((*at, "role")), message, fix)
    roles.setdefault(role, key)


class _Apps:
    """Who has which app id, while the manifest is gone through."""

    def __init__(self, document: Document, manifest: "Manifest") -> None:
        self._document = document
        self._places: dict[str, tuple[str, ...]] = {
            name: (section, name)
            for section in ("toolhosts", "programs", "crews")
            for name in getattr(manifest, section)
        }
        self._agents: dict[str, list[tuple[str, Agent]]] = {}

    def claim(self, crew: str, key: str, agent: "Agent") -> Iterable[Problem]:
        """What is wrong with the app id of one agent."""
        at = ("crews", crew, "agents", key)
        app = agent.app_id(key)
        sharing = self._agents.setdefault(app, [])
        wrong = self._wrong(app, crew, key, agent)
        shared = [] if wrong else self._differences(at, app, agent)
        sharing.append((crew, agent))
        self._places.setdefault(app, at)
        line = self._document.line((*at, "app"))
        return [Problem(self._document.file, line, *wrong)] if wrong else shared

    def _wrong(self, app: str, crew: str, key: str, agent: "Agent") -> tuple[str, str] | None:
        if not APP_ID.fullmatch(app):
            return f"the key {key!r} of an agent makes no app id", f"app: {self._free(app_id(key))}"
        another = f"app: {self._free(app_id(f'{crew}-{app}'))}"
        if app in RESERVED:
            return f"agent {key!r}: {app!r} is the name of a part of meshgate", another
        if app in self._places:
            return self._twice(app, crew, agent, another)
        return None

    def _twice(self, app: str, crew: str, agent: "Agent", another: str) -> tuple[str, str] | None:
        """An id that somebody has already: allowed to another crew's agent, where both write it."""
        others = self._agents[app]
        used = f"app id {app!r} is used twice: also {self._where(app)}"
        if not others:
            return used, another
        if any(other == crew for other, _ in others):
            return f"two agents of crew {crew!r} have one app: {used}", another
        if agent.app is None or any(other.app is None for _, other in others):
            return used, f"{another}; or app: {app} at both, where the two crews are to share the app"
        return None

    def _differences(self, at: tuple[str, ...], app: str, agent: "Agent") -> list[Problem]:
        """One app is run in one way: what two crews write of it must not differ."""
        found = []
        for name in sorted(agent.model_fields_set - _OWN - _GIVEN):
            said = [other for _, other in self._agents[app] if name in other.model_fields_set]
            if any(getattr(other, name) != getattr(agent, name) for other in said):
                written = type(agent).model_fields[name].alias or name
                line = self._document.line((*at, written))
                message = f"{written!r} of the shared app {app!r} differs: see also {self._where(app)}"
                fix = "the same at both, or only at one of them"
                found.append(Problem(self._document.file, line, message, fix))
        return found

    def _where(self, app: str) -> str:
        section, *more = self._places[app]
        inside = f"crew {more[0]}" if len(more) > 1 else section
        return f"in {inside}, line {self._document.line(self._places[app])}"

    def _free(self, wanted: str) -> str:
        name, number = wanted, 2
        while name in self._places or name in RESERVED:
            ending = f"-{number}"
            name, number = wanted[: MAX_APP_CHARACTERS - len(ending)] + ending, number + 1
        return name
