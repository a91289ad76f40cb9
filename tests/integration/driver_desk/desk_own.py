"""A tool that changes nothing but this process's own list."""

from crewai.tools import tool

kept: list[str] = []


@tool
def keep(order: str) -> str:
    """Keep an order for later."""
    kept.append(order)
    return f"{len(kept)} kept"
