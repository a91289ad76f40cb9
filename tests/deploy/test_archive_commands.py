"""`runs export` and `runs purge`: what is refused before anybody is asked."""

from pathlib import Path

import pytest
from meshgate_deploy import archive_commands
from meshgate_deploy.archive_commands import export, purge
from meshgate_deploy.errors import IntegrityFailed, MeshError, NotFound, UsageError


@pytest.fixture
def asked(tmp_path, monkeypatch) -> list[dict]:
    """What the mesh of a project was asked; it answers a purge."""
    seen: list[dict] = []
    (tmp_path / "meshgate.yaml").touch()
    monkeypatch.chdir(tmp_path)

    def ask(_path, order) -> dict:
        seen.append(order)
        if order["method"] == "ExportRun":
            raise MeshError("no", why="run_purged: run-1 was purged")
        return {"deleted": 3, "shared": 1}

    monkeypatch.setattr(archive_commands, "ask_once", ask)
    return seen


def test_a_purge_says_what_it_relies_on(asked, capsys) -> None:
    """An archive, or plainly none; what is left for the sake of forks is told."""
    for how in ({}, {"exported": Path("x.tar.gz"), "without_export": True}):
        with pytest.raises(UsageError):
            purge("run-1", **how)
    with pytest.raises(NotFound):
        purge("run-1", exported=Path("nowhere.tar.gz"))
    Path("odd.tar.gz").write_bytes(b"nonsense")
    with pytest.raises(IntegrityFailed):
        purge("run-1", exported=Path("odd.tar.gz"))
    assert asked == []
    purge("run-1", without_export=True)
    assert asked[0]["request"] == {"run_id": "run-1", "digest": "", "without_export": True}


def test_an_export_leaves_no_half_of_a_file(asked, tmp_path) -> None:
    """A wrong name, a file that is there, a run that cannot be exported: nothing new in the folder."""
    (tmp_path / "run-run-1.tar.gz").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for out in (None, Path("run.zip")):
        with pytest.raises(UsageError):
            export("run-1", out=out)
    assert asked == []
    with pytest.raises(MeshError, match="was purged"):
        export("run-1", out=Path("other.tar.gz"))
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
