"""What of a task cannot be carried over to another process: said before anything is asked."""

from collections.abc import Iterator, Sequence
from typing import Any

from . import colleagues, expectations, memories, personas

# What a task of no crew, such as a coworker's, would lose: the other process makes it from its text.
OWN_SETTINGS = ("output_pydantic", "output_json", "response_model", "markdown", "converter_cls")


def hindrance(
    agent: Any,
    task: Any,
    *,
    index: "int | None",
    to: "colleagues.Colleague | None",
    tools: "Sequence[Any]" = (),
) -> str:
    """Why a task cannot be carried over, and what to do; empty when it can."""
    return next(_hindrances(agent, task, index, to, tools), "")


def _hindrances(
    agent: Any, task: Any, index: "int | None", to: "colleagues.Colleague | None", tools: "Sequence[Any]"
) -> Iterator[str]:
    crew = _crew(agent)
    if getattr(task, "human_input", False):
        yield "the task asks for human input, and nobody is there to give it; drop human_input"
    if getattr(task, "input_files", None) or _has_files(crew, task):
        yield "the task comes with files; have the agent read them with a tool"
    if getattr(crew, "_train", False):
        yield "a crew in training needs its agents in one process; train with isolate: crew"
    if getattr(agent, "a2a", None):
        yield "it speaks A2A, which CrewAI would do in its crew's process; leave it out of the crew's agents"
    if _streams():
        yield "its output is streamed while it is made; kick off without stream"
    yield from _kept_apart(agent, crew, to)
    held = _own_settings(agent, task, tools) if index is None else []
    if held:
        yield f"the task is none of its crew's, so that its {', '.join(held)} would be lost; make it one"
    unknown = None if index is None else personas.unknown(agent, task, to)
    if unknown is not None:
        yield (
            f"it may delegate, and what the inputs made of its coworker {unknown.role!r}, which is no app, "
            "is not known there; list that agent in meshgate.yaml, or write it without placeholders"
        )


def _kept_apart(agent: Any, crew: Any, to: "colleagues.Colleague | None") -> Iterator[str]:
    """What the agents of a crew have in common in one process, and would not have in several."""
    if getattr(crew, "max_rpm", None):
        yield (
            "the max_rpm of its crew would be counted in each process apart; give each agent a max_rpm of "
            "its own, and leave out the crew's"
        )
    triggers = _checkpoints_within(agent, crew)
    if triggers:
        yield (
            f"checkpoints are to be written at {', '.join(triggers)}, which happens in its own process; "
            "write them at task_completed"
        )
    if memories.lies_apart(agent, to):
        yield (
            "what it remembers lies in a folder of this process, and it would have another one; list "
            "CREWAI_STORAGE_DIR in the crew's env, so that all of its agents share one, or leave memory out"
        )


def _checkpoints_within(agent: Any, crew: Any) -> "list[str]":
    """At which events of its own process CrewAI would write a checkpoint of the crew or the agent."""
    config = getattr(agent, "checkpoint", None)
    if config is None:
        config = getattr(crew, "checkpoint", None)
    wanted = [str(one) for one in getattr(config, "on_events", None) or ()]
    outside = expectations.names_outside_agents() if wanted else set()
    return [one for one in wanted if one not in outside]


def _own_settings(agent: Any, task: Any, tools: "Sequence[Any]") -> "list[str]":
    held = [name for name in OWN_SETTINGS if getattr(task, name, None)]
    agents = getattr(agent, "tools", None) or ()  # CrewAI gives a task without tools its agent's
    extra = [tool for tool in (*(task.tools or ()), *tools) if not any(tool is one for one in agents)]
    return [*held, "tools"] if extra else held


def description(agent: Any, task: Any) -> str:
    """A task's description as its prompt begins: with the payload that triggered the crew, if it has one."""
    text = str(task.description)
    inputs = getattr(_crew(agent), "_inputs", None) or {}
    payload = (
        inputs.get("crewai_trigger_payload") if getattr(task, "allow_crewai_trigger_context", None) else None
    )
    return text if payload is None else f"{text}\n\nTrigger Payload: {payload}"


def index_of(agent: Any, task: Any) -> "int | None":
    """Which task of its crew it is; None for one that was made on the way."""
    tasks = getattr(_crew(agent), "tasks", None) or ()
    return next((place for place, one in enumerate(tasks) if one is task), None)


def _crew(agent: Any) -> Any:
    crew = getattr(agent, "crew", None)
    return None if isinstance(crew, str) else crew


def _has_files(crew: Any, task: Any) -> bool:
    from crewai.utilities.file_store import get_all_files

    return crew is not None and bool(get_all_files(crew.id, task.id))


def _streams() -> bool:
    from crewai.utilities import streaming

    return bool(streaming._current_stream_ids.get())  # noqa: SLF001 - CrewAI's own mark of it
