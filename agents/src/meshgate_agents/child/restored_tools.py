"""Tools that CrewAI makes from a file (a checkpoint): brokered, whatever class the file names."""

from typing import Any

from .brokering import Broker
from .interception import intercept_class


def intercept(base_tool_module: Any, broker: Broker) -> None:
    """Wraps CrewAI's way from a dict to a tool.

    A class may keep its subclasses from being seen when they are made; here it is seen when it is used.
    """
    original = base_tool_module._resolve_tool_dict  # noqa: SLF001 - the one way in

    def resolved(value: Any) -> Any:
        tool = original(value)
        if not isinstance(tool, base_tool_module.BaseTool):
            raise ValueError(f"{value.get('tool_type')!r} is no tool")  # noqa: TRY004 - as pydantic expects
        intercept_class(type(tool), broker)
        return tool

    base_tool_module._resolve_tool_dict = resolved  # noqa: SLF001
