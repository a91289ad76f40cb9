"""A real mesh whose gateway keeps its store on PostgreSQL, through the death of that server."""

import sys
from collections.abc import Iterator

import psycopg
import pytest
from fakes.attacked_mesh import PROJECT
from fakes.live_mesh import LiveMesh, eventually
from fakes.postgres_server import PostgresServer, postgres_server

pytestmark = [pytest.mark.plane, pytest.mark.timeout(600)]


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of this test's own."""
    with postgres_server() as made:
        yield made


@pytest.fixture
def mesh(tmp_path, server) -> Iterator[LiveMesh]:
    """The mesh, its store on the server."""
    manifest = PROJECT["meshgate.yaml"].rstrip() + f"\n        store: {server.url(server.database())}\n"
    made = LiveMesh(tmp_path, {**PROJECT, "meshgate.yaml": manifest})
    try:
        made.up()
        yield made
    finally:
        made.remove()


def test_a_run_is_kept_on_the_server(mesh, server) -> None:
    """A program runs; its records are in the database and in no file; a killed server is survived."""
    done = mesh.command("run", "--app", "nightly", "--", sys.executable, "-c", "print('ran')")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list((mesh.root / ".meshgate").rglob("gateway.db"))
    verified = mesh.command("audit", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    with psycopg.connect(server.url("store1")) as database:
        (before,) = database.execute("SELECT count(*) FROM records").fetchone()
    assert before > 1
    server.kill()
    server.start()
    eventually(lambda: mesh.command("audit", "verify").returncode == 0, "the gateway is back")
