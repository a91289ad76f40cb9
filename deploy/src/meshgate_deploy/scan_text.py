"""Findings as files: the manifest, the policies and their tests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meshgate_policies import scaffold

from meshgate_deploy.scan_findings import Agent, App, Findings, Tool
from meshgate_deploy.scan_source import looks_secret

_HEADER = """\
# Written by `meshgate scan`; from here on it is yours. `meshgate doctor` checks it.
# Every agent's process runs without the tools' code and without their secrets: tool hosts have both.
apiVersion: meshgate/v1
"""


def files(findings: Findings) -> dict[Path, str]:
    """Every file to write, by its path from the project's root."""
    made = {Path("meshgate.yaml"): manifest(findings)}
    paths = {tool.tool_id: tool.paths for tool in findings.tools if tool.paths}
    for app in findings.apps:
        for granted, tools in app.grants.items():
            texts = scaffold.agent_package(granted, tools, paths)
            for name, text in zip(scaffold.file_names(granted), texts, strict=True):
                made[Path("policies") / name] = text
    return made


def manifest(findings: Findings) -> str:
    """The text of `meshgate.yaml`."""
    lines = [_HEADER + f"mesh: {findings.mesh}", f"trustDomain: {findings.trust_domain}"]
    crews = [app for app in findings.apps if app.crew]
    programs = [app for app in findings.apps if not app.crew]
    if crews:
        lines.append("crews:")
        lines += [line for app in crews for line in crew(app)]
    if programs:
        lines.append("programs:")
        for app in programs:
            lines += [f"  {app.name}:", f"    run: {_flow(list(app.run))}", *_variables(app)]
    hosts = findings.hosts()
    if hosts:
        lines.append("toolhosts:")
        lines += [line for host, tools in hosts.items() for line in _host(findings, host, tools)]
    lines += _unserved(findings)
    if hosts:
        lines.append("# Change an effect only if you are sure: what is not `read` is never run twice.")
        lines.append("tools:")
        lines += [_rule(tool) for tools in hosts.values() for tool in tools]
    return "\n".join([*lines, "policies: policies", "store: sqlite", ""])


def crew(app: App) -> list[str]:
    """A crew and its agents, as lines of the manifest."""
    lines = [f"  {app.name}:", f"    crew: {_flow(app.crew)}"]
    if app.isolated:
        lines.append("    isolate: agents  # each is an app with an identity and a policy of its own")
    elif app.agents:
        lines.append("    isolate: crew  # all agents act in one process, with the rights of the crew")
    if app.agents:
        lines.append("    agents:")
        lines += [f"      {_flow(agent.key)}: {_flow(_agent(agent))}" for agent in app.agents]
    if app.writable:
        lines.append(f"    writable: {_flow(list(app.writable))}  # where its tasks' files go")
    return [*lines, *_variables(app)]


def _agent(agent: Agent) -> dict[str, str]:
    """What the manifest says of an agent; its app only where the key does not give it."""
    named = agent.app and agent.app != agent.key.replace("_", "-")
    return {"role": agent.role, **({"app": agent.app} if named else {})}


def _variables(app: App) -> list[str]:
    secrets = tuple(name for name in app.env if looks_secret(name))
    plain = tuple(name for name in app.env if name not in secrets)
    return [*_names("env", plain), *_names("secrets", secrets)]


def _host(findings: Findings, host: str, tools: list[Tool]) -> list[str]:
    lines = [f"  {host}:", "    tools:"]
    lines += [f"      - {_flow(tool.entry)}" for tool in tools]
    uses = [use for use in findings.variables if host in use.apps]
    lines += _names("secrets", tuple(use.name for use in uses if use.secret), "only this host sees them")
    return lines + _names("env", tuple(use.name for use in uses if not use.secret))


def _unserved(findings: Findings) -> list[str]:
    return [
        f"# Not served, so refused: {tool.tool_id}: {tool.problem}"
        for tool in findings.tools
        if tool.entry is None
    ]


def _rule(tool: Tool) -> str:
    if tool.effect == "read":
        return f"  {tool.tool_id}: {{effect: read}}"
    return f"  {tool.tool_id}: {{effect: irreversible, idempotent: false, repeat: same}}"


def _names(key: str, names: tuple[str, ...], comment: str = "") -> list[str]:
    if not names:
        return []
    note = f"  # {comment}" if comment else ""
    return [f"    {key}: [{', '.join(names)}]{note}"]


def _flow(value: Any) -> str:
    """A value in YAML's flow style; JSON wherever a plain word could be misread."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if isinstance(value, str) and _plain(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _plain(text: str) -> bool:
    """Whether YAML reads the text as this very string without quotes."""
    words = text.split(" ")
    if text.lower() in ("", "true", "false", "null", "yes", "no", "on", "off", "y", "n"):
        return False
    return text[0].isalpha() and all(
        word
        and all(letter.isalnum() or letter in "_-./" for letter in word.replace(":", "", 1))
        and not word.endswith(":")
        for word in words
    )
