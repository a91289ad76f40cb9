"""`meshgate policy check|test` on a project's folder."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from meshgate_policies import check as policy_check
from meshgate_policies.errors import PolicyUnavailable

from meshgate_deploy import runtime
from meshgate_deploy.errors import DependencyUnavailable
from meshgate_deploy.manifest import load
from meshgate_deploy.state import MANIFEST


def check(project: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every problem of the project's policies.

    Raises:
        DependencyUnavailable: OPA is not there.
    """
    folder = project / load(project / MANIFEST).policies
    opa = _opa(say)
    try:
        return [asdict(problem) for problem in policy_check.check_policies(opa, folder)]
    except PolicyUnavailable as error:
        raise DependencyUnavailable("OPA did not check the policies", why=str(error)) from error


def test(project: Path, say: Callable[[str], None]) -> tuple[bool, str]:
    """Whether all Rego tests pass, and OPA's report.

    Raises:
        DependencyUnavailable: OPA is not there.
    """
    folder = project / load(project / MANIFEST).policies
    try:
        return policy_check.test_policies(_opa(say), folder)
    except PolicyUnavailable as error:
        raise DependencyUnavailable("OPA did not test the policies", why=str(error)) from error


def _opa(say: Callable[[str], None]) -> tuple[str, ...]:
    return runtime.find_or_install(progress=say).opa
