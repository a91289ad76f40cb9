"""Runs of a real crew are forked, run again, exported and purged; each effect is counted by a file."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from integration.fault_mesh import MESHGATE, Mesh

pytestmark = [pytest.mark.plane, pytest.mark.timeout(600)]

ORDER = "o-past"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory) -> Iterator[Mesh]:
    """One mesh, in which a crew has looked an order up and paid it."""
    made = Mesh.start(tmp_path_factory.mktemp("h"))
    try:
        made.healed()
        done = cli(
            made, "run", "--app", "nightly", "--run-id", "past", "--", sys.executable, "history.py", ORDER
        )
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        made.close()


def cli(mesh: Mesh, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, with nobody at the keyboard."""
    return subprocess.run(
        [MESHGATE, *arguments], cwd=mesh.root, check=False, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=180,
    )  # fmt: skip


def runs(mesh: Mesh, *arguments: str) -> str:
    """A command of `meshgate runs` that does what it says; what it prints."""
    done = cli(mesh, "runs", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def steps(mesh: Mesh, run_id: str) -> list[dict[str, Any]]:
    """The steps of a run as a person may read them."""
    return list(json.loads(runs(mesh, "show", run_id, "--steps", "-o", "json"))["steps"])


def counted(mesh: Mesh) -> tuple[int, int]:
    """How often the order was looked up, and how often it was paid."""
    return len(mesh.effects(ORDER)), len(mesh.effects(f"{ORDER}-paid"))


def prompts(mesh: Mesh) -> list[str]:
    """What the model was shown of results, in all runs so far."""
    return (mesh.root / "shown" / ORDER).read_text().splitlines()


def paid_by(mesh: Mesh, run_id: str) -> str:
    """Id of the call that paid in a run."""
    (row,) = [row for row in steps(mesh, run_id) if row["what"] == "orders.pay"]
    return str(row["call_id"])


def test_a_fork_goes_live_behind_its_step(mesh) -> None:
    """Three steps without model or host, then the payment: once more, under an id of its own."""
    before, asked = counted(mesh), len(prompts(mesh))
    refused = cli(mesh, "runs", "fork", "past", "--from-step", "3", "--run-id", "forked")
    assert refused.returncode == 2
    assert "step 4: orders.pay (irreversible), done" in refused.stderr
    assert cli(mesh, "runs", "show", "forked").returncode == 4
    assert runs(mesh, "fork", "past", "--from-step", "3", "--run-id", "forked", "--yes") == "forked"
    runs(mesh, "watch", "forked")
    assert counted(mesh) == (before[0], before[1] + 1)
    assert prompts(mesh)[asked:] == [f"['{ORDER} costs 20', '{ORDER}-paid paid']"]
    assert mesh.effects(f"{ORDER}-paid")[-1] == paid_by(mesh, "forked") != paid_by(mesh, "past")
    found = steps(mesh, "forked")
    assert [row["copied"] for row in found] == [True, True, True, False, False]
    assert [row["output"] for row in found[:3]] == [row["output"] for row in steps(mesh, "past")[:3]]
    assert mesh.kinds(found[1]["call_id"]) == ["copy"]
    run = json.loads(runs(mesh, "show", "forked", "-o", "json"))
    assert (run["origin"], run["origin_run"], run["origin_step"], run["state"]) == (
        "fork",
        "past",
        3,
        "completed",
    )


def test_a_fork_may_hear_another_answer(mesh, tmp_path) -> None:
    """The edited result is what the model is shown; the other run keeps its own."""
    asked = len(prompts(mesh))
    edit = tmp_path / "step.json"
    edit.write_text(json.dumps({"step": 2, "result": {"type": "text", "value": "it costs 99"}}))
    runs(mesh, "fork", "past", "--from-step", "2", "--edit", str(edit), "--run-id", "edited", "--yes")
    runs(mesh, "watch", "edited")
    assert prompts(mesh)[asked:] == ["['it costs 99']", f"['it costs 99', '{ORDER}-paid paid']"]
    assert steps(mesh, "past")[1]["output"] == f"{ORDER} costs 20"
    copies = [r for r in mesh.records(kind="copy") if r["run_id"] == "edited"]
    assert [sorted(r.get("edited", {})) for r in copies] == [[], ["after", "before"]]


def test_a_rerun_does_all_of_it_again(mesh) -> None:
    """Each effect once more, under ids of its own."""
    before = counted(mesh)
    runs(mesh, "rerun", "past", "--run-id", "again", "--yes")
    runs(mesh, "watch", "again")
    assert counted(mesh) == (before[0] + 1, before[1] + 1)
    assert [row["copied"] for row in steps(mesh, "again")] == [False] * 5
    assert mesh.ask("VerifyRecords")["verified"]


def test_a_run_is_kept_as_an_archive_and_forgotten(mesh) -> None:
    """Exported, verified with nothing of the mesh, replayed; then purged, and nothing can bring it back."""
    runs(mesh, "rerun", "past", "--run-id", "old", "--yes")
    runs(mesh, "watch", "old")
    before = counted(mesh)
    assert cli(mesh, "runs", "replay", "old").returncode == 0
    assert runs(mesh, "export", "old") == "run-old.tar.gz"
    path = mesh.root / "run-old.tar.gz"
    assert path.stat().st_mode & 0o777 == 0o600
    assert cli(mesh, "runs", "export", "old").returncode == 2
    runs(mesh, "export", "old", "-o", "again.tar.gz")
    assert (mesh.root / "again.tar.gz").read_bytes() == path.read_bytes()
    alone = subprocess.run(
        [sys.executable, "-m", "meshgate_audit", str(path)],
        cwd="/",
        check=False,
        capture_output=True,
        text=True,
    )
    assert alone.stdout.startswith("verified run old: 5 steps"), alone.stdout
    assert cli(mesh, "runs", "purge", "old").returncode == 2
    assert cli(mesh, "runs", "purge", "past", "--export", "run-old.tar.gz").returncode == 6
    runs(mesh, "purge", "old", "--export", "run-old.tar.gz")
    assert [(row["what"], row["input"], row["output"]) for row in steps(mesh, "old")] == [
        ("orders.lookup", "", ""),
        ("orders.pay", "", ""),
    ]
    assert "purged 20" in runs(mesh, "show", "old")
    program = [sys.executable, "history.py", ORDER]
    for refused, word in (
        (("runs", "replay", "old"), "was purged"),
        (("runs", "fork", "old", "--from-step", "1", "--yes"), "was purged"),
        (("runs", "rerun", "old", "--yes"), "was purged"),
        (("runs", "export", "old"), "is there already"),
        (("runs", "export", "old", "-o", "new.tar.gz"), "was purged"),
        (("run", "--app", "nightly", "--run-id", "old", "--", *program), "was purged"),
    ):
        done = cli(mesh, *refused)
        assert (done.returncode != 0, word in done.stderr) == (True, True), (refused, done.stderr)
    assert counted(mesh) == before
    assert mesh.ask("VerifyRecords")["verified"]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("fork", "nowhere", "--from-step", "1"), 4),
        (("fork", "past", "--from-step", "9"), 2),
        (("fork", "past"), 2),
        (("rerun", "nowhere"), 4),
        (("fork", "past", "--from-step", "3", "--edit", "nowhere.json"), 4),
    ],
)
def test_what_cannot_be_made_says_so(mesh, arguments, status) -> None:
    """With the exit code of its kind, and nothing on stdout."""
    done = cli(mesh, "runs", *arguments, "--yes")
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
