"""From what a tool returned to bytes: text, or one JSON value. Nothing is turned into its repr."""

from meshgate_agents.child import tool_results
from meshgate_agents.child.tool_results import MAX_RESULT_BYTES

from meshgate_toolhost.errors import ResultNotJson, ResultTooLarge, ToolReported
from meshgate_toolhost.model import Result, ResultKind

__all__ = ["MAX_RESULT_BYTES", "encode"]


def encode(value: object, *, limit_bytes: int = MAX_RESULT_BYTES) -> Result:
    """Encodes a result, by the rule that holds in an agent's process too.

    Raises:
        ResultNotJson: neither text nor JSON, nor a pydantic model.
        ResultTooLarge: over `limit_bytes`.
        ToolReported: it is CrewAI's value for "the tool failed".
    """
    try:
        kind, data = tool_results.encode(value, limit_bytes=limit_bytes)
    except tool_results.NotJson as error:
        raise ResultNotJson(str(error)) from error
    except tool_results.TooLarge as error:
        raise ResultTooLarge(size_bytes=error.size_bytes, limit_bytes=error.limit_bytes) from error
    except tool_results.Reported as error:
        raise ToolReported(str(error)) from error
    return Result(ResultKind(kind), data)
