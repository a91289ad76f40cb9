"""Where what an agent remembers lies: CrewAI's memory is shared by all who open the same folder.

In one process a crew's agents have one memory. In several they have it if it lies in the same place for each.
A store that is no folder (a service, say) is the project's own affair.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from . import colleagues

STORAGE = "CREWAI_STORAGE_DIR"


def lies_apart(agent: Any, to: "colleagues.Colleague | None") -> bool:
    """Whether the agent's process would open another folder: CrewAI's own is one per app, unless named."""
    if to is None or colleagues.is_own(to) or to.same_storage:
        return False
    path, storage = _folder(agent), os.environ.get(STORAGE)
    return path is not None and bool(storage) and path.resolve().is_relative_to(Path(str(storage)).resolve())


def is_withheld(agent: Any) -> bool:
    """Whether this process may not write there: CrewAI would go on, and remember nothing."""
    path = _folder(agent)
    if path is None:
        return False
    try:
        with tempfile.TemporaryFile(dir=path):  # tried, not asked: access(2) knows nothing of Landlock
            return False
    except OSError:
        return True


def _folder(agent: Any) -> "Path | None":
    """Of its own memory, else of its crew's; None without one, and for a store that is no folder."""
    return _place(getattr(agent, "memory", None) or getattr(getattr(agent, "crew", None), "_memory", None))


def has_any(crew: Any) -> bool:
    """Whether a crew or an agent of it remembers in a folder: it knows what was there when it was built."""
    agents = [*(getattr(crew, "agents", None) or ()), getattr(crew, "manager_agent", None)]
    found = [getattr(crew, "_memory", None), *(getattr(one, "memory", None) for one in agents)]
    return any(_place(one) is not None for one in found)


def _place(memory: Any) -> "Path | None":
    backing = getattr(memory, "_memory", None) or memory  # a scope or a slice shows a part of one
    path = getattr(getattr(backing, "_storage", None), "_path", None)
    return Path(path) if isinstance(path, (str, Path)) else None
