"""Patches a module right after it is executed, without importing anything early."""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

Patch = Callable[[ModuleType], None]


class PatchingFinder:
    """A meta path finder that lets the others find, and hooks into the loading of named modules.

    A patch that fails makes the import fail: nothing runs unpatched.
    """

    def __init__(self, *, patches: Mapping[str, Patch]) -> None:
        self._patches = dict(patches)
        self._searching: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Python's import protocol."""
        if fullname not in self._patches or fullname in self._searching:
            return None
        self._searching.add(fullname)  # the import lock of the module keeps other threads out
        try:
            spec = self._search(fullname, path, target)
        finally:
            self._searching.discard(fullname)
        if spec is not None and spec.loader is not None:
            self._hook(spec.loader, self._patches[fullname])
        return spec

    def _search(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> importlib.machinery.ModuleSpec | None:
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is not self and find is not None:
                spec: importlib.machinery.ModuleSpec | None = find(fullname, path, target)
                if spec is not None:
                    return spec
        return None

    @staticmethod
    def _hook(loader: Any, patch: Patch) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            patch(module)

        loader.exec_module = exec_module  # on this loader object only, which serves this one module


def install(patches: Mapping[str, Patch]) -> None:
    """Puts the finder first and patches what is loaded already."""
    sys.meta_path.insert(0, PatchingFinder(patches=patches))
    for name, patch in patches.items():
        if name in sys.modules:
            patch(sys.modules[name])
