"""Does one task as an agent that is an app of its own: `python -m meshgate_agent`.

The delegation comes from the file MESHGATE_INPUT, or from the launcher where this program had its crew built
before there was one; which crews and agents this app has, from the launcher. The crew is built from the
project's own module, and of it only this agent is put to work. What it gives goes to the launcher, as JSON,
and nowhere else.
"""
# ruff: noqa: INP001 - no package: it lies where PYTHONPATH leads

import importlib
import json
import sys
from dataclasses import dataclass
from typing import Any, NoReturn

import meshgate_kickoff  # type: ignore[import-not-found]  # it lies beside this file

STATUS = 2  # of a delegation that is not taken: no further attempt would take it
MAX_RESULT_BYTES = 1_000_000  # a little below what is kept with a run


@dataclass(frozen=True)
class Asked:
    """What the caller asks for, checked for its shape alone."""

    crew: str
    agent: str
    persona: "dict[str, str]"
    index: "int | None"
    name: str
    description: str
    expected_output: str
    context: "str | None"
    colleagues: "dict[str, dict[str, str]]"
    expects: "list[str]"
    tools: "list[str] | str"


def main() -> None:
    """Does the task and tells what came of it."""
    root = meshgate_kickoff.project()
    importlib.import_module("crewai")  # the launcher's answer to its report says who we are
    channel, colleagues = _ours("channel").from_environment(), _ours("colleagues")
    built, given = _ours("standing").crew(lambda named: meshgate_kickoff.runnable(named, root), channel)
    asked = _asked(meshgate_kickoff.given() if built is None else given)
    reference, own = colleagues.reference_of(asked.crew), colleagues.own(asked.crew, asked.agent)
    if not reference:
        _decline("other_crew", f"this app is no agent of crew {asked.crew!r}")
    if own is None:
        _decline("other_agent", f"this app is not agent {asked.agent!r} of crew {asked.crew!r}")
    colleagues.works_for(asked.crew)
    crew = meshgate_kickoff.runnable(reference, root) if built is None else built
    if not isinstance(getattr(crew, "agents", None), list) or not isinstance(
        getattr(crew, "tasks", None), list
    ):
        _decline("no_crew", f"{reference} gives a flow; an agent that is an app is of a crew")
    agent, task = _chosen(crew, own.role, asked)
    _be(agent, asked.persona)
    _know(crew, own, asked.colleagues)
    agent.crew = crew
    _check(agent, task, asked, own)
    meshgate_kickoff.tell(_done(crew, agent, task, asked))


def _check(agent: Any, task: Any, asked: Asked, own: Any) -> None:
    """Before anything runs: what this process would leave out without a word."""
    hindrance = _ours("carrying").hindrance(agent, task, index=asked.index, to=own)
    if hindrance:
        _decline("hindered", hindrance)
    missing = sorted({*asked.expects} - {*_ours("expectations").of(agent)})
    if missing:
        _decline(
            "unheard",
            f"the asking process has {', '.join(missing)}, which is not set where its crew is built",
        )
    _compare(agent, task, asked)
    if _ours("memories").is_withheld(agent):
        _decline("no_memory", f"agent {asked.agent!r} may not write where its memory lies; see `writable`")


def _compare(agent: Any, task: Any, asked: Asked) -> None:
    """The tools here with those of the asking process, before CrewAI adds its own."""
    held_tools, who = _ours("held_tools"), f"agent {asked.agent!r} of crew {asked.crew!r}"
    held = held_tools.of(agent, task, index=asked.index)
    lacking = held_tools.lacks(asked.tools, held)
    if lacking:
        _decline(
            "no_tool",
            f"the process that asks built {who} with {lacking}, and this one without: the task would be done "
            "with less than its crew gives it. Have the module make the same tools in both: give this agent "
            "what they are made from (`env`, `secrets` of the manifest), and add none to one that is built",
        )
    more = held_tools.has_more(asked.tools, held)
    if more:
        sys.stderr.write(f"meshgate: {who} has {more} here, and not in the process that asks\n")


def _asked(given: Any) -> Asked:
    """The delegation. Nothing says yet that this app may be asked for it."""
    if given is None:
        _decline("unreadable", "an agent's app acts only when its crew asks it for something")
    texts, persona, task, context = _ours("colleagues").texts, None, None, None
    if isinstance(given, dict):
        persona, task, context = given.get("persona"), given.get("task"), given.get("context")
    if not isinstance(persona, dict) or not isinstance(task, dict):
        _decline("unreadable", "the delegation has no persona or no task")
    index, others = task.get("index"), _personas(given.get("colleagues", {}))
    expects, tools = given.get("expects", []), given.get("tools", [])
    names = _ours("personas").NAMES
    found = [
        texts(given, "crew", "agent"),
        texts(persona, *names),
        texts({"name": "", **task}, "name", "description", "expected_output"),
    ]
    sound = isinstance(context, (str, type(None))) and _is_index(index) and _is_texts(expects)
    sound = sound and _ours("held_tools").is_told(tools)
    if None in found or others is None or not sound:
        _decline("unreadable", "the delegation does not have the form that was agreed")
    (crew, agent), told, (name, description, expected) = found
    own = dict(zip(names, told, strict=True))
    return Asked(crew, agent, own, index, name, description, expected, context, others, expects, tools)


def _personas(given: Any) -> "dict[str, dict[str, str]] | None":
    """Of colleagues, by their keys; None for what is none."""
    texts, names = _ours("colleagues").texts, _ours("personas").NAMES
    if not isinstance(given, dict):
        return None
    for persona in given.values():
        if not isinstance(persona, dict) or set(persona) != set(names) or texts(persona, *names) is None:
            return None
    return given


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_index(value: Any) -> bool:
    return value is None or (type(value) is int and value >= 0)


def _chosen(crew: Any, role: str, asked: Asked) -> "tuple[Any, Any]":
    """The agent by its role, and the task of this crew that is its own; a coworker's task is made."""
    mine = [agent for agent in _agents(crew) if _is_of(agent, role)]
    if not mine:
        _decline("no_agent", f"crew {asked.crew!r} has no agent of role {role!r}")
    if asked.index is None:
        return mine[0], _made(mine[0], asked)
    task: Any = crew.tasks[asked.index] if asked.index < len(crew.tasks) else None
    agent = _worker(crew, task)
    if agent is None or not any(agent is one for one in mine):
        _decline(
            "other_task", f"agent {asked.agent!r} is asked for task {asked.index}, which it was not given"
        )
    task.description, task.expected_output = asked.description, asked.expected_output
    return agent, task


def _worker(crew: Any, task: Any) -> Any:
    """Who does a task of the crew; a manager that CrewAI makes up is nobody's app."""
    if task is None:
        return None
    return crew.manager_agent if _is_hierarchical(crew) else task.agent


def _is_hierarchical(crew: Any) -> bool:
    return str(getattr(crew.process, "value", crew.process)) == "hierarchical"


def _agents(crew: Any) -> "list[Any]":
    found: list[Any] = _ours("executors").agents(crew)
    return found


def _is_of(agent: Any, role: str) -> bool:
    colleagues = _ours("colleagues")
    return bool(colleagues.same_role(colleagues.written_role(agent), role))


def _made(agent: Any, asked: Asked) -> Any:
    from crewai import Task

    name, description, expected = asked.name or None, asked.description, asked.expected_output
    return Task(name=name, description=description, expected_output=expected, agent=agent)


def _be(agent: Any, persona: "dict[str, str]") -> None:
    """The agent as the inputs made it in its crew; how it was written stays known, as CrewAI keeps it."""
    agent.interpolate_inputs({})
    for name, text in persona.items():
        setattr(agent, name, text)


def _know(crew: Any, own: Any, given: "dict[str, dict[str, str]]") -> None:
    """Its colleagues as the inputs made them: who they are is the written role's matter, before and after."""
    roles = {one.agent: one.role for one in _ours("colleagues").others(own)}
    for key, persona in given.items():
        found = [one for one in _agents(crew) if key in roles and _is_of(one, roles[key])]
        if not found:
            _decline("other_colleague", f"crew {own.crew!r} has no colleague {key!r} of agent {own.agent!r}")
        for one in found:
            _be(one, persona)


def _done(crew: Any, agent: Any, task: Any, asked: Asked) -> "dict[str, Any]":
    from crewai.context import reset_current_task_id, set_current_task_id

    forms, scopes = _ours("delegated_forms"), _ours("scopes")
    tools = _prepared(crew, agent, task, asked)
    counted = _agents(crew)
    before = forms.spent(counted)
    with (
        scopes.opened(kind="kickoff", key=f"delegated {asked.crew} {asked.agent}"),
        scopes.opened(kind="task", key=str(task.key)),
    ):
        token = set_current_task_id(str(task.id))  # as Task does around its agent's work
        try:
            output = agent.execute_task(task, asked.context, tools)
        finally:
            reset_current_task_id(token)
            crew._drain_memory_writes()  # noqa: SLF001 - as a kickoff does at its end
            crew._finish_execution("")  # noqa: SLF001
    try:
        form = forms.encode(output, task, of_crew=asked.index is not None)
    except forms.NoForm as error:
        _decline("no_form", str(error))
    result = {"output": form, "usage": forms.since(before, forms.spent(counted))}
    size = len(json.dumps(result, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    if size > MAX_RESULT_BYTES:
        _decline("too_large", f"the result has {size} bytes, {MAX_RESULT_BYTES} at most are handed back")
    return result


def _prepared(crew: Any, agent: Any, task: Any, asked: Asked) -> Any:
    """What a kickoff would have made ready; the tools that it would hand to the agent with this task.

    Only agents that work in this process are made ready. A coworker is handed no tools: it has its own.
    """
    executors = _ours("executors")
    executors.set_up(crew, executors.here(crew))
    managed = _is_hierarchical(crew) and agent is crew.manager_agent
    if managed:
        crew._create_manager_agent()  # noqa: SLF001
    if asked.index is None:
        return None
    return crew._prepare_tools(agent, task, task.tools or agent.tools or [])  # noqa: SLF001


def _ours(name: str) -> Any:
    return importlib.import_module(f"_meshgate_child.{name}")


def _decline(reason: str, text: str) -> NoReturn:
    """Ends the process; the caller is told a sentence that stands for the reason, the log has ours."""
    _ours("channel").from_environment().ask({"op": "declined", "reason": reason})
    sys.stderr.write(f"meshgate: {text}\n")
    raise SystemExit(STATUS)


if __name__ == "__main__":
    main()
    _ours("leaving").leave()
