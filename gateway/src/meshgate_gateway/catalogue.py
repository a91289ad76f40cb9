"""Every tool and app of the mesh, frozen at start from a file the supervisor wrote."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jsonschema import Draft202012Validator

Effect = Literal["read", "reversible", "external", "irreversible", "memory"]
DEFAULT_DEADLINE_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool as the operator declared and its host described it.

    Attributes:
        id: canonical, `host.tool`.
        host: the app that runs it.
        effect: the operator's word, never the tool's.
        idempotent: takes the call's key, so it may run again after a crash.
        deadline_seconds: from take to outcome.
        definition_sha256: of name, description and schemas.
        validator: of the arguments' JSON Schema.
    """

    id: str
    host: str
    kind: str
    description: str
    schema_json: str
    effect: str
    idempotent: bool
    deadline_seconds: float
    definition_sha256: str
    validator: Draft202012Validator


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Tools by id, and apps by name with their kind: crew, program or toolhost."""

    tools: Mapping[str, Tool]
    apps: Mapping[str, str]


def load(path: Path) -> Catalogue:
    """Reads the file.

    Raises:
        OSError, ValueError, KeyError: it is missing or not a catalogue; the gateway must not start.
    """
    content = json.loads(path.read_text())
    tools = {name: _tool(name, row) for name, row in content["tools"].items()}
    return Catalogue(tools=tools, apps={name: row["kind"] for name, row in content["apps"].items()})


def _tool(name: str, row: Mapping[str, object]) -> Tool:
    schema = row["schema"]
    if not isinstance(schema, dict):
        raise TypeError(f"the schema of {name} is no object")
    # An argument the schema does not name is a mistake or an attempt, never noise.
    schema = {"additionalProperties": False, **schema}
    Draft202012Validator.check_schema(schema)
    return Tool(
        id=name,
        host=str(row["host"]),
        kind=str(row.get("kind", "tool")),
        description=str(row["description"]),
        schema_json=json.dumps(schema, sort_keys=True),
        effect=str(row["effect"]),
        idempotent=row["idempotent"] is True,
        deadline_seconds=float(str(row.get("deadline_seconds") or DEFAULT_DEADLINE_SECONDS)),
        definition_sha256=str(row["definition_sha256"]),
        validator=Draft202012Validator(schema),
    )
