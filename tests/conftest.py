"""Fixtures that every folder may use. Keep it tiny."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def opa_binary() -> Path:
    """An OPA: the one that MESHGATE_OPA names, else found or built as `meshgate runtime install` does."""
    named = os.environ.get("MESHGATE_OPA")
    if named:
        return Path(named)
    from meshgate_deploy import runtime

    return Path(runtime.find_or_install(progress=print).opa[0])


@pytest.hookimpl(wrapper=True)  # before any other: xdist reads the marks in a hook of its own
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """For `-n 2 --dist loadgroup --no-loadscope-reorder`: one process plays whole meshes, the other the rest.

    Meshes come first, since they take longest; two at a time would be too much for a small machine.
    """
    if config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("plane") is None)
        for item in items:
            group = "meshes" if item.get_closest_marker("plane") else item.path.stem
            item.add_marker(pytest.mark.xdist_group(group))
    yield
