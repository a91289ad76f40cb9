"""Installs meshgate's interception at interpreter start, then runs the project's own sitecustomize.

The launcher puts this folder, and nothing else of ours, on PYTHONPATH. Plain `os.path`: this runs
at the start of every interpreter below a launcher, and pathlib is not loaded yet.
"""
# ruff: noqa: INP001, PTH100, PTH118, PTH120 - no package; see above

import importlib
import importlib.machinery
import importlib.util
import os
import sys

OLDEST_PYTHON = (3, 10)  # CrewAI cannot be imported by anything older
FAILED = 125
HERE = os.path.dirname(os.path.abspath(__file__))


def _install() -> None:
    """Loads the package above this folder under a private name and installs the import hook."""
    package = os.path.dirname(HERE)
    spec = importlib.util.spec_from_file_location(
        "_meshgate_child", os.path.join(package, "__init__.py"), submodule_search_locations=[package]
    )
    if spec is None or spec.loader is None:
        raise ImportError("meshgate's child side is not where its sitecustomize is")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    importlib.import_module("_meshgate_child.install").install()


def _chain() -> None:
    """Runs the sitecustomize that this one hides, under its own name."""
    elsewhere = [entry for entry in sys.path if os.path.abspath(entry or ".") != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


if sys.version_info >= OLDEST_PYTHON:
    try:
        _install()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(FAILED)  # site.py would print the error and go on without us
        raise
_chain()
