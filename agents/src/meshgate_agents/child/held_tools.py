"""The tools that an agent holds for a task, by name: the asking process tells them, its own compares.

Both build the crew from the same module. A tool that is made on a condition, or added by a script, may be
there in one of them alone: the agent would do its task without it, and nobody would know.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

MAX_LISTED = 100  # names; of more a digest is told, so that no crew is refused for what it holds
MAX_CHARACTERS = 64  # of a name that is told
DIGEST_CHARACTERS = 16  # at the end of one that was cut


def of(agent: Any, task: Any, *, index: "int | None") -> "list[str]":
    """What the project gives it. What CrewAI adds while the crew runs is in neither of these lists.

    Args:
        agent: who does the task.
        task: of its crew, or a coworker's.
        index: of the task in its crew; None for a coworker's, for which an agent has its own tools.
    """
    own = getattr(agent, "tools", None) or ()
    held = own if index is None else getattr(task, "tools", None) or own
    return sorted({_shown(str(getattr(tool, "name", ""))) for tool in held})


def told(names: "list[str]") -> "list[str] | str":
    """What travels with the task: the names, or one digest of all where there are many."""
    return names if len(names) <= MAX_LISTED else _digest(names)


def is_told(value: Any) -> bool:
    """Whether it has the form of what is told."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def lacks(asked: "list[str] | str", names: "list[str]") -> str:
    """What of the asking process's tools is not among these; empty for nothing."""
    if isinstance(asked, str):
        same = len(names) > MAX_LISTED and _digest(names) == asked
        return "" if same else f"more than {MAX_LISTED} tools that are not the {len(names)} here"
    return _listed({*asked} - {*names})


def has_more(asked: "list[str] | str", names: "list[str]") -> str:
    """What of these the asking process has not; empty for nothing."""
    return "" if isinstance(asked, str) else _listed({*names} - {*asked})


def _listed(names: Iterable[str]) -> str:
    return ", ".join(_shown(name) for name in sorted(names)[:MAX_LISTED])


def _shown(name: str) -> str:
    """The name itself, or what is as good: no longer than may be told, and in one line."""
    if name.isprintable() and len(name) <= MAX_CHARACTERS:
        return name
    start = "".join(
        one if one.isprintable() else "?" for one in name[: MAX_CHARACTERS - DIGEST_CHARACTERS - 1]
    )
    return f"{start}~{_hex(name.encode('utf-8', 'surrogatepass'))[:DIGEST_CHARACTERS]}"


def _digest(names: "list[str]") -> str:
    return _hex(json.dumps(names).encode("ascii"))


def _hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
