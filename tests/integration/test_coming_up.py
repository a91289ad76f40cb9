"""Parts of a mesh end while it still comes up."""

import pytest
from integration.fault_mesh import Mesh, eventually
from meshgate_deploy.control import ask_once

pytestmark = [pytest.mark.plane, pytest.mark.timeout(300)]

LOST = ("dapr-nightly", "dapr-orders", "dapr-gateway")


def lose(mesh: Mesh) -> None:
    """Kills each sidecar once it has said that it is ready; the mesh is not up yet."""
    log = mesh.root / "up.log"
    for name in LOST:
        eventually(lambda name=name: f"{name}: ready" in log.read_text(), f"{name} is ready")
        mesh.kill(name)
    assert "the mesh is up" not in log.read_text()


def test_a_sidecar_that_ends_while_the_mesh_comes_up_is_started_again(tmp_path) -> None:
    """The gateway's, a host's and a program's: all are there in the end, and a call goes through."""
    mesh = Mesh.start(tmp_path, meanwhile=lose)
    try:
        rows = {row["name"]: row for row in ask_once(mesh.state.control, {"op": "status"})["processes"]}
        assert {name: (rows[name]["state"], rows[name]["restarts"]) for name in LOST} == dict.fromkeys(
            LOST, ("ready", 1)
        )
        with mesh.running(("nightly.py", "after", "pay:o-after")) as (run,):
            run.go()
            assert run.ended().lines("GOT") == ["pay o-after paid"]
        assert len(mesh.effects("o-after")) == 1
    finally:
        mesh.close()
