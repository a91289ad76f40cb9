"""The policies that are tested are those that are packed, and an engine starts on no others."""

from pathlib import Path

import pytest
from meshgate_deploy import manifest as manifests
from meshgate_deploy.errors import DependencyUnavailable, PolicyProblems, UsageError
from meshgate_deploy.policy_plane import PolicyPlane
from meshgate_deploy.state import State

MANIFEST = """
apiVersion: meshgate/v1
mesh: small
trustDomain: small.example
programs: {nightly: {run: [python, main.py]}}
policies: rules
"""
RULE = 'package mesh.agents.nightly\n\nallow contains "orders.lookup"\n'
TEST = """package mesh.agents.nightly_test

import data.mesh.agents.nightly

test_lookup if "orders.lookup" in nightly.allow
"""


@pytest.fixture
def plane(tmp_path: Path, opa_binary: Path) -> PolicyPlane:
    """The policies of a small project."""
    project = tmp_path / "project"
    (project / "rules").mkdir(parents=True)
    (project / "rules" / "nightly.rego").write_text(RULE)
    (project / "rules" / "nightly_test.rego").write_text(TEST)
    (project / "meshgate.yaml").write_text(MANIFEST)
    loaded = manifests.load(project / "meshgate.yaml")
    state = State(project=project, sockets=tmp_path / "s")
    return PolicyPlane(manifest=loaded, state=state, opa=(str(opa_binary),))


def _rules(plane: PolicyPlane) -> Path:
    return plane._state.project / "rules"


def test_an_edit_in_between_is_in_neither(plane) -> None:
    """The file changes after the build: the tests see what was packed."""
    with plane.sources() as sources:
        built = plane.build(sources)
        (_rules(plane) / "nightly.rego").write_text(RULE.replace("lookup", "refund"))
        assert plane.test(sources) == 1
        assert plane.build(sources).sha256 == built.sha256
    with plane.sources() as sources:
        assert plane.build(sources).sha256 != built.sha256
        with pytest.raises(PolicyProblems):
            plane.test(sources)


def test_problems_name_the_projects_file(plane) -> None:
    """Not the copy, which is gone when they are read."""
    rule = _rules(plane) / "nightly.rego"
    rule.write_text("package mesh.agents.nightly\n\nallow contains\n")
    with pytest.raises(PolicyProblems) as caught, plane.sources() as sources:
        plane.build(sources)
    assert {problem.file for problem in caught.value.problems} == {str(rule)}
    rule.write_text(RULE.replace("lookup", "refund"))
    with pytest.raises(PolicyProblems) as caught, plane.sources() as sources:
        plane.test(sources)
    assert {problem.file for problem in caught.value.problems} == {str(_rules(plane) / "nightly_test.rego")}


def test_nothing_of_the_copy_is_left(plane) -> None:
    """Also when the policies cannot be used."""
    with plane.sources() as sources:
        assert sources.folder.stat().st_mode & 0o777 != 0
        assert sources.folder.parent.stat().st_mode & 0o077 == 0
    with pytest.raises(UsageError), plane.sources():
        raise UsageError("stopped by the test")
    assert list((plane._state.generated / "policy").iterdir()) == []


def test_policies_that_hold_our_own_files_are_refused(plane) -> None:
    """The copy would contain itself."""
    plane._manifest = plane._manifest.model_copy(update={"policies": "."})
    with pytest.raises(UsageError), plane.sources():
        pass


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_an_engine_starts_on_the_bundle_that_was_activated_or_not_at_all(plane, how) -> None:
    """Its first start and each restart read the file again."""
    with plane.sources() as sources:
        built = plane.build(sources)
    plane._state.sockets.mkdir()
    service = plane.engine(built).service
    assert service.prepare(True).command.name == "opa"
    if how == "gone":
        built.path.unlink()
    else:
        built.path.write_bytes(built.path.read_bytes() + b"\0")
    with pytest.raises(DependencyUnavailable):
        service.prepare(False)
