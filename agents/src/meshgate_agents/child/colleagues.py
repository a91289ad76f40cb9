"""Which agents of this program are apps of their own, as the launcher told.

An agent is known by its role as the project writes it, before inputs are filled in.
"""

import re
from dataclasses import dataclass
from typing import Any

from .framing import Message

PLACEHOLDER = re.compile(r"\{[A-Za-z_][A-Za-z0-9_\-]*\}")  # as CrewAI fills inputs in


@dataclass(frozen=True)
class Colleague:
    """An agent of a crew, and the app that it is."""

    crew: str
    agent: str
    role: str
    app: str
    same_storage: bool = False  # CrewAI's storage is where this process has it


class Ambiguous(Exception):
    """The role does not say which app; says what to do."""


class _Told:
    def __init__(self) -> None:
        self.own, self.crew = "", ""
        self.listed: tuple[Colleague, ...] = ()
        self.crews: dict[str, str] = {}


_told = _Told()


def learn(answer: Message) -> None:
    """The launcher's word, once per process."""
    names = ("crew", "agent", "role", "app")
    _told.own, _told.crew = str(answer.get("app", "")), ""
    _told.listed = tuple(
        Colleague(
            **{name: str(item[name]) for name in names}, same_storage=item.get("same_storage", False) is True
        )
        for item in answer.get("colleagues", ())
    )
    _told.crews = {str(name): str(reference) for name, reference in answer.get("crews", {}).items()}


def works_for(crew: str) -> None:
    """This process works for one of its crews: roles are those of that crew."""
    _told.crew = crew


def reference_of(crew: str) -> str:
    """Where a crew of this app is built; empty for no crew of it."""
    return _told.crews.get(crew, "")


def only_crew() -> "tuple[str, str] | None":
    """The one crew of this app and where it is built; None where there are more, or none."""
    return next(iter(_told.crews.items())) if len(_told.crews) == 1 else None


def is_own(colleague: Colleague) -> bool:
    """Whether it works in this process."""
    return colleague.app == _told.own


def own(crew: str, agent: str) -> "Colleague | None":
    """The entry of an agent that this app is; None for every other."""
    found = (one for one in _told.listed if (one.crew, one.agent) == (crew, agent))
    return next((one for one in found if one.app == _told.own), None)


def others(colleague: Colleague) -> "tuple[Colleague, ...]":
    """The other agents of its crew that are apps."""
    crew = (one for one in _told.listed if one.crew == colleague.crew)
    return tuple(one for one in crew if one.agent != colleague.agent)


def elsewhere(agent: Any) -> "Colleague | None":
    """The entry of an agent that another app is; None for one that works here.

    Raises:
        Ambiguous: the role does not say which app.
    """
    role = written_role(agent)
    found = _of_role(role)
    apps = sorted({one.app for one in found})
    if len(apps) > 1:
        raise Ambiguous(
            f"the role {role!r} is of {' and '.join(apps)}: which is not to be told; "
            "write another role in one of the crews"
        )
    if not found:
        _refuse_filled_in(role)
        return None
    return None if found[0].app == _told.own else found[0]


def _refuse_filled_in(role: str) -> None:
    """Copies and restored agents have lost their written role where inputs were filled into it."""
    for one in _listed():
        if one.app != _told.own and _filled_from(one.role, role):
            raise Ambiguous(
                f"the role {role!r} may be {one.role!r} of app {one.app!r} with inputs filled in, in an "
                "agent that was copied or restored; write that role without placeholders"
            )


def _filled_from(written: str, role: str) -> bool:
    pieces = [re.escape(" ".join(piece.split())) for piece in PLACEHOLDER.split(written)]
    if len(pieces) == 1 or not any(pieces):  # nothing to fill in, or nothing else: that could be any role
        return False
    return re.fullmatch(".*".join(pieces), " ".join(role.split())) is not None


def _of_role(role: str) -> "list[Colleague]":
    """Those of this process's crew first: the one that it works for, or the one that it is."""
    found = [one for one in _told.listed if same_role(one.role, role)]
    return [one for one in found if one.crew == (_told.crew or _told.own)] or found


def _listed() -> "list[Colleague]":
    """Those of this process's crew; of all where it has none."""
    crew = _told.crew or _told.own
    return [one for one in _told.listed if one.crew == crew] or list(_told.listed)


def written_role(agent: Any) -> str:
    """An agent's role as the project writes it."""
    return str(getattr(agent, "_original_role", None) or getattr(agent, "role", ""))


def same_role(one: str, other: str) -> bool:
    """YAML folds lines and leaves a last one: white space tells no roles apart."""
    return one.split() == other.split()


def texts(given: "dict[str, Any]", *names: str) -> "list[str] | None":
    """The named texts of a mapping; None when one of them is none."""
    found = [given.get(name) for name in names]
    return None if any(not isinstance(text, str) for text in found) else [str(text) for text in found]
