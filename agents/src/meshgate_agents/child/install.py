"""Puts everything of the child's side in place; called once, at interpreter start.

Every interpreter below a launcher passes here, most of them never import CrewAI: so nothing is
imported before one of CrewAI's modules was executed. A process that imports CrewAI tells its launcher so
then. In a fork server that is put off: `postpone` before the import, `begin` in each process that it becomes.
"""

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import import_hook

if TYPE_CHECKING:
    from .channel import Channel


def install() -> None:
    """Installs the import hook. CrewAI is not imported by this."""
    import_hook.install(
        {
            "crewai.tools.structured_tool": _structured_tool,
            "crewai.tools.base_tool": _base_tool,
            "crewai.hooks.dispatch": _dispatch,
            "crewai.llms.base_llm": _base_llm,
            "crewai.agents.cache.cache_handler": _cache_handler,
            "crewai.agents.agent_executor": _agent_executor,
            "crewai.utilities.agent_utils": _agent_utils,
            "crewai.utilities.rpm_controller": _rpm_controller,
            "crewai.crew": _crew,
            "crewai.task": _task,
            "crewai.agent.core": _agent,
            "crewai.memory.unified_memory": _memory,
            "crewai.memory.encoding_flow": _encoding_flow,
            "dotenv.main": _dotenv,
        }
    )


class _Reports:
    """Whether an import is told to the launcher."""

    at_import = True


def postpone() -> None:
    """CrewAI is imported here for other processes, before any of them has a launcher."""
    from . import channel

    _Reports.at_import = False
    channel.postpone()


def begin() -> None:
    """The process that this one has become imports CrewAI now."""
    from .channel import from_environment

    _report(from_environment())


def _base_tool(module: Any) -> None:
    from . import interception, restored_tools
    from .brokering import Broker
    from .channel import from_environment

    channel = from_environment()
    if _Reports.at_import:
        _report(channel)
    broker = Broker(channel=channel)
    interception.intercept(module.BaseTool, broker)
    restored_tools.intercept(module, broker)


def _report(channel: "Channel") -> None:
    """Tells the launcher that this process imports CrewAI; learns its place among its equals.

    From then on it gives a sign of life every few seconds, and an uncaught exception is told too.
    """
    import importlib.metadata
    import platform

    from . import attempt, standing, vitals
    from .step_keys import digest

    answer = channel.ask(
        {
            "op": "report",
            "pid": os.getpid(),
            "python": platform.python_version(),
            "crewai": importlib.metadata.version("crewai"),
            "program": digest(argument.encode("utf-8", "surrogateescape") for argument in sys.orig_argv[1:]),
        }
    )
    attempt.learn(answer)
    standing.learn(answer)
    vitals.begin(channel)


def _dotenv(module: Any) -> None:
    from . import withheld

    withheld.intercept(module)


def _structured_tool(module: Any) -> None:
    from . import interception

    interception.intercept_structured(module.CrewStructuredTool)


def _dispatch(module: ModuleType) -> None:
    from . import second_net

    second_net.install(module)


def _base_llm(module: Any) -> None:
    from . import model_calls
    from .channel import from_environment
    from .model_journal import ModelJournal

    model_calls.intercept(module.BaseLLM, ModelJournal(channel=from_environment()))


def _agent_executor(module: Any) -> None:
    from . import openings

    openings.mark_native_calls(module.AgentExecutor, "_execute_single_native_tool_call", 1)


def _agent_utils(module: ModuleType) -> None:
    from . import openings

    openings.mark_native_calls(module, "execute_single_native_tool_call", 0)


def _rpm_controller(module: Any) -> None:
    from . import rates

    rates.put_off(module.RPMController)


def _crew(module: Any) -> None:
    from . import openings

    openings.open_kickoffs(module.Crew)


def _task(module: Any) -> None:
    from . import openings

    openings.open_tasks(module.Task)


def _agent(module: Any) -> None:
    from . import delegating, openings
    from .channel import from_environment

    openings.open_agents(module.Agent)
    delegating.intercept(module.Agent, from_environment())  # outside: it is the asker's step


def _memory(module: ModuleType) -> None:
    from . import memory
    from .channel import from_environment

    memory.journal(module, from_environment())


def _encoding_flow(module: Any) -> None:
    from . import memory_saves

    memory_saves.key_records(module.EncodingFlow)


def _cache_handler(module: Any) -> None:
    """CrewAI's cache answers by name and arguments, across agents: a hole in every policy."""

    def read(_self: object, tool: str, input: str) -> None:  # noqa: A002, ARG001 - CrewAI's names
        return None

    def add(_self: object, tool: str, input: str, output: object) -> None:  # noqa: A002, ARG001
        return None

    for function in (read, add):
        setattr(module.CacheHandler, function.__name__, function)
