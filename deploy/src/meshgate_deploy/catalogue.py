"""The tool catalogue: what the hosts define, with the manifest's rules over it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meshgate_deploy import delegations, own_tools
from meshgate_deploy.errors import DependencyUnavailable, ManifestError, Problem
from meshgate_deploy.manifest import Manifest, ToolRule
from meshgate_deploy.manifest_lines import suggest


def read_definitions(files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Tool id to definition, over all hosts.

    Raises:
        DependencyUnavailable: a host's or app's file is no JSON object, or defines a tool of another one.
    """
    definitions: dict[str, dict[str, Any]] = {}
    for host, path in files.items():
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DependencyUnavailable(f"{host} wrote no usable definitions", why=str(error)) from error
        for tool, definition in found.items():
            if tool.partition(".")[0] != host:
                raise DependencyUnavailable(f"{host} defines {tool!r}", why="ids are <host>.<tool>")
            definitions[tool] = definition
    return definitions


def catalogue(manifest: Manifest, definitions: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The gateway's catalogue.

    Raises:
        ManifestError: the manifest has a rule for a tool that no host defines, or none for one that an app
            is to run itself.
    """
    own_tools.require_rules(manifest, definitions)
    unknown = [tool for tool in manifest.tools if tool not in definitions and not tool.startswith("crewai.")]
    if unknown:
        raise ManifestError(
            [
                Problem(
                    "meshgate.yaml", 0, f"no tool host defines {tool!r}", suggest(tool, list(definitions))
                )
                for tool in unknown
            ]
        )
    kinds: dict[str, str] = {**manifest.runners, **dict.fromkeys(manifest.toolhosts, "toolhost")}
    return {
        "tools": {
            tool: _entry(tool, definition, manifest.tools.get(tool, ToolRule()))
            for tool, definition in sorted(definitions.items())
        }
        | delegations.entries(manifest),
        "apps": {
            app: {"kind": kind, "commands": manifest.takes_commands(app)} for app, kind in kinds.items()
        },
    }


def _entry(tool: str, definition: Mapping[str, Any], rule: ToolRule) -> dict[str, Any]:
    return {
        "host": tool.partition(".")[0],
        "kind": "tool",
        "execute": rule.execute,
        "description": definition.get("description", ""),
        "schema": definition["schema"],
        "effect": rule.effect,
        "idempotent": rule.idempotent,
        "repeat": rule.repeat or ("allow" if rule.effect == "read" else "same"),
        "deadline_seconds": rule.deadline_seconds or own_tools.DEFAULT_DEADLINE_SECONDS,
        "definition_sha256": definition["definition_sha256"],
        "reconcile": rule.reconcile is not None,
    }
