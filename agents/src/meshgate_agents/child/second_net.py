"""The second net: before each tool call of CrewAI's loops, a check that the patch is in place.

It sits in the dispatcher itself, not in its list of hooks, because `clear_all_hooks()` empties the
list, and because CrewAI swallows every exception of a hook but HookAborted: here every failure
becomes HookAborted.
"""

import functools
from typing import Any

from .interception import is_bound_to_tool, is_intercepted


def install(dispatch_module: Any) -> None:
    """Wraps `crewai.hooks.dispatch.dispatch` right after the module is executed.

    Raises:
        AttributeError: the module is not what we know; the import fails and nothing runs.
    """
    original = dispatch_module.dispatch
    point_of_tools = dispatch_module.InterceptionPoint.PRE_TOOL_CALL
    aborted = dispatch_module.HookAborted

    @functools.wraps(original)
    def dispatch(point: Any, ctx: Any, **kwargs: Any) -> Any:
        if point == point_of_tools:
            _check(ctx, aborted)
        return original(point, ctx, **kwargs)

    dispatch_module.dispatch = dispatch


def _check(ctx: Any, aborted: type[Exception]) -> None:
    try:
        problem = _problem(ctx)
    except Exception as error:
        raise aborted(f"meshgate cannot tell whether this tool is brokered: {error}", "meshgate") from error
    if problem:
        raise aborted(problem, "meshgate")


def _problem(ctx: Any) -> str:
    tool = ctx.tool
    if tool is None:
        return "meshgate: no tool object comes with this call"
    original = getattr(tool, "_original_tool", None)
    function = getattr(tool, "func", None)
    if original is not None and not is_intercepted(original):
        return f"meshgate: tool {tool.name!r} is not intercepted"
    if original is None and not is_intercepted(tool):
        return f"meshgate: tool {tool.name!r} is no tool object of CrewAI"
    if original is not None and not is_bound_to_tool(function):
        return f"meshgate: the function of tool {tool.name!r} was replaced"
    return ""
