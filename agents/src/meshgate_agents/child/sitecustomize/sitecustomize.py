"""Installs meshgate's interception at interpreter start, then runs the project's own sitecustomize.

The launcher puts this folder, and nothing else of ours, on PYTHONPATH.
"""

import importlib.machinery
import importlib.util
import os
import sys

OLDEST_PYTHON = (3, 10)  # CrewAI cannot be imported by anything older
FAILED = 125


def _install():
    """Loads the package beside this folder under a private name and installs the import hook."""
    here = os.path.dirname(os.path.abspath(__file__))
    package = os.path.dirname(here)
    spec = importlib.util.spec_from_file_location(
        "_meshgate_child", os.path.join(package, "__init__.py"), submodule_search_locations=[package]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    importlib.import_module("_meshgate_child.install").install()


def _chain():
    """Runs the sitecustomize that this one hides, under its own name."""
    here = os.path.dirname(os.path.abspath(__file__))
    elsewhere = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


if sys.version_info >= OLDEST_PYTHON:
    installed = False
    try:
        _install()
        installed = True
    finally:
        if not installed:  # site.py would print the error and go on without us
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(FAILED)
_chain()
