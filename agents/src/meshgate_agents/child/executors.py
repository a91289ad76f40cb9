"""The agents of a crew that work in this process are set up, as a kickoff sets them up.

CrewAI makes an agent's executor then, and classes for it: 10 ms. A program that waits for its task has it
made before, where nothing but the agent's own state comes of that; with the task it is set up once more.
"""

from typing import Any

from . import colleagues


def agents(crew: Any) -> "list[Any]":
    """All of a crew, each once."""
    listed = [*crew.agents, crew.manager_agent, *(task.agent for task in crew.tasks)]
    found: dict[int, Any] = {id(agent): agent for agent in listed if agent is not None}
    return list(found.values())


def here(crew: Any) -> "list[Any]":
    """Those of a crew who work in this process; a manager is set up by its crew."""
    return [
        one for one in agents(crew) if colleagues.elsewhere(one) is None and one is not crew.manager_agent
    ]


def set_up(crew: Any, chosen: "list[Any]") -> None:
    """What a kickoff does with these agents before its first task."""
    from crewai.crews.utils import setup_agents

    crew.checkpoint = False  # it is no state of the crew: that one's process writes them
    for one in agents(crew):
        one.checkpoint = None
    setup_agents(crew, chosen, crew.embedder, crew.function_calling_llm, crew.step_callback)


def prepare(crew: Any) -> None:
    """Before there is a task: whoever is all CrewAI's own. What is no crew is told when there is one."""
    from crewai import Crew

    if isinstance(crew, Crew) and not crew.skills:
        set_up(crew, [one for one in here(crew) if _is_plain(one)])


def _is_plain(agent: Any) -> bool:
    """Nothing is fetched, stored or called when it is set up, as knowledge, skills and classes may."""
    from crewai import Agent
    from crewai.agents.agent_executor import AgentExecutor

    own = type(agent) is Agent and agent.executor_class is AgentExecutor
    return own and not agent.knowledge_sources and not agent.skills
