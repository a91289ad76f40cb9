"""Entries of the manifest's `tools:` as typed values, and how a reference becomes an object."""

import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType

from meshgate_agents.child.tool_identity import SCRIPT_MODULE_PREFIX

from meshgate_toolhost.errors import ToolNotLoadable

_REFERENCE = re.compile(r"(?P<module>[^:]+):(?P<attribute>[A-Za-z_][A-Za-z0-9_.]*)")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_ENDS = 'it ends the process when imported; put its main part under `if __name__ == "__main__":`'
_KEYS = {
    "tool": {"tool", "name"},
    "function": {"function", "name"},
    "class": {"class", "config", "name"},
    "factory": {"factory", "name"},
}


class EntryKind(StrEnum):
    """How an entry names its tool; TOOL takes whatever the reference gives."""

    TOOL = "tool"
    FUNCTION = "function"
    CLASS = "class"
    FACTORY = "factory"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry.

    Attributes:
        written: as in the manifest, for messages.
        module: a module's name, or the path of an entry script, relative to the project.
        attribute: what to take from it; dots reach into classes.
        config: constructor arguments of a class.
        name: the tool's name, if the entry gives one.
    """

    written: object
    kind: EntryKind
    module: str
    attribute: str
    config: dict[str, object]
    name: str | None


def parse(written: object) -> Entry:
    """Reads an entry.

    Raises:
        ToolNotLoadable: not of a known form.
    """
    if isinstance(written, str):
        written_map: dict[str, object] = {"tool": written}
    elif isinstance(written, dict):
        written_map = written
    else:
        raise ToolNotLoadable(written, 'write "module:name" or a mapping')
    kinds = [kind for kind in _KEYS if kind in written_map]
    if len(kinds) != 1:
        raise ToolNotLoadable(written, "write one of `class:`, `factory:`, `function:`")
    kind = kinds[0]
    unknown = set(written_map) - _KEYS[kind]
    if unknown:
        raise ToolNotLoadable(written, f"unknown key {min(unknown)!r}; known: {sorted(_KEYS[kind])}")
    match = _REFERENCE.fullmatch(str(written_map[kind]))
    if match is None:
        raise ToolNotLoadable(written, 'a reference is "module:name" or "script.py:name"')
    config = written_map.get("config") or {}
    if not isinstance(config, dict):
        raise ToolNotLoadable(written, "`config` is a mapping of constructor arguments")
    name = written_map.get("name")
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ToolNotLoadable(written, "`name` is lower case letters, digits and underscores")
    return Entry(written, EntryKind(kind), match["module"], match["attribute"], config, name)


def resolve(entry: Entry, project_root: Path) -> object:
    """The object an entry refers to.

    Raises:
        ToolNotLoadable: no such module, file or name.
        Exception: whatever the module raises when it is imported.
    """
    module = _module(entry, project_root)
    found: object = module
    for part in entry.attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise ToolNotLoadable(entry.written, f"{entry.module} has no {entry.attribute}") from error
    return found


def _module(entry: Entry, project_root: Path) -> ModuleType:
    if entry.module.endswith(".py"):
        return _script(entry, project_root)
    try:
        return importlib.import_module(entry.module)
    except SystemExit as error:
        raise ToolNotLoadable(entry.written, _ENDS) from error
    except ModuleNotFoundError as error:
        name = error.name or ""
        if entry.module == name or entry.module.startswith(f"{name}."):
            raise ToolNotLoadable(entry.written, f"no module {name!r} under {project_root}") from error
        raise ToolNotLoadable(entry.written, f"{entry.module} needs {name!r}: not installed here") from error


def _script(entry: Entry, project_root: Path) -> ModuleType:
    """An entry script under a name of our own: its `if __name__ == "__main__":` part does not run."""
    path = (project_root / entry.module).resolve()
    if not path.is_relative_to(project_root):
        raise ToolNotLoadable(entry.written, f"{path} lies outside of {project_root}")
    if not path.is_file():
        raise ToolNotLoadable(entry.written, f"no file {path}")
    name = SCRIPT_MODULE_PREFIX + re.sub(r"\W", "_", str(path.relative_to(project_root)))
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise ToolNotLoadable(entry.written, f"{path} is no Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses and pydantic look their module up by name
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # a script imports its neighbours
    try:
        specification.loader.exec_module(module)
    except SystemExit as error:
        del sys.modules[name]
        raise ToolNotLoadable(entry.written, _ENDS) from error
    except BaseException:
        del sys.modules[name]
        raise
    return module
