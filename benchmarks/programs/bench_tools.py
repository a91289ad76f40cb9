"""Tools of the measured crew. They do nothing, so that what is around them shows."""

from crewai.tools import tool


@tool("lookup")
def lookup(order: str) -> str:
    """Look an order up."""
    return f"{order} costs 20"


@tool("blob")
def blob(size: int) -> str:
    """A result of that many bytes."""
    return "x" * size
