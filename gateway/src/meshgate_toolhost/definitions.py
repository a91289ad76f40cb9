"""What the host serves, as data: written for the supervisor before any port is opened."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import rfc8785

from meshgate_toolhost.errors import ToolNotLoadable
from meshgate_toolhost.model import LoadedTool


def digest(tool: LoadedTool) -> str:
    """SHA-256, hex, over the RFC 8785 form of id, description and both schemas.

    A call is decided on for one definition; a host that has another refuses to run it.

    Raises:
        ToolNotLoadable: a schema that is no JSON.
    """
    content = {
        "name": tool.tool_id,
        "description": tool.description,
        "schema": tool.schema,
        "result_schema": tool.result_schema,
    }
    try:
        return hashlib.sha256(rfc8785.dumps(content)).hexdigest()  # type: ignore[arg-type]
    except (rfc8785.CanonicalizationError, UnicodeError) as error:
        raise ToolNotLoadable(tool.tool_id, f"its schema has no canonical form: {error}") from error


def describe_all(tools: Mapping[str, LoadedTool]) -> dict[str, dict[str, object]]:
    """The content of the definitions file."""
    return {
        tool_id: {
            "description": tool.description,
            "schema": tool.schema,
            "result_schema": tool.result_schema,
            "identity": tool.identity,
            "definition_sha256": digest(tool),
        }
        for tool_id, tool in sorted(tools.items())
    }


def write(path: Path, tools: Mapping[str, LoadedTool]) -> None:
    """Writes the definitions, whole or not at all, readable by their owner alone."""
    write_private(path, json.dumps(describe_all(tools), indent=2, ensure_ascii=False) + "\n")


def write_private(path: Path, text: str) -> None:
    """Replaces a file in one step, mode 0600."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
