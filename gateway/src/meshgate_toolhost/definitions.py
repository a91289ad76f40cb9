"""What the mesh is told about a tool, and the digest that pins it."""

import hashlib
import json
from collections.abc import Iterable, Mapping

from meshgate_toolhost.loader import LoadedTool


def definition_digest(tool: LoadedTool) -> str:
    """Hex SHA-256 over id, description, schema and identity: a change of any is another tool."""
    content = {
        "id": tool.id,
        "description": tool.description,
        "schema": tool.schema,
        "identity": dict(tool.identity),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def definitions(tools: Iterable[LoadedTool]) -> Mapping[str, object]:
    """The content of the definitions file, by tool id."""
    return {
        tool.id: {
            "description": tool.description,
            "schema": tool.schema,
            "identity": dict(tool.identity),
            "definition_sha256": definition_digest(tool),
        }
        for tool in tools
    }
