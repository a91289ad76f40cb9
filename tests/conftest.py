"""Fixtures that every folder may use. Keep it tiny."""

import os
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
