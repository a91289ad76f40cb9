"""A real mesh on PostgreSQL, with Dapr's histories, through the death and standstill of that server."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from fakes.attacked_mesh import PROJECT
from fakes.live_mesh import LiveMesh, eventually, started_in
from fakes.postgres_server import PostgresServer, postgres_server

pytestmark = [pytest.mark.plane, pytest.mark.timeout(600)]

PASSWORD, DAPR = "hunter2-of-the-store", "hunter4-of-dapr"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server of these tests' own; it asks for a password."""
    with postgres_server(password=PASSWORD) as made:
        name = made.database()
        with made.connect(name) as owner:
            owner.execute(f"CREATE ROLE dapr LOGIN PASSWORD '{DAPR}'".encode())
            owner.execute("GRANT USAGE, CREATE ON SCHEMA public TO dapr")
        yield made


@pytest.fixture(scope="module")
def mesh(tmp_path_factory, server) -> Iterator[LiveMesh]:
    """The mesh, its store on the server, its sidecars under a role of their own; passwords are in `.env`."""
    manifest = PROJECT["meshgate.yaml"].rstrip() + f"\n        store: {server.url('store1')}\n"
    secrets = f"PGPASSWORD={PASSWORD}\nMESHGATE_DAPR_PGUSER=dapr\nMESHGATE_DAPR_PGPASSWORD={DAPR}\n"
    files = {**PROJECT, "meshgate.yaml": manifest, ".env": secrets}
    made = LiveMesh(tmp_path_factory.mktemp("mesh"), files)
    try:
        made.up()
        yield made
    finally:
        made.remove()


def count(server: PostgresServer, table: str) -> int:
    """How many rows there are."""
    with server.connect("store1") as database:
        row = database.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def verified(mesh: LiveMesh) -> bool:
    """True when the gateway answers and its log is whole."""
    return mesh.command("audit", "verify").returncode == 0


def test_a_run_is_kept_on_the_server(mesh, server) -> None:
    """Records and histories are in the database and in no file."""
    done = mesh.command("run", "--app", "nightly", "--", sys.executable, "nightly.py", "refund", "first")
    assert "GOT 'did refund first'" in done.stdout, done.stdout + done.stderr
    kept = {path.name for path in (mesh.root / ".meshgate/data").rglob("*")}
    assert kept.isdisjoint({"gateway.db", "actors.db"})
    assert verified(mesh)
    assert count(server, "records") > 1
    assert count(server, "meshgate_dapr_state") > 1
    checks = {row["check"]: row for row in mesh.asked("doctor")}
    assert checks["store"]["ok"]
    assert checks["store of Dapr"]["ok"]
    with psycopg.connect(server.url("store1", "dapr"), password=DAPR) as sidecar:
        for statement in ("SELECT * FROM calls", "DELETE FROM records", "DROP TABLE runs"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                sidecar.execute(statement.encode())
            sidecar.rollback()


def test_a_password_is_in_no_file_and_no_command_line(mesh) -> None:
    """Nor in a log. The gateway has one where no other process looks; the other is in the sidecars'."""
    files = [path for path in (mesh.root / ".meshgate").rglob("*") if path.is_file()]
    assert len(files) > 10
    files.append(mesh.root / "up.log")
    assert [path for path in files if b"hunter" in path.read_bytes()] == []
    names = {pid: name for name, pid in mesh.pids.items()}
    holders = set()
    with mesh.running("nightly", "nightly.py", "slow", "peek") as run:
        eventually(lambda: "slow peek" in mesh.effects(), "the tool begins")
        for pid in started_in(mesh.pid):
            with contextlib.suppress(OSError):  # gone while we look
                assert b"hunter" not in Path(f"/proc/{pid}/cmdline").read_bytes()
                held = Path(f"/proc/{pid}/environ").read_bytes()
                holders |= {(names.get(pid, pid), word) for word in (PASSWORD, DAPR) if word.encode() in held}
        (mesh.root / "go-peek").touch()
        run.communicate(timeout=180)
    assert holders == {*((name, DAPR) for name in mesh.pids if name[:5] == "dapr-")}


def killed(_mesh: LiveMesh, server: PostgresServer, release: Callable[[], None]) -> None:
    """Back at once, the call still in its tool."""
    server.kill()
    server.start()
    release()


def killed_meanwhile(mesh: LiveMesh, server: PostgresServer, release: Callable[[], None]) -> None:
    """Away while the call ends."""
    server.kill()
    eventually(lambda: not verified(mesh), "the gateway says so")
    release()
    server.start()


def stopped(mesh: LiveMesh, server: PostgresServer, release: Callable[[], None]) -> None:
    """It answers nothing while the call ends; the gateway says so, in a bounded time."""
    with server.stopped():
        eventually(lambda: not verified(mesh), "the gateway says so")
        release()


@pytest.mark.parametrize("fault", [killed, killed_meanwhile, stopped])
def test_a_call_under_way_survives_its_store(mesh, server, fault) -> None:
    """Nothing lost, nothing doubled; gateway and sidecars recover by themselves, none is restarted."""
    order, pids = fault.__name__, mesh.pids
    with mesh.running("nightly", "nightly.py", "slow", order) as run:
        eventually(lambda: f"slow {order}" in mesh.effects(), "the tool begins")
        before = mesh.records()
        fault(mesh, server, (mesh.root / f"go-{order}").touch)
        output, _ = run.communicate(timeout=240)
    assert f"GOT 'did slow {order}'" in output
    assert mesh.effects().count(f"slow {order}") == 1
    eventually(lambda: verified(mesh), "the gateway is back")
    after = mesh.records()
    assert [record for record in before if record not in after] == []
    decided = [row["call_id"] for row in before if row["kind"] == "decision" and row["tool"] == "orders.slow"]
    for call_id in decided:
        assert len([row for row in after if row["kind"] == "outcome" and row["call_id"] == call_id]) == 1
    with server.connect("store1") as database:
        open_calls = "SELECT call_id, state FROM calls WHERE state <> 'done'"
        assert database.execute(open_calls.encode()).fetchall() == []
    again = mesh.command("run", "--app", "nightly", "--", sys.executable, "nightly.py", "refund", order)
    assert f"GOT 'did refund {order}'" in again.stdout, again.stdout + again.stderr
    assert {name: pid for name, pid in mesh.pids.items() if pids.get(name, pid) != pid} == {}
