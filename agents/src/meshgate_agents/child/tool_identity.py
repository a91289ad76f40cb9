"""Which tool is this object? The same answer in the agent's process and in the tool host.

Standard library only: the agent may run in an interpreter where meshgate is not installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from typing import Any

# What every CrewAI tool has, or what says nothing about which tool it is.
_COMMON_FIELDS = frozenset(
    {
        "name", "description", "args_schema", "result_schema", "cache_function", "func", "env_vars",
        "result_as_answer", "max_usage_count", "current_usage_count", "description_updated",
        "tool_type", "package_dependencies",
    }
)  # fmt: skip


def describe(tool: object) -> dict[str, str]:
    """Names a live CrewAI tool object.

    Returns:
        `kind` (function or class), `qualname` (`module:qualname`, or `file.py:qualname` for what
        the entry script defines), `name` (what the model sees; not an identity) and
        `fields_sha256` over the constructor fields that are JSON.
    """
    function = getattr(tool, "func", None)
    is_function = callable(function) and type(tool).__name__ == "Tool"
    subject: Any = function if is_function else type(tool)
    return {
        "kind": "function" if is_function else "class",
        "qualname": f"{module_name(subject)}:{subject.__qualname__}",
        "name": str(getattr(tool, "name", "")),
        "fields_sha256": _fields_digest({} if is_function else _fields(tool)),
    }


def module_name(subject: object) -> str:
    """The module of a class or function; the entry script by its path below the project."""
    name = getattr(subject, "__module__", "")
    module = sys.modules.get(name)
    path = getattr(module, "__file__", None)
    if name not in ("__main__", "__mp_main__") and not name.startswith("meshgate_entry_"):
        return name
    root = os.environ.get("MESHGATE_PROJECT_ROOT") or os.getcwd()
    return os.path.relpath(os.path.abspath(path), os.path.realpath(root)) if path else name


def _fields(tool: object) -> dict[str, object]:
    fields = getattr(type(tool), "model_fields", {})
    return {name: getattr(tool, name, None) for name in fields if name not in _COMMON_FIELDS}


def _fields_digest(fields: dict[str, object]) -> str:
    plain = {}
    for name, value in fields.items():
        if value is None:
            continue
        try:
            plain[name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            continue  # a live object: not a constructor value that a manifest could hold
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
