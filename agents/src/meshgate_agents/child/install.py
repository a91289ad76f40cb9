"""Puts everything of the child's side in place; called once, at interpreter start."""

import importlib.metadata
import os
import platform
import sys
from types import ModuleType

from . import import_hook, interception, model_calls, openings, second_net
from .brokering import Broker
from .channel import Channel, from_environment
from .scopes import set_program
from .step_keys import digest


def install() -> None:
    """Installs the import hook. CrewAI is not imported by this."""
    channel = from_environment()
    broker = Broker(channel=channel)

    def tools(module: ModuleType) -> None:
        report(channel)
        interception.intercept(module.BaseTool, broker)

    import_hook.install(
        {
            "crewai.tools.base_tool": tools,
            "crewai.tools.structured_tool": lambda m: interception.intercept_structured(
                m.CrewStructuredTool, broker
            ),
            "crewai.hooks.dispatch": second_net.install,
            "crewai.llms.base_llm": lambda m: model_calls.intercept(m.BaseLLM),
            "crewai.agents.cache.cache_handler": lambda m: disable_cache(m.CacheHandler),
            "crewai.agents.agent_executor": lambda m: openings.mark_native_calls(
                m.AgentExecutor, "_execute_single_native_tool_call", 1
            ),
            "crewai.utilities.agent_utils": lambda m: openings.mark_native_calls(
                m, "execute_single_native_tool_call", 0
            ),
            "crewai.crew": lambda m: openings.open_kickoffs(m.Crew),
            "crewai.task": lambda m: openings.open_tasks(m.Task),
            "crewai.agent.core": lambda m: openings.open_agents(m.Agent),
        }
    )


def report(channel: Channel) -> None:
    """Tells the launcher that this process imports CrewAI; learns its place among its equals."""
    answer = channel.ask(
        {
            "op": "report",
            "pid": os.getpid(),
            "python": platform.python_version(),
            "crewai": importlib.metadata.version("crewai"),
            "program": digest(argument.encode("utf-8", "surrogateescape") for argument in sys.orig_argv[1:]),
        }
    )
    set_program(str(answer["program"]))


def disable_cache(cache_handler: type) -> None:
    """CrewAI's cache answers by name and arguments, across agents: a hole in every policy."""

    def read(_self: object, tool: str, input: str) -> None:  # noqa: A002, ARG001 - CrewAI's names
        return None

    def add(_self: object, tool: str, input: str, output: object) -> None:  # noqa: A002, ARG001
        return None

    for function in (read, add):
        setattr(cache_handler, function.__name__, function)
