"""A mesh with two agents and one tool host, and a certificate in the wrong hands."""

from collections.abc import Iterator

import pytest
from fakes.attacked_mesh import MESH, PROJECT, Attacked, at_work
from fakes.dapr_wire import Enrolled
from fakes.live_mesh import LiveMesh


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """The mesh, up; one for a whole file."""
    mesh = LiveMesh(tmp_path_factory.mktemp("m"), PROJECT)
    try:
        mesh.up()
        yield Attacked(mesh)
    finally:
        mesh.remove()


@pytest.fixture(scope="module")
def certificate(attacked: Attacked) -> Enrolled:
    """An agent's Dapr certificate, in the wrong hands."""
    answer, enrolled = attacked.enrol("nightly", attacked.mesh.secret("nightly.enrol"))
    assert enrolled is not None, answer
    assert enrolled.spiffe_id == f"spiffe://public/ns/{MESH}/nightly"
    return enrolled


@pytest.fixture(scope="module")
def victim(attacked: Attacked) -> Iterator[None]:
    """The other agent at work: its worker plays a run, so its workflow waits for that."""
    with at_work(attacked, "weekly", "victim"):
        yield
