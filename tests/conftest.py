"""Fixtures that several packages' tests share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def opa_command() -> tuple[str, ...]:
    """A real OPA, built if this machine has none."""
    from meshgate_deploy import runtime

    return runtime.find_or_install(progress=print).opa
