"""The store: atomic works, durable commits, faults, and the chain it carries."""

import json
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest
from meshgate_audit.__main__ import main as verify_main
from meshgate_audit.chain import GENESIS, Head, canonical, seal, verify
from meshgate_gateway.adapters.postgres_store import PostgresStore
from meshgate_gateway.adapters.sqlite_store import SqliteStore
from meshgate_gateway.errors import Conflict, NotStorable, Refused, StoreUnavailable
from meshgate_gateway.model import AuditRecord, Run
from meshgate_gateway.store import PayloadRow, RecordQuery


@pytest.fixture
def store(make_store):
    made = make_store()
    yield made
    made.close()


@pytest.fixture
def sqlite_store(tmp_path: Path):
    made = SqliteStore(path=tmp_path / "s.db")
    yield made
    made.close()


def note(text: str):
    return lambda tables: tables.records.append(AuditRecord("lifecycle", {"event": text}))


def lines(store: SqliteStore) -> list[bytes]:
    return [body for _, body in store.read(lambda tables: tables.records.query(RecordQuery()))]


def test_many_writers_share_commits_and_one_chain(store) -> None:
    """Sixteen threads write at once: every record is there once, in an unbroken chain."""

    def write(number: int) -> None:
        for turn in range(20):
            store.write(note(f"{number}-{turn}"))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = lines(store)
    assert len({json.loads(line)["event"] for line in found}) == 320
    assert verify(found).verified


def test_a_failed_work_takes_nothing_with_it(store) -> None:
    """A work that raises leaves nothing behind, and its neighbours and the store are fine."""

    def half(tables) -> None:
        note("half")(tables)
        raise Conflict("no")

    def bug(tables) -> None:
        note("bug")(tables)
        raise KeyError("bug")

    with pytest.raises(Conflict):
        store.write(half)
    with pytest.raises(KeyError):
        store.write(bug)
    store.write(note("whole"))
    assert [json.loads(line)["event"] for line in lines(store)] == ["whole"]


def in_one_commit(store: SqliteStore, works) -> list[object]:
    """Runs works that wait together behind a first one; gives what each returned or raised, in order."""
    begun, go = threading.Event(), threading.Event()
    came: list[object] = [None] * len(works)

    def first(_tables) -> None:
        begun.set()
        assert go.wait(30)

    def write(number: int) -> None:
        try:
            came[number] = store.write(works[number])
        except (Refused, StoreUnavailable) as error:
            came[number] = error

    threads = [threading.Thread(target=store.write, args=(first,))]
    threads[0].start()
    assert begun.wait(30)
    for number in range(len(works)):
        threads.append(threading.Thread(target=write, args=(number,)))
        threads[-1].start()
        end = time.monotonic() + 30
        while store._works.waiting <= number:
            assert time.monotonic() < end
            time.sleep(0.001)
    go.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return came


def test_a_failed_work_breaks_no_chain_within_a_commit(store) -> None:
    """Works before and after a failed one share its commit; their records follow each other."""

    def half(tables) -> None:
        note("half")(tables)
        raise Conflict("no")

    before, failed, after = in_one_commit(store, [note("before"), half, note("after")])
    assert isinstance(failed, Conflict)
    assert (before.seq, after.seq) == (1, 2)
    found = lines(store)
    assert [json.loads(line)["event"] for line in found] == ["before", "after"]
    assert verify(found).verified


def twice(tables) -> None:
    """Two payloads under one id."""
    for _ in range(2):
        tables.payloads.put(PayloadRow("one", "raw", b"s", b"n", b"x"))


def endless(tables) -> None:
    """A number that no column holds."""
    tables.runs.insert(Run("run-x", "desk", "pending", 0, "", 2**70, 1, 1, 0, ""))


@pytest.mark.parametrize("wrong", [twice, endless])
def test_a_value_that_the_database_refuses_takes_only_its_own_work(store, wrong) -> None:
    """Works of the same commit are stored, the wrong one is told, and never as a fault of the database."""
    works = [note("first"), note("second"), wrong, note("third"), note("fourth"), note("fifth")]
    came = in_one_commit(store, works)
    assert isinstance(came.pop(2), NotStorable)
    assert [head.seq for head in came] == [1, 2, 3, 4, 5]
    found = lines(store)
    assert [json.loads(line)["event"] for line in found] == ["first", "second", "third", "fourth", "fifth"]
    assert verify(found).verified
    assert store.read(lambda tables: (tables.runs.get("run-x"), tables.payloads.get("one"))) == (None, None)


def test_a_question_that_no_column_can_answer_is_no_fault(store) -> None:
    """A number of more than 64 bits comes from whoever asks, not from the database."""

    def ask(tables) -> None:
        tables.runs.unfinished(before_ms=2**70)  # PostgreSQL compares with it
        raise psycopg.errors.NumericValueOutOfRange("bigint out of range")

    with pytest.raises(NotStorable) as caught:
        store.read(ask)
    assert caught.value.reason == "not_storable"
    store.write(note("goes on"))


def test_a_commit_that_fails_is_told_to_all_who_shared_it(store) -> None:
    """A fault of the file takes every work of its commit; nobody waits for ever, and a probe mends it."""

    def fault(_tables) -> None:
        known = psycopg.OperationalError if isinstance(store, PostgresStore) else sqlite3.OperationalError
        raise known("disk I/O error")

    came = in_one_commit(store, [note("a"), fault, note("b")])
    assert [type(one) for one in came] == [StoreUnavailable] * 3
    store.probe()
    assert store.write(note("c")).seq == 1


def test_a_full_store_refuses_until_there_is_room(tmp_path: Path) -> None:
    """Full: StoreUnavailable, then for everybody, until a probe works; what was acknowledged stays."""
    store = SqliteStore(path=tmp_path / "s.db", max_pages=20)
    kept = 0
    with pytest.raises(StoreUnavailable):  # noqa: PT012 - until it is full
        while True:
            store.write(note("x" * 4000))
            kept += 1
    with pytest.raises(StoreUnavailable):
        store.write(note("later"))
    with pytest.raises(StoreUnavailable):
        store.read(lambda tables: tables.records.head())
    store._max_pages = 1000
    store.probe()
    store.write(note("again"))
    assert len(lines(store)) == kept + 1
    store.close()


FULL_DISK = """
import resource, sys
from pathlib import Path
from meshgate_gateway.adapters.sqlite_store import SqliteStore
from meshgate_gateway.errors import StoreUnavailable
from meshgate_gateway.model import AuditRecord

store = SqliteStore(path=Path(sys.argv[1]))
write = lambda: store.write(lambda tables: tables.records.append(AuditRecord("lifecycle", {})).seq)
print(write())
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
for ask in (store.probe, write, store.probe, write):
    try:
        print(ask())
    except StoreUnavailable:
        print("unavailable")
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
print(store.probe(), write())
"""


def test_no_probe_finds_a_full_disk_fit(tmp_path: Path) -> None:
    """The probe finds it before a call does; while it lasts each write fails; then nothing is missing."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "s.db")], check=True, capture_output=True, text=True
    )
    assert done.stdout.split("\n")[:-1] == ["1", *["unavailable"] * 4, "None 2"]


def test_a_read_only_store_refuses_until_it_can_be_written(sqlite_store, tmp_path, monkeypatch) -> None:
    """Read-only: StoreUnavailable for everybody, whatever is tried, until a probe can write again."""
    sqlite_store.write(note("kept"))

    def read_only() -> sqlite3.Connection:
        uri = f"file:{tmp_path / 's.db'}?mode=ro"
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)

    sqlite_store._writer.execute("PRAGMA query_only = ON")
    with monkeypatch.context() as patched:
        patched.setattr(sqlite_store, "_connect", read_only)
        for ask in (sqlite_store.write, lambda _work: sqlite_store.probe(), sqlite_store.write):
            with pytest.raises(StoreUnavailable):
                ask(note("lost"))
        with pytest.raises(StoreUnavailable):
            sqlite_store.read(lambda tables: tables.records.head())
    sqlite_store.probe()
    sqlite_store.write(note("again"))
    assert [json.loads(line)["event"] for line in lines(sqlite_store)] == ["kept", "again"]


def test_a_store_locked_by_another_is_unavailable_and_comes_back(sqlite_store, tmp_path, monkeypatch) -> None:
    """Another process that holds the lock makes us unavailable, not wrong."""
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    sqlite_store._writer.execute("PRAGMA busy_timeout = 10")
    with pytest.raises(StoreUnavailable):
        sqlite_store.write(note("x"))
    other.execute("ROLLBACK")
    sqlite_store.probe()
    sqlite_store.write(note("y"))


def test_every_commit_is_synced(sqlite_store) -> None:
    """WAL with synchronous=FULL: NORMAL would acknowledge what a power cut takes back."""
    assert sqlite_store._writer.execute("PRAGMA synchronous").fetchone() == (2,)
    assert sqlite_store._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_an_edited_log_is_not_opened_again(tmp_path: Path) -> None:
    """A changed record is found when the file is opened."""
    path = tmp_path / "s.db"
    store = SqliteStore(path=path)
    for number in range(5):
        store.write(note(str(number)))
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE records SET body = replace(body, '\"3\"', '\"9\"') WHERE seq = 4")
    with pytest.raises(StoreUnavailable):
        SqliteStore(path=path)


def chain(count: int) -> tuple[list[bytes], Head]:
    head, made = Head(0, GENESIS), []
    for number in range(count):
        head, line = seal({"kind": "lifecycle", "n": number}, after=head)
        made.append(line)
    return made, head


def test_the_verifier_finds_every_edit() -> None:
    """Edited, removed, doubled, swapped, inserted: none verifies. A cut tail needs a known head."""
    made, head = chain(6)
    assert verify(made, head=head).verified
    edited = made[2].replace(b'"n":2', b'"n":7')
    for bad in (
        [*made[:2], edited, *made[3:]],
        [*made[:2], *made[3:]],
        [*made[:3], made[2], *made[3:]],
        [made[1], made[0], *made[2:]],
        made[1:],
        [*made, b"not json"],
        [*made, b"[]"],
        [*made[:5], made[5].replace(b'"n":5', b'"n":7')],
        [*made[:5], seal({"kind": "lifecycle", "n": 5}, after=Head(5, "f" * 64))[1]],
    ):
        assert not verify(bad).verified
    assert verify(made[:-1]).verified
    assert not verify(made[:-1], head=head).verified
    resealed, _ = chain(5)
    other = seal({"kind": "lifecycle", "n": 99}, after=Head(5, json.loads(resealed[-1])["hash"]))[1]
    assert not verify([*resealed, other], head=head).verified


def test_records_hold_no_floats_and_no_odd_keys() -> None:
    """What two canonicalisers could write differently never gets in."""
    for bad in ({"a": 1.5}, {"é": 1}, {1: 1}, {"a": {1, 2}}):
        with pytest.raises(ValueError, match="record"):
            canonical(bad)


def test_the_offline_verifier_needs_only_the_file(tmp_path: Path, capsys) -> None:
    """Exit 0 for a sound log, 6 for an edited or cut one."""
    made, head = chain(4)
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(made) + b"\n")
    assert verify_main([str(path), "--head", f"{head.seq}:{head.hash}"]) == 0
    path.write_bytes(b"\n".join(made[:-1]) + b"\n")
    assert verify_main([str(path), "--head", f"{head.seq}:{head.hash}"]) == 6
    assert "record 3" in capsys.readouterr().out


@pytest.mark.parametrize("name", [".", "none.jsonl", "none.tar.gz"])
def test_a_file_that_cannot_be_read_is_told_from_one_that_does_not_hold(
    tmp_path, monkeypatch, capsys, name
) -> None:
    """Status 4 and a sentence; 6 is kept for what was read."""
    monkeypatch.chdir(tmp_path)
    assert verify_main([name]) == 4
    assert f"{name} cannot be read: " in capsys.readouterr().err
