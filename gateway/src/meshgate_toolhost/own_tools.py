"""Describes the tools that an agent's app runs in its own process, and ends. Serves nothing.

    python -m meshgate_toolhost.own_tools --config FILE

It is started without a secret: a tool that needs one to be built, or that names one it reads, is refused.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from meshgate_toolhost import definitions, entries, loader, settings
from meshgate_toolhost.entries import EntryKind
from meshgate_toolhost.errors import SettingsInvalid, ToolNotLoadable
from meshgate_toolhost.model import LoadedTool

_log = logging.getLogger("meshgate_toolhost.own_tools")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    app: str = Field(pattern=r"^[a-z0-9-]{1,63}$")
    project_root: Path
    tools: list[str | dict[str, object]]
    definitions_file: Path


def load(written: list[str | dict[str, object]], *, app: str, project_root: Path) -> Mapping[str, LoadedTool]:
    """Loads an app's own tools and refuses what an agent's process cannot run as it is meant.

    Raises:
        ToolNotLoadable: no CrewAI tool, one that reads credentials, or one with a `run` of its own.
    """
    tools = loader.load_all(host=app, written=written, project_root=project_root)
    for one in written:
        entry = entries.parse(one)
        found = entries.resolve(entry, project_root)
        kind = found if isinstance(found, type) else type(found)
        if entry.kind is EntryKind.FACTORY and callable(found):
            kind, found = type(made := found()), made
        check(one, kind, found)
    return tools


def check(written: object, kind: type, found: object) -> None:
    """Refuses one tool, if it has to be.

    Raises:
        ToolNotLoadable: why, and where it belongs.
    """
    if not hasattr(kind, "_run"):
        raise ToolNotLoadable(written, "no tool of CrewAI; make it one with crewai.tools.tool")
    needed = sorted(str(getattr(one, "name", one)) for one in _variables(kind, found))
    if needed:
        reads = ", ".join(needed)
        raise ToolNotLoadable(written, f"it reads credentials ({reads}); put it under a tool host")
    for name in ("run", "arun"):
        if not str(getattr(kind, name).__module__).startswith("crewai.tools."):
            raise ToolNotLoadable(written, f"it has a `{name}` of its own; put its body into `_run`")


def _variables(kind: type, found: object) -> list[object]:
    """What CrewAI's own declaration says of environment variables."""
    if not isinstance(found, type):
        return list(getattr(found, "env_vars", None) or [])
    declared = getattr(kind, "model_fields", {}).get("env_vars")
    return list(declared.get_default(call_default_factory=True) or []) if declared else []


def main(argv: list[str] | None = None) -> int:
    """Writes the definitions; 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="meshgate-own-tools", description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True)
    chosen = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        file = _File.model_validate(json.loads(chosen.config.read_text()))
        settings.refuse_interception()
        root = file.project_root.resolve()
        for folder in (root / "src", root):
            if folder.is_dir() and str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
        os.chdir(root)
        tools = load(file.tools, app=file.app, project_root=root)
        definitions.write(file.definitions_file.absolute(), tools)
    except (OSError, ValidationError, ValueError, SettingsInvalid, ToolNotLoadable) as error:
        _log.error("the tools of %s cannot be described: %s", chosen.config.stem, error)
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a thread that a module left cannot hold it
