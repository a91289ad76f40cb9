"""The benchmarks' runner: every row runs and says what it must. Never how fast."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

RUNNER = Path(__file__).resolve().parents[2] / "benchmarks" / "run.py"
KEYS = {"row", "value", "baseline", "ratio", "goal", "met", "unit", "min", "max", "repeats"}
LEVELS = ("identity", "decision", "outcome", "opa")
EXPECTED = {
    "brokered": {"brokered.p50", "brokered.throughput"},
    "durable": {"durable.p50", "durable.throughput"},
    "decision": {"decision.p50", "decision.p99"},
    "runs": {
        "runs.crew",
        "runs.model_step",
        "runs.flat.20",
        "runs.replayed_step",
        "runs.large_result",
        "runs.memory",
        "runs.plenty.list",
        "runs.plenty.resume",
    },
    "delegation": {"delegation.added", "delegation.whole", "delegation.fresh", "delegation.task"},
    "agents": {"agents.private", "agents.pss", "agents.launcher_ready"},
    "forks": {"forks.ready", "forks.private", "forks.again"},
    "guarantees": {f"guarantees.{level}.{kind}" for level in LEVELS for kind in ("p50", "throughput")},
}
HAVE_GOALS = {"brokered", "durable", "decision", "forks"}
SOME_HAVE_GOALS = {"runs", "delegation", "agents"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """For the runner's temporary files: short, since a socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="mgb") as made:
        yield Path(made)


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUNNER), *arguments],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("durable", marks=pytest.mark.plane),
        pytest.param("runs", marks=pytest.mark.plane),
        pytest.param("delegation", marks=pytest.mark.plane),
        pytest.param("agents", marks=pytest.mark.plane),
        "brokered",
        "decision",
        "forks",
        "guarantees",
    ],
)
def test_a_row_runs_and_has_its_shape(folder: Path, name: str) -> None:
    """Each line is one JSON object with its number, its baseline, and whether its goal is met."""
    done = _run(folder, "--quick", "--json", "--only", name)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [json.loads(text) for text in done.stdout.splitlines()]
    assert {row["row"] for row in rows} == EXPECTED[name]
    assert len(rows) == len(EXPECTED[name])
    for row in rows:
        assert set(row) >= KEYS
        assert 0 < row["min"] <= row["value"] <= row["max"]
        assert row["repeats"] >= (1 if name in SOME_HAVE_GOALS else 3)
        assert row["baseline"] > 0
        assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
        assert (row["goal"] is None) == (row["met"] is None)
        if name not in SOME_HAVE_GOALS:
            assert (row["goal"] is not None) == (name in HAVE_GOALS)
    assert "fsync of 4 KiB" in done.stderr
    assert "cores" in done.stderr
    assert not list(folder.iterdir())


def test_an_unknown_row_is_a_usage_error(folder: Path) -> None:
    """The runner names the rows there are, and measures nothing."""
    done = _run(folder, "--only", "speed")
    assert (done.returncode, done.stdout) == (2, "")
    assert all(name in done.stderr for name in EXPECTED)
