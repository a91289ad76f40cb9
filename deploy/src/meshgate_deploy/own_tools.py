"""Tools that an app runs in its own process (`execute: agent`): what the manifest may say of them."""

import threading
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from meshgate_deploy.errors import DependencyUnavailable, ManifestError, Problem
from meshgate_deploy.manifest_lines import Document
from meshgate_deploy.processes import Command, Processes, tail

if TYPE_CHECKING:
    from meshgate_deploy.manifest import Manifest, ToolEntry, ToolRule

RULE = "{execute: agent, effect: memory}"
MAX_RESULT_BYTES = 1_048_576  # as a tool host's tools have it
DEFAULT_DEADLINE_SECONDS = 30.0  # of every tool
DESCRIBE_SECONDS = 60.0  # as long as a tool host may take to be ready
POLL_SECONDS = 0.1


def problems(document: Document, manifest: "Manifest") -> list[Problem]:
    """What stands where it may not. Whether each tool has its rule is known with the definitions."""
    return [*_rules(document, manifest), *_served_twice(document, manifest)]


def _rules(document: Document, manifest: "Manifest") -> Iterable[Problem]:
    for tool, rule in manifest.tools.items():
        app = tool.partition(".")[0]
        line = document.line(("tools", tool))
        if app in manifest.own_tools and (wrong := _wrong(rule)):
            yield Problem(document.file, line, f"{tool!r} runs in the agent: {wrong}", f"{tool}: {RULE}")
        elif rule.execute == "agent" and app not in manifest.own_tools:
            secrets = manifest.toolhosts[app].secrets if app in manifest.toolhosts else ()
            held = f", which holds {', '.join(secrets)}" if secrets else ""
            where = (
                f"a tool of the tool host {app!r}{held}" if app in manifest.toolhosts else "no app's own tool"
            )
            fix = f"list it under tools: of a crew, agent or program, and write <app>.<tool>: {RULE}"
            yield Problem(document.file, line, f"{tool!r} is {where}: it cannot run in the agent", fix)


def _wrong(rule: "ToolRule") -> str:
    if rule.execute != "agent":
        return "nothing else is possible under a crew, agent or program"
    if rule.effect != "memory":
        return f"its effect may be memory only, not {rule.effect}"
    if rule.reconcile is not None:
        return "nothing outside has to be asked what came of it"
    return ""


def _served_twice(document: Document, manifest: "Manifest") -> Iterable[Problem]:
    """One that a tool host serves is that host's, with the host's credentials."""
    hosted = {_reference(one): host for host, part in manifest.toolhosts.items() for one in part.tools}
    for app, listed in manifest.own_tools.items():
        for index, one in enumerate(listed):
            host = hosted.get(_reference(one))
            if host is not None:
                line = document.line((*manifest.place(app), "tools", index))
                message = f"{_reference(one)!r} runs in the agent here and in the tool host {host!r}"
                yield Problem(document.file, line, message, "keep one of the two")


def _reference(one: "str | ToolEntry") -> str:
    return one if isinstance(one, str) else one.reference


def require_rules(manifest: "Manifest", definitions: Mapping[str, Mapping[str, Any]]) -> None:
    """Each tool that an app lists is run there because a rule says so, and for no other reason.

    Raises:
        ManifestError: names the tools without a rule.
    """
    own = [tool for tool in definitions if tool.partition(".")[0] in manifest.own_tools]
    bare = [tool for tool in own if tool not in manifest.tools]
    if bare:
        raise ManifestError(
            [
                Problem("meshgate.yaml", 0, f"{tool!r} would run in the agent", f"tools: {{{tool}: {RULE}}}")
                for tool in bare
            ]
        )


def limit_bytes(manifest: "Manifest", tool: str) -> int | None:
    """How large a result may be of a tool that an app runs itself; None for every other tool."""
    if tool.partition(".")[0] not in manifest.own_tools:
        return None
    rule = manifest.tools.get(tool)
    return (rule.max_result_bytes if rule else None) or MAX_RESULT_BYTES


def deadline_seconds(manifest: "Manifest", tool: str) -> float:
    """How long the body of such a tool may take."""
    rule = manifest.tools.get(tool)
    return (rule.deadline_seconds if rule else None) or DEFAULT_DEADLINE_SECONDS


def describe(processes: Processes, command: Command, stop: threading.Event) -> None:
    """Has an app's own tools described by a process that holds no secret, and waits for its end.

    Raises:
        DependencyUnavailable: it could not, or not in time.
    """
    child = processes.start(command)
    give_up_at = time.monotonic() + DESCRIBE_SECONDS
    while (
        (status := child.wait(POLL_SECONDS)) is None and time.monotonic() < give_up_at and not stop.is_set()
    ):
        pass
    child.stop()
    processes.forget(child)
    if status != 0:
        why = tail(command.log) if command.log else ""
        name = command.name
        raise DependencyUnavailable(
            f"{name} did not describe them", why=why, next_step=f"meshgate logs {name}"
        )
