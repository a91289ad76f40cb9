"""`runs fork` and `runs rerun`: what is asked of the gateway, of the person."""

import base64
import sys
from pathlib import Path

import pytest
from meshgate_deploy import branch_commands
from meshgate_deploy.branch_commands import explained, fork, rerun
from meshgate_deploy.errors import Denied, DependencyUnavailable, MeshError, NotFound, UsageError

REFUND = {"step": 4, "tool": "orders.refund", "effect": "irreversible", "state": "done", "call_id": "c1"}


class Mesh:
    """A mesh whose gateway answers as told."""

    def __init__(self, project: Path) -> None:
        self.project, self.effects = project, [REFUND]
        self.purged, self.error = "", None
        self.asked: list[dict] = []

    def ask(self, _path, order) -> dict:
        """What the gateway says."""
        request = order["request"]
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        new = request["run_id"] if request.get("dry_run") else request["new_run_id"]
        return {
            "run": {"run_id": new, "purged": self.purged}, "effects": self.effects, "steps": 6,
        }  # fmt: skip


@pytest.fixture
def mesh(tmp_path, monkeypatch) -> Mesh:
    """In a project of its own, with nobody at the keyboard."""
    (tmp_path / "meshgate.yaml").touch()
    made = Mesh(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(branch_commands, "ask_once", made.ask)
    monkeypatch.setattr(sys, "stdin", Terminal(there=False))
    return made


class Terminal:
    """Standard input, with or without somebody at it."""

    def __init__(self, *, there: bool) -> None:
        self.there = there

    def isatty(self) -> bool:
        """Whether somebody can be asked."""
        return self.there


def test_without_a_terminal_effects_need_a_yes(mesh, capsys) -> None:
    """Usage, nothing made; what may happen again is told on stderr, each with its step."""
    with pytest.raises(UsageError):
        fork("run-1", from_step=3)
    assert [request.get("dry_run") for request in mesh.asked] == [True]


def test_a_yes_makes_it(mesh, capsys) -> None:
    """Under the id that the gateway stored, to be played where we are; the id is all that stdout gets."""
    fork("run-1", from_step=3, new_id="mine", yes=True)
    plan, made = mesh.asked
    assert made == {
        "run_id": "run-1", "new_run_id": "mine", "origin": "fork", "steps": 3, "edit_json": "",
        "cwd": str(mesh.project),
    }  # fmt: skip
    assert plan == {**made, "dry_run": True}
    assert capsys.readouterr().out == "mine\n"


def test_an_answer_that_did_not_come_can_be_asked_for_again(mesh, monkeypatch) -> None:
    """The fork may be there: the hint names its id, under which it is made once."""

    def ask(path, order) -> dict:
        if not order["request"].get("dry_run"):
            raise DependencyUnavailable("the gateway did not answer BranchRun", why="away")
        return mesh.ask(path, order)

    monkeypatch.setattr(branch_commands, "ask_once", ask)
    with pytest.raises(DependencyUnavailable) as caught:
        fork("r1", from_step=3, yes=True)
    assert f"--run-id {mesh.asked[0]['new_run_id']}" in caught.value.next_step


def test_without_effects_nobody_is_asked(mesh) -> None:
    """A re-run of a run that only read; the new id is one of our making."""
    mesh.effects = []
    rerun("run-1")
    assert mesh.asked[1]["origin"] == "rerun"
    assert mesh.asked[1]["steps"] == 0
    assert len(mesh.asked[1]["new_run_id"]) == 36


@pytest.mark.parametrize("answer", [True, False])
def test_a_person_decides(mesh, monkeypatch, answer) -> None:
    """No is the default, and leaves nothing behind."""
    asked = []
    monkeypatch.setattr(sys, "stdin", Terminal(there=True))
    monkeypatch.setattr("typer.confirm", lambda text, **more: asked.append((text, more)) or answer)
    if answer:
        rerun("run-1")
    else:
        with pytest.raises(MeshError, match="nothing was made"):
            rerun("run-1")
    assert asked == [("rerun run-1 all the same?", {"default": False, "err": True})]
    assert len(mesh.asked) - 1 == int(answer)


def test_an_edit_is_handed_over_as_it_is(mesh, tmp_path) -> None:
    """The gateway reads it; an unreadable or empty file is told apart."""
    path = tmp_path / "step.json"
    path.write_bytes(b'{"step": 3}')
    fork("run-1", from_step=3, edit=path, yes=True)
    assert base64.b64decode(mesh.asked[1]["edit_json"]) == b'{"step": 3}'
    with pytest.raises(NotFound):
        fork("run-1", from_step=3, edit=tmp_path / "nowhere.json", yes=True)
    path.write_bytes(b"")
    with pytest.raises(UsageError):
        fork("run-1", from_step=3, edit=path, yes=True)


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        (MeshError("x", why="run_not_ended: run-1 is running: "), MeshError, "run-1 has not ended"),
        (MeshError("x", why="edit_invalid: step is a number"), UsageError, "the edit cannot be used"),
        (Denied("x", why="run_foreign: run-1 is of y"), Denied, "belongs to an app"),
        (NotFound("no such run or call", why="run_unknown: no such run"), NotFound, "no such run"),
    ],
)
def test_a_refusal_is_told_in_words(mesh, given, kind, said) -> None:
    """With the exit code of its kind, and the gateway's detail as the reason."""
    mesh.error = given
    with pytest.raises(MeshError) as caught:
        rerun("run-1")
    assert type(caught.value) is kind
    assert said in caught.value.what
    assert explained(given, "run-1").why in given.why
