"""The whole demo on real Dapr, OPA, CrewAI: its book and its decisions follow from the seed."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes.leftovers import processes_naming
from meshgate_deploy import demo
from meshgate_deploy.errors import UsageError
from meshgate_deploy.refund_desk import payments, seed

pytestmark = [pytest.mark.plane, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Played:
    """A demo that ended."""

    status: int
    out: str
    err: str
    project: Path

    @property
    def told(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def book(self) -> list[seed.Payment]:
        return sorted(payments.read_book(self.project.parent / "services" / "book.db"))


def _environment(tmp_path: Path) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return {**env, "TMPDIR": str(tmp_path)}


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "meshgate_deploy.cli", "demo", *arguments]


def _play(tmp_path: Path, *arguments: str) -> Played:
    done = subprocess.run(
        _command(*arguments),
        env=_environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return Played(done.returncode, done.stdout, done.stderr, _project(tmp_path))


def _project(tmp_path: Path) -> Path:
    return next(tmp_path.glob("meshgate-demo-*")) / "project"


def _agrees(played: Played, expected: seed.Expected) -> None:
    told = played.told
    assert played.book == list(expected.book)
    count = len(expected.book)
    assert told["effects"] == {"expected": count, "seen": count, "doubled": 0, "missing": 0}
    tasks = len(seed.TASKS)  # one for each agent
    counts = (expected.calls + tasks, expected.allowed + tasks, len(expected.denied))
    assert (told["calls"], told["allowed"], told["denied"]) == counts
    assert told["audit"]["verified"] is True
    assert told["audit"]["records"] >= expected.calls + expected.allowed


@pytest.mark.parametrize("number", [3, 20])
def test_the_book_is_what_the_seed_says(tmp_path: Path, number: int) -> None:
    """Both forbidden calls are refused, each honest refund happens once, stdout is one object."""
    played = _play(tmp_path, "--seed", str(number), "--json")
    assert played.status == 0, played.err[-4000:]
    assert played.out.count("\n") == 1
    told = played.told
    assert told["status"] == "ok"
    assert set(told) >= {"status", "seconds", "apps", "calls", "allowed", "denied", "effects", "audit"}
    assert {app["name"]: app["spiffe_id"] for app in told["apps"]} == {
        name: f"spiffe://desk.example/ns/refund-desk/{name}"
        for name in ("gateway", "desk", "triage", "billing", "files", "orders")
    }
    _agrees(played, seed.expected(seed.draw(number)))
    assert told["denied"] == 2
    assert processes_naming(played.project.parent) == []


def test_one_grant_less_changes_the_book(tmp_path: Path) -> None:
    """Without lookups full refunds cannot be made; the book follows the seed again."""
    played = _play(tmp_path, "--seed", "3", "--json", "--without", seed.LOOKUP_ORDER)
    assert played.status == 0, played.err[-4000:]
    grants = [tool for tool in seed.TOOLS if tool != seed.LOOKUP_ORDER]
    expected = seed.expected(seed.draw(3), grants=grants)
    assert expected.book != seed.expected(seed.draw(3)).book
    _agrees(played, expected)


def test_an_ended_demo_leaves_nothing(tmp_path: Path) -> None:
    """SIGTERM while the mesh comes up: everything that was started ends."""
    process = subprocess.Popen(
        _command("--seed", "1", "--json"),
        env=_environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if b"sentry: ready" in line:
            break
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (128 + signal.SIGTERM, b"")
    assert processes_naming(_project(tmp_path).parent) == []


def test_an_unknown_grant_is_a_usage_error(tmp_path: Path) -> None:
    """A grant that is not there cannot be taken out."""
    policy = tmp_path / "desk.rego"
    policy.write_text('package p\n\nallow contains "a.b"\n\nallow contains "a.c" if true\n')
    with pytest.raises(UsageError):
        demo.remove_grant(tmp_path, "a.d")
    demo.remove_grant(tmp_path, "a.b")
    assert policy.read_text() == 'package p\n\nallow contains "a.c" if true\n'
