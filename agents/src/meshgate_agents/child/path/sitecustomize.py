"""Put on PYTHONPATH by the launcher: waits until CrewAI's tools are imported, then wraps them.

Nothing is imported early. A sitecustomize that was there before ours is run as well.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
_TARGETS = {"crewai.tools.base_tool": "install", "crewai.hooks.dispatch": "install_hook"}


def _load_child():
    """Imports our modules by their place, under a name nobody else uses."""
    if "_meshgate_child" in sys.modules:
        return sys.modules["_meshgate_child.interception"]
    folder = os.path.dirname(_HERE)
    spec = importlib.util.spec_from_file_location(
        "_meshgate_child", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["_meshgate_child"] = package
    spec.loader.exec_module(package)
    from _meshgate_child import interception

    return interception


class _Loader(importlib.abc.Loader):
    def __init__(self, inner):
        self._inner = inner

    def create_module(self, spec):
        return self._inner.create_module(spec)

    def exec_module(self, module):
        self._inner.exec_module(module)
        getattr(_load_child(), _TARGETS[module.__name__])(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in _TARGETS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


_finder = _Finder()
if os.environ.get("MESHGATE_SOCKET"):
    sys.meta_path.insert(0, _finder)


def _chain():
    """Runs the sitecustomize that ours hides, if there is one."""
    places = [p for p in sys.path if os.path.abspath(p or ".") != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", places)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


_chain()
