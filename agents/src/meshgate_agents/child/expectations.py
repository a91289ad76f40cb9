"""What the asking process has set on a crew that acts only in the agent's own: it must be set there too.

Both build the crew from the same module. A callback or a listener that a script adds after that is known to
the script's process alone, and would be left out without a word.
"""

from collections.abc import Iterator
from typing import Any

STEP_CALLBACK = "step_callback"
TYPES = "crewai.events.types."
# Events of these kinds happen where the crew is, whoever does its tasks.
OF_THE_CREW = (
    "crew_events", "task_events", "flow_events", "llm_guardrail_events", "checkpoint_events", "system_events",
    "env_events",
)  # fmt: skip
EXECUTION = "AgentExecution"  # that an agent began, ended or failed is told in both


def of(agent: Any) -> "list[str]":
    """A step callback, and the types of events of an agent's own process that somebody listens to."""
    crew = getattr(agent, "crew", None)
    callback = getattr(agent, STEP_CALLBACK, None) or getattr(crew, STEP_CALLBACK, None)
    return sorted({*_heard(), *([STEP_CALLBACK] if callback else [])})


def of_an_agent(event: type) -> bool:
    """Whether events of this class happen in the process of the agent that does a task."""
    kind = event.__module__.removeprefix(TYPES)
    return kind not in OF_THE_CREW and not event.__name__.startswith(EXECUTION)


def name(event: type) -> str:
    """As CrewAI names the type; a class of the project has its own name."""
    field = getattr(event, "model_fields", {}).get("type")
    given = getattr(field, "default", None)
    return given if isinstance(given, str) and given else event.__qualname__


def names_outside_agents() -> "set[str]":
    """The types of all events that happen where the crew is."""
    from crewai.events.base_events import BaseEvent

    found: set[str] = set()
    classes = [BaseEvent]
    while classes:
        classes += (one := classes.pop()).__subclasses__()
        if not of_an_agent(one):
            found.add(name(one))
    return found


def _heard() -> Iterator[str]:
    from crewai.events.event_bus import crewai_event_bus as bus

    for handlers in (bus._sync_handlers, bus._async_handlers):  # noqa: SLF001 - it has no other list of them
        for event, known in dict(handlers).items():
            if of_an_agent(event) and any(not _is_crewais(one) for one in known):
                yield name(event)


def _is_crewais(handler: Any) -> bool:
    module = getattr(handler, "__module__", None) or getattr(type(handler), "__module__", "")
    return str(module).partition(".")[0] in ("crewai", "crewai_core", "crewai_tools")
