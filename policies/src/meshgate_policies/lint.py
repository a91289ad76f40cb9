"""Rules that OPA's own checks do not have: grants too wide, facts from the wrong place. Pure.

Works on OPA's syntax tree, so spelling (`input["untrusted"]`, an import, a helper that is given
the whole input) does not matter. Does not follow values through data.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meshgate_policies.errors import Problem

SETS = ("allow", "approve", "deny")
TOOL_ID = re.compile(r"[a-z0-9][a-z0-9-]*\.[A-Za-z0-9_][A-Za-z0-9_.-]*|agent:[a-z0-9][a-z0-9-]*")
REASON_ID = re.compile(r"[a-z][a-z0-9_]{0,63}")
AGENT = "agent:"  # a task for an agent that is an app of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the manifest knows; None where it was not given.

    Attributes:
        apps: ids of crews, programs and agents.
        tools: tool ids; `agent:` ones are looked up here only where `agents` is None.
        agents: apps that are agents of a crew.
    """

    apps: Collection[str] | None = None
    tools: Collection[str] | None = None
    agents: Collection[str] | None = None


def lint(tree: Mapping[str, Any], *, file: str, is_test: bool, known: Known) -> list[Problem]:
    """Looks through one module.

    Args:
        tree: of `opa parse --format json --json-include locations`.
        file: its path, for the problems.
        is_test: a test may set `input` as it likes, and must not grant.
        known: makes typing mistakes in ids visible.
    """
    found = list(_package(tree, known, is_test=is_test))
    for rule in tree.get("rules", []):
        if is_test:
            found += _grant_in_test(rule, tree)
        else:
            found += _set_rule(rule, tree, known)
            found += _obligation(rule, tree, known)
    if not is_test:
        found += _input_reads(tree.get("imports", []))
        found += _input_reads(tree.get("rules", []))
    unique = dict.fromkeys(found)
    return [Problem(file, line, message, fix) for line, message, fix in sorted(unique)]


_Finding = tuple[int, str, str]


def _package(tree: Mapping[str, Any], known: Known, *, is_test: bool) -> Iterator[_Finding]:
    path = [term["value"] for term in tree["package"]["path"][1:]]
    line = _line(tree["package"])
    if path[:1] != ["mesh"]:
        yield line, f"package {'.'.join(path)} is not the project's", "write: package mesh.agents.<app>"
    elif path[:2] == ["mesh", "manifest"]:
        yield line, "data.mesh.manifest is generated", "use another package name below mesh"
    elif len(path) > 2 and path[1] == "agents" and known.apps is not None and not is_test:  # noqa: PLR2004
        names = {app.replace("-", "_") for app in known.apps}
        if path[2] not in names:
            apps = ", ".join(sorted(names)) or "none"
            yield line, f"no app of the manifest is called {path[2]}", f"one of: {apps}"


def _is_agent_package(tree: Mapping[str, Any]) -> bool:
    path = [term["value"] for term in tree["package"]["path"][1:]]
    return path[:2] == ["mesh", "agents"] and len(path) == 3  # noqa: PLR2004 - mesh.agents.<app>


def _grant_in_test(rule: Mapping[str, Any], tree: Mapping[str, Any]) -> Iterator[_Finding]:
    if rule["head"].get("name") in SETS and _is_agent_package(tree):
        yield (
            _line(rule),
            f"`{rule['head']['name']}` in a file whose name ends in _test.rego is never deployed",
            "move it to a file of another name",
        )


def _set_rule(rule: Mapping[str, Any], tree: Mapping[str, Any], known: Known) -> Iterator[_Finding]:
    head, line = rule["head"], _line(rule)
    name = head.get("name")
    if name == "allow" and rule.get("default") and _is_true(head):
        yield line, "`default allow := true` grants every tool", 'write instead: allow contains "host.tool"'
        return
    if name not in SETS or not _is_agent_package(tree) or len(head.get("ref", [])) > 1:
        return
    key = head.get("key")
    if key is None:
        if head.get("value", {}).get("type") != "set":
            yield line, f"`{name}` is a set of tool ids", f'write: {name} contains "host.tool" if {{ … }}'
        return
    if _is_ref_to(key, "input") and name == "allow":
        yield (
            line,
            "this grants whatever is asked",
            'name the tool: allow contains "host.tool" if { … }',
        )
    yield from _entry(name, key, line, known)


def _obligation(rule: Mapping[str, Any], tree: Mapping[str, Any], known: Known) -> Iterator[_Finding]:
    """The ids in an obligation, where they are constants: under a misspelt one nothing is bounded."""
    head = rule["head"]
    if head.get("name") != "obligations" or not _is_agent_package(tree):
        return
    entries = [(head["key"], head.get("value"))] if head.get("key") else _members(head.get("value"))
    for key, duties in entries:
        narrowed = _members(_member(_member(duties, "narrow"), "tools"))
        for tool in (key, *(name for name, _ in narrowed)):
            if tool["type"] == "string":
                yield from _tool(tool["value"], _line(rule), known)


def _members(value: Mapping[str, Any] | None) -> list[Any]:
    """Keys and values of a constant object."""
    return list(value["value"]) if value is not None and value["type"] == "object" else []


def _member(value: Mapping[str, Any] | None, name: str) -> Mapping[str, Any] | None:
    found: list[Mapping[str, Any]] = [inner for key, inner in _members(value) if key["value"] == name]
    return found[0] if found else None


def _entry(name: str, key: Mapping[str, Any], line: int, known: Known) -> Iterator[_Finding]:
    """The entry of a set, where it is a constant."""
    if name == "deny" and key["type"] == "object":
        for field, value in key["value"]:
            text = value["value"] if value["type"] == "string" else None
            if field["value"] == "reason" and text is not None and not REASON_ID.fullmatch(text):
                yield line, f"`{text}` is no reason id", "a reason is small letters, digits and _"
            if field["value"] == "tool" and text is not None:
                yield from _tool(text, line, known)
    elif key["type"] == "string" and not (name == "deny" and REASON_ID.fullmatch(key["value"])):
        yield from _tool(key["value"], line, known)
    elif key["type"] in ("number", "boolean", "null", "array", "set"):
        yield line, f"`{name}` holds tool ids", f'write: {name} contains "host.tool"'


def _tool(tool: str, line: int, known: Known) -> Iterator[_Finding]:
    if not TOOL_ID.fullmatch(tool):
        yield line, f"`{tool}` is no tool id, and patterns do not work here", 'write each tool: "host.tool"'
    elif tool.startswith(AGENT) and known.agents is not None:
        if tool.removeprefix(AGENT) not in known.agents:
            agents = ", ".join(f"{AGENT}{app}" for app in sorted(known.agents)) or "none"
            yield line, f"no agent of the manifest is the app {tool.removeprefix(AGENT)}", f"one of: {agents}"
    elif known.tools is not None and tool not in known.tools and not tool.startswith("crewai."):
        tools = ", ".join(sorted(known.tools)) or "none"
        yield line, f"no tool of the manifest is called {tool}", f"one of: {tools}"


_UNTRUSTED: tuple[str, str] = (
    "input.untrusted is what the caller says of itself: identity and facts must not come from it",
    "use input.caller, which comes from the certificate",
)
_WHOLE: tuple[str, str] = (
    "the whole input, or a computed part of it, can be input.untrusted",
    "name the part: input.caller, input.call.args, …",
)


def _input_reads(node: object, line: int = 0) -> Iterator[_Finding]:
    """Every way to get at `input.untrusted`: by name, by a computed name, or through the whole."""
    if isinstance(node, list):
        for part in node:
            yield from _input_reads(part, line)
    if not isinstance(node, dict):
        return
    line = _line(node) or line
    if node.get("type") == "var" and node.get("value") == "input":
        yield line, *_WHOLE
    elif _is_ref_to(node, "input"):
        path = node["value"][1:]
        if not path or path[0]["type"] != "string":
            yield line, *_WHOLE
        elif path[0]["value"] == "untrusted":
            yield line, *_UNTRUSTED
        yield from _input_reads(path, line)
    else:
        yield from _input_reads([v for k, v in node.items() if k != "location"], line)


def _is_ref_to(term: object, name: str) -> bool:
    if not isinstance(term, dict) or term.get("type") != "ref":
        return False
    first = term["value"][0]
    return bool(first["type"] == "var" and first["value"] == name)


def _is_true(head: Mapping[str, Any]) -> bool:
    return bool(head.get("value", {}).get("value") is True)


def _line(node: Mapping[str, Any]) -> int:
    row = node.get("location", {}).get("row", 0)
    return row if isinstance(row, int) else 0
