"""Home, cache and temporary folder of a program, which imports keep: changed after a fork.

A fork server imports with folders that nobody has, and then looks where their names were kept: in globals of
modules and in classes they can be changed. Where they are kept anywhere else, a program whose own folders
are others is executed.
"""

import gc
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

VARIABLES = ("HOME", "XDG_CACHE_HOME", "TMPDIR")
USER_BASE = "PYTHONUSERBASE"


class Homes:
    """The folders of a server, and who keeps them.

    Attributes:
        elsewhere: variables that may differ in a program without a difference to what was imported.
    """

    def __init__(self, folder: str, given: Mapping[str, str]) -> None:
        self._user_base = _user_base(given)
        self._marks = {name: os.path.join(folder, f"no-{name.lower()}") for name in VARIABLES}  # noqa: PTH118 - text
        for mark in self._marks.values():
            Path(mark).mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ.update(self._marks)
        tempfile.tempdir = None
        self._kept: list[tuple[Any, str, Any]] = []
        self.elsewhere: frozenset[str] = frozenset()

    def look(self) -> None:
        """Finds who keeps them, once everything is imported."""
        self._kept = [found for owner in _owners() for found in self._of(owner)]
        lost = [name for name in VARIABLES if self._elsewhere(self._marks[name])]
        # A cache may be found from home: what keeps one may keep the other.
        self.elsewhere = frozenset() if lost else frozenset({*VARIABLES, USER_BASE})

    def differ(self, environ: Mapping[str, str]) -> str:
        """The variable by which a program would find other packages of its user's."""
        return "" if _user_base(environ) == self._user_base else USER_BASE

    def settle(self, environ: Mapping[str, str]) -> None:
        """Puts a program's own folders where the server's were kept."""
        tempfile.tempdir = None
        home = os.path.expanduser("~")  # noqa: PTH111 - text
        own = {
            "HOME": home,
            "XDG_CACHE_HOME": environ.get("XDG_CACHE_HOME") or f"{home}/.cache",
            "TMPDIR": environ.get("TMPDIR") or "/tmp",  # noqa: S108 - where Python looks next
        }
        for owner, name, value in self._kept:
            text = str(value)
            for variable, mark in self._marks.items():
                text = text.replace(mark, own[variable])
            setattr(owner, name, type(value)(text))
        tempfile.tempdir = None

    def _of(self, owner: Any) -> Iterator[tuple[Any, str, Any]]:
        for name, value in list(vars(owner).items()):
            text = str(value) if isinstance(value, (str, PurePath)) else ""
            if any(mark in text for mark in self._marks.values()):
                yield owner, name, value

    def _elsewhere(self, mark: str) -> bool:
        """Whether a text with this mark is held by anything that `settle` does not reach."""
        known = {id(part) for owner, _, _ in self._kept for part in (vars(owner), *_dicts(owner))}
        paths = [value for _, _, value in self._kept if isinstance(value, PurePath)]
        known |= {id(part) for path in paths for part in (path, *gc.get_referents(path))}
        known |= {id(vars(self)), id(self._marks), id(self._kept), id(sys._getframe())}  # noqa: SLF001 - ours
        known |= {id(os.environ._data)}  # type: ignore[attr-defined]  # noqa: SLF001 - where it comes from
        known |= {id(found) for found in self._kept}
        for thing in gc.get_objects():
            if id(thing) not in known and type(thing).__name__ != "frame" and _holds(thing, mark):
                return True
        return False


def _holds(thing: Any, mark: str) -> bool:
    """Without a closure, which would hold the mark itself."""
    for held in gc.get_referents(thing):  # noqa: SIM110 - see above
        if type(held) is str and mark in held:
            return True
    return False


def _owners() -> Iterator[Any]:
    yield from [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    yield from [thing for thing in gc.get_objects() if isinstance(thing, type)]


def _dicts(owner: Any) -> list[dict[str, Any]]:
    """The dict that a class shows through a proxy."""
    return [part for part in gc.get_referents(owner) if type(part) is dict]


def _user_base(environ: Mapping[str, str]) -> str:
    return environ.get(USER_BASE) or f"{environ.get('HOME', '')}/.local"
