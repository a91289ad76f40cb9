"""What inputs make of an agent's texts: its process is told, and of its coworkers where it may delegate."""

from typing import Any

from . import colleagues

NAMES = ("role", "goal", "backstory")


def of(agent: Any) -> "dict[str, str]":
    """As they are now."""
    return {name: str(getattr(agent, name)) for name in NAMES}


def told(agent: Any, task: Any, to: colleagues.Colleague) -> "dict[str, dict[str, str]]":
    """Those of its coworkers that are apps, by their keys; none where all are as they are written."""
    coworkers = _coworkers(agent, task)
    if not any(_filled_in(one) for one in coworkers):
        return {}
    return {key: of(one) for one in coworkers for key in [_key(one, to)] if key}


def unknown(agent: Any, task: Any, to: "colleagues.Colleague | None") -> "Any | None":
    """A coworker that is no app, so that nothing tells the other process what the inputs made of it."""
    found = (one for one in _coworkers(agent, task) if _filled_in(one) and not _key(one, to))
    return next(found, None)


def _coworkers(agent: Any, task: Any) -> "list[Any]":
    """To whom CrewAI lets it give work: its crew, and with a manager whoever the task is meant for."""
    crew = getattr(agent, "crew", None)
    if not getattr(agent, "allow_delegation", False) and agent is not getattr(crew, "manager_agent", None):
        return []
    listed = [*(getattr(crew, "agents", None) or ()), getattr(task, "agent", None)]
    found = {id(one): one for one in listed if one is not None and one is not agent}
    return list(found.values())


def _filled_in(agent: Any) -> bool:
    """CrewAI keeps what was written beside what the inputs made of it."""
    written = {name: getattr(agent, f"_original_{name}", None) for name in NAMES}
    return any(text is not None and text != getattr(agent, name) for name, text in written.items())


def _key(agent: Any, to: "colleagues.Colleague | None") -> str:
    others = () if to is None else colleagues.others(to)
    role = colleagues.written_role(agent)
    return next((one.agent for one in others if colleagues.same_role(one.role, role)), "")
