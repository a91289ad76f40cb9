"""PostgreSQL alone: two gateways on one database, a server that dies, schemas that are not ours."""

import contextlib
import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import psycopg
import pytest
from fakes.gateway_parts import peer
from fakes.postgres_server import PostgresServer, postgres_server
from gateway.conftest import make_world
from meshgate_audit.chain import verify
from meshgate_gateway.adapters import postgres_connection
from meshgate_gateway.adapters.postgres_schema import LOG_LOCK
from meshgate_gateway.adapters.postgres_store import PostgresStore
from meshgate_gateway.adapters.sqlite_store import SqliteStore
from meshgate_gateway.adapters.tables import CALL, JOURNAL, RUN
from meshgate_gateway.errors import StoreUnavailable
from meshgate_gateway.model import AuditRecord, Run, State
from meshgate_gateway.store import RecordQuery


@pytest.fixture
def mortal() -> Iterator[PostgresServer]:
    """A server that a test may kill."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def pair(postgres) -> Iterator[tuple[PostgresStore, PostgresStore]]:
    """Two gateways' stores on one database."""
    url = postgres.url()
    stores = PostgresStore(url=url), PostgresStore(url=url)
    yield stores
    for store in stores:
        store.close()


def note(text: str):
    return lambda tables: tables.records.append(AuditRecord("lifecycle", {"event": text}))


def events(store: PostgresStore) -> list[str]:
    rows = store.read(lambda tables: tables.records.query(RecordQuery()))
    assert verify([body for _, body in rows]).verified
    return [json.loads(body)["event"] for _, body in rows]


def run(run_id: str) -> Run:
    return Run(run_id, "desk", "running", 1, "l1", 1, 1, 1, 0, "")


def test_two_gateways_write_one_chain_and_each_row_once(pair) -> None:
    """Both insert the same rows with a record each: one chain, one insert and one record per row."""
    won: list[str] = []
    failed: list[StoreUnavailable] = []

    def claim(number: int):
        def work(tables) -> bool:
            mine = tables.runs.insert(run(f"run-{number}"))
            return mine and bool(note(f"run-{number}")(tables))

        return work

    def gateway(store: PostgresStore) -> None:
        for number in range(60):
            try:
                store.write(note("turn"))  # no row in common: only the log is between them
                if store.write(claim(number)):
                    won.append(f"run-{number}")
            except StoreUnavailable as error:
                failed.append(error)

    threads = [threading.Thread(target=gateway, args=(store,)) for store in pair for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not failed  # neither stands in the other's way
    found = events(pair[0])
    assert found.count("turn") == 2 * 4 * 60
    assert (
        sorted(won)
        == sorted(event for event in found if event != "turn")
        == sorted({f"run-{number}" for number in range(60)})
    )
    seqs = [seq for seq, _ in pair[1].read(lambda tables: tables.records.query(RecordQuery()))]
    assert all(later == earlier + 1 for earlier, later in pairwise(seqs))


def test_of_two_gateways_one_moves(pair) -> None:
    """Compare-and-set over two gateways: whoever is second finds another state, not an error."""
    before = run("run-1")
    pair[0].write(lambda tables: tables.runs.insert(before))
    after = Run("run-1", "desk", "running", 2, "l2", 1, 2, 2, 0, "")
    moved = [store.write(lambda tables: tables.runs.move(before, after)) for store in pair]
    assert moved == [True, False]


def test_twins_at_two_gateways_have_one_effect(pair) -> None:
    """Equal calls of one task, asked of both at the same time: one runs, all get its outcome."""
    worlds = [make_world(store) for store in pair]
    worlds[0].begin()
    gate, answers = threading.Barrier(4), []

    def work(number: int) -> None:
        world, step = worlds[number % 2], hashlib.sha256(bytes([number])).hexdigest()
        gate.wait(10)
        for _ in range(500):
            answer = world.call(step_key=step, task="e" * 64)
            if answer.state is State.DONE:
                answers.append(answer)
                return

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({answer.call_id for answer in answers}) == 4
    assert len({answer.result for answer in answers}) == 1
    assert sum(len(world.runtime.effects) for world in worlds) == 1


def test_a_killed_server_is_unavailable_and_the_key_has_one_outcome_after(mortal) -> None:
    """No answer while it is dead; back, the same key gives one outcome, and nothing acknowledged is lost."""
    world = make_world(PostgresStore(url=mortal.url(mortal.database())))
    world.begin()
    first = world.call()
    mortal.kill()
    for ask in (world.call, lambda: world.call(step_key="1" * 32), world.store.probe, world.records):
        with pytest.raises(StoreUnavailable):
            ask()
    mortal.start()
    world.store.probe()
    assert world.call() == first
    again = [world.call(step_key="1" * 32) for _ in range(2)]
    assert again[0] == again[1]
    assert again[0].state is State.DONE
    rows = world.store.read(lambda tables: tables.records.query(RecordQuery()))
    assert verify([body for _, body in rows]).verified
    assert len([record for record in world.records() if record.get("call_id") == first.call_id]) > 1
    world.runs.start(peer("desk"), run_id="run-2", input_json=b"{}")
    world.store.close()


def test_a_stopped_server_holds_nobody_for_ever(mortal, monkeypatch) -> None:
    """Writers, readers, probes and a second gateway are told; it goes on, and so do they."""
    monkeypatch.setattr(postgres_connection, "ANSWER_SECONDS", 1.0)
    url = mortal.url(mortal.database())
    world = make_world(PostgresStore(url=url))
    world.begin()
    first = world.call()
    asked: list[Callable[[], object]] = [
        world.records,
        world.call,
        lambda: world.call(step_key="1" * 32),
        world.store.probe,
        lambda: PostgresStore(url=url),
    ]
    told: list[StoreUnavailable] = []

    def ask(what: Callable[[], object]) -> None:
        with pytest.raises(StoreUnavailable) as caught:
            what()
        told.append(caught.value)

    threads = [threading.Thread(target=ask, args=(what,), daemon=True) for what in asked]
    with mortal.stopped():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert len(told) == len(asked)
    world.store.probe()
    assert world.call() == first
    assert world.call(step_key="1" * 32).state is State.DONE
    assert len(world.runtime.effects) == 2
    world.store.close()


def test_a_gateway_that_stands_still_in_a_transaction_loses_it(pair, postgres) -> None:
    """Its lock would hold all others up; they are told so, and go on without it."""
    (name,) = pair[0]._writer.execute("SELECT current_database()").fetchone()
    still = postgres_connection.Bounded.to(postgres.server.url(name), autocommit=True)
    still.execute("BEGIN")
    still.execute("SELECT pg_advisory_xact_lock(%s)", (LOG_LOCK,))
    with pytest.raises(StoreUnavailable, match="lock timeout"):
        pair[0].write(note("early"))
    end = time.monotonic() + 60
    while "late" not in events(pair[1]):
        assert time.monotonic() < end
        with contextlib.suppress(StoreUnavailable):
            pair[1].probe()
            pair[1].write(note("late"))
    with pytest.raises(psycopg.Error):
        still.execute("COMMIT")
    assert events(pair[1]) == ["late"]


def test_a_server_killed_under_load_loses_nothing_it_acknowledged(mortal) -> None:
    """Killed while eight threads write: every acknowledged record is in the unbroken chain, once."""
    store = PostgresStore(url=mortal.url(mortal.database()))
    acknowledged: list[str] = []
    enough = threading.Event()

    def write(number: int) -> None:
        turn = 0
        while True:
            try:
                store.write(note(f"{number}-{turn}"))
            except StoreUnavailable:
                return
            acknowledged.append(f"{number}-{turn}")
            turn += 1
            if len(acknowledged) > 100:
                enough.set()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    assert enough.wait(60)
    mortal.kill()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    mortal.start()
    store.probe()
    found = events(store)
    assert set(acknowledged) <= set(found)
    assert len(found) == len(set(found))
    store.close()


def test_an_edited_database_is_not_opened_again(postgres) -> None:
    """A changed record is found when the store is opened."""
    url = postgres.url()
    store = PostgresStore(url=url)
    for number in range(5):
        store.write(note(str(number)))
    store.close()
    with psycopg.connect(url) as db:
        db.execute("UPDATE records SET body = replace(body::text, '22', '32')::bytea WHERE seq = 4")
    with pytest.raises(StoreUnavailable, match="does not verify"):
        PostgresStore(url=url)


def test_a_schema_of_another_version_is_refused(postgres) -> None:
    """What a newer gateway left behind is not written to; the message says why."""
    url = postgres.url()
    with psycopg.connect(url) as db:
        db.execute("UPDATE meshgate_schema SET version_num = '9999'")
    with pytest.raises(StoreUnavailable, match="version this gateway does not know"):
        PostgresStore(url=url)


def test_two_gateways_may_start_on_an_empty_database(postgres) -> None:
    """Both bring it up to date at once; both work."""
    url = postgres.server.url(postgres.server.database())
    opened: list[PostgresStore] = []
    threads = [threading.Thread(target=lambda: opened.append(PostgresStore(url=url))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [store.write(note("up")).seq for store in opened] == [1, 2]
    for store in opened:
        store.close()


def test_every_commit_is_synced_and_bounded(pair) -> None:
    """Whatever the role's defaults say: synced, and no statement, lock or idle transaction waits for ever."""
    names = ("synchronous_commit", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    shown = [pair[0]._writer.execute(f"SHOW {name}".encode()).fetchone()[0] for name in names]
    assert shown == ["on", "5s", "3s", "5s"]


def test_a_reader_cannot_write(pair) -> None:
    """A work given to `read` by mistake stores nothing."""
    with pytest.raises(StoreUnavailable, match="read-only"):
        pair[0].read(lambda tables: tables.runs.insert(run("run-1")))
    assert pair[0].read(lambda tables: tables.runs.get("run-1")) is None


def test_text_with_a_nul_takes_no_neighbour_with_it(pair) -> None:
    """PostgreSQL has no NUL in text: it is kept as a sign for it."""
    assert pair[0].write(lambda tables: tables.runs.insert(run("a\0b")))
    assert pair[0].read(lambda tables: tables.runs.get("a\0b")).run_id == "a\u2400b"


def test_both_databases_have_the_same_indexes(pair, tmp_path) -> None:
    """A new index on one needs a migration, or a line, on the other."""
    path = tmp_path / "s.db"
    SqliteStore(path=path).close()
    with contextlib.closing(sqlite3.connect(path)) as file:
        ours = file.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND sql NOT NULL").fetchall()
    sql = "SELECT indexname FROM pg_indexes WHERE schemaname = 'public' AND indexname NOT LIKE '%pkey'"
    theirs = pair[0]._writer.execute(sql).fetchall()
    assert sorted(ours) == sorted(row for row in theirs if row[0] != "meshgate_schema_pkc")


def test_the_columns_are_the_fields(pair) -> None:
    """A new field of the model needs a migration."""
    for table, fields in (("calls", CALL), ("runs", RUN), ("journal", JOURNAL)):
        sql = "SELECT column_name FROM information_schema.columns WHERE table_name = %s"
        assert {row[0] for row in pair[0]._writer.execute(sql, (table,))} == set(fields)
