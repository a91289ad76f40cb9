"""A scan for people."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from meshgate_deploy.scan import Scan
from meshgate_deploy.scan_findings import App

SHOWN_SCHEMA = 60  # characters of a tool's arguments in the table


def show(scan: Scan, console: Console) -> None:
    """Tables of agents and tools, of variables, of files; then what needs a person."""
    findings = scan.findings
    by_id = {tool.tool_id: tool for tool in findings.tools}
    agents = Table(
        "app", "agent", "tool", "arguments", "effect", title="Who holds which tool", title_justify="left"
    )
    for app in findings.apps:
        for holder, key, held in _holders(app):
            for tool_id in held or ("-",):
                tool = by_id.get(tool_id)
                arguments = _arguments(tool.schema) if tool else ""
                effect = (tool.effect or "irreversible") if tool else ""
                agents.add_row(holder, key, tool_id, arguments, effect)
    console.print(agents)
    if findings.variables:
        variables = Table(
            "variable", "secret", "read in", "goes to", title="Who gets which variable", title_justify="left"
        )
        for use in findings.variables:
            places = ", ".join(use.places) or "CrewAI"
            variables.add_row(use.name, "yes" if use.secret else "", places, ", ".join(use.apps) or "nobody")
        console.print(variables)
    for file in scan.files:
        hint = " (--force writes over it)" if file.state == "kept" else ""
        console.print(f"{file.state}: {file.path}{hint}", highlight=False)
    for note in findings.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    console.print("next: look at meshgate.yaml and policies/, then meshgate up", highlight=False)


def _holders(app: App) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Which app acts for which agent, with what."""
    grants = app.grants
    if app.isolated:
        yield app.name, "", grants[app.name]
    for agent in app.agents:
        yield agent.app or app.name, agent.key, grants[agent.app] if agent.app else agent.held


def _arguments(schema: Any) -> str:
    required = set(schema.get("required", ()))
    shown = [
        f"{name}{'' if name in required else '?'}: {_type(part)}"
        for name, part in schema.get("properties", {}).items()
    ]
    text = ", ".join(shown)
    return text if len(text) <= SHOWN_SCHEMA else text[: SHOWN_SCHEMA - 1] + "…"


def _type(part: Any) -> str:
    if "anyOf" in part:
        return "|".join(_type(inner) for inner in part["anyOf"])
    return str(part.get("type", "any"))
