"""Synced means synced: what was acknowledged is on disk at any moment, also when a sync fails.

The trace of a real run is replayed as power cuts: each leaves the synced bytes, with or without a part
of the others. The store must open on it, its log must verify, and every acknowledged write must be there.
"""

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.power_cut import Disk, traced
from meshgate_audit.chain import verify
from meshgate_gateway.adapters.sqlite_store import SqliteStore
from meshgate_gateway.store import RecordQuery

CUTS = 240
FAULT_CUTS = 60


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: the disk is a model here, and a real one only costs time."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


def survivors(path: Path) -> set[str]:
    """The writes that a store still has when it is opened after a power cut; its log verifies."""
    store = SqliteStore(path=path)
    try:
        rows, head = store.read(
            lambda tables: (tables.records.query(RecordQuery(limit=10_000)), tables.records.head())
        )
        names = {json.loads(body)["name"] for _, body in rows}
        assert verify((body for _, body in rows), head=head).verified
        assert all(store.read(lambda tables, name=name: tables.payloads.get(name)) for name in names)
        return names
    finally:
        store.close()


def replay(folder: Path, lines: list[str], cuts: int, seed: int) -> Disk:
    """Power cuts at random lines; every acknowledged write survives each of them."""
    chance = random.Random(seed)
    at = set(chance.sample(range(len(lines)), min(cuts, len(lines)))) | {len(lines) - 1}
    disk = Disk(folder)
    for number, line in enumerate(lines):
        disk.step(line)
        if number in at:
            place = folder / f"cut-{number}"
            left = survivors(disk.cut(place, chance if number % 2 else None))
            lost = disk.acknowledged - left
            assert not lost, f"after line {number}: {sorted(lost)[:5]} were acknowledged and are gone"
            shutil.rmtree(place)
    return disk


def test_what_is_acknowledged_survives_a_power_cut(memory) -> None:
    """Three writers in group commits, a checkpoint among them, cut at 240 random moments."""
    lines = traced(memory, "3", "40", "readers")
    disk = replay(memory, lines, CUTS, seed=7)
    assert len(disk.acknowledged) == 120
    assert disk.files[str(memory / "g.db")].disk  # a checkpoint came by


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("others", ["readers", "alone"])
def test_nothing_is_acknowledged_that_a_failed_sync_lost(memory, error, others) -> None:
    """Seven syncs in a row fail: refused and not ready, then ready again; no acknowledged write is lost."""
    lines = traced(memory, "1", "40", others, inject=f"fdatasync:error={error}:when=30..36")
    disk = replay(memory, lines, FAULT_CUTS, seed=11)
    assert disk.failed_syncs == 7
    refused = [word for word in disk.said if word.startswith("refused ")]
    assert refused
    assert len(disk.acknowledged) == 40 - len(refused)
    after = disk.said[disk.said.index(refused[-1]) :]
    assert "not ready" in disk.said[: disk.said.index(refused[-1])]
    assert "ready" in after
    assert after[-1].startswith("ack ")
