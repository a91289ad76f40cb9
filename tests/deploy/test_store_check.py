"""What a person is told about a store on a server that cannot be used, before anything starts."""

from collections.abc import Iterator

import pytest
from fakes.postgres_server import PostgresServer, postgres_server
from meshgate_deploy import store_check
from meshgate_deploy.errors import DependencyUnavailable
from meshgate_gateway.adapters.postgres_store import PostgresStore
from meshgate_gateway.errors import StoreUnavailable

PASSWORD = "hunter2-of-the-store"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that asks for a password, with a role that owns nothing."""
    with postgres_server(password=PASSWORD) as made:
        with made.connect() as owner:
            owner.execute(f"CREATE ROLE weak LOGIN PASSWORD '{PASSWORD}'".encode())
        yield made


def examined(server: PostgresServer, *, password: str = PASSWORD, role: str = "gateway", database: str = ""):
    """The check of a store on that server."""
    url = server.url(database or server.database(), role)
    return store_check.examine(url, {"PGPASSWORD": password})


def test_a_store_that_can_be_used(server, monkeypatch) -> None:
    """Empty or in use; nothing is left there, and nothing stays open."""
    name = server.database()
    assert examined(server, database=name).ok
    with server.connect(name) as owner:
        assert owner.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    PostgresStore(url=server.url(name)).close()
    assert examined(server, database=name).ok


@pytest.mark.parametrize("password", ["", "hunter3-of-the-store"])
def test_a_wrong_password_is_said_and_not_repeated(server, password) -> None:
    """The fix names the variable."""
    check = examined(server, password=password)
    assert not check.ok
    assert "PGPASSWORD" in check.fix
    assert "hunter" not in check.detail + check.fix


def test_a_server_that_is_away_stops_the_start(server) -> None:
    """Exit 5, with the place and what to try."""
    url = server.url().replace(str(server.folder), "/nowhere")
    with pytest.raises(DependencyUnavailable) as caught:
        store_check.require(url, {})
    assert "is not reached" in caught.value.why
    assert "psql" in caught.value.next_step


def test_a_stopped_server_is_not_waited_for(server) -> None:
    """Its kernel takes the connection and nobody answers."""
    url = server.url(server.database())
    with server.stopped():
        check = store_check.examine(url, {"PGPASSWORD": PASSWORD})
    assert "timeout" in check.detail


def test_a_role_without_rights_is_told_which(server, monkeypatch) -> None:
    """No table may be made; or what is there belongs to another."""
    name = server.database()
    check = examined(server, role="weak", database=name)
    assert "cannot make tables" in check.detail
    assert check.fix.endswith("GRANT USAGE, CREATE ON SCHEMA public TO weak")
    with server.connect(name) as owner:
        owner.execute("GRANT USAGE, CREATE ON SCHEMA public TO weak")
    assert examined(server, role="weak", database=name).ok
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    PostgresStore(url=server.url(name)).close()
    check = examined(server, role="weak", database=name)
    assert "weak cannot read and write" in check.detail
    assert "records" in check.fix


def test_a_server_that_does_not_sync_is_refused() -> None:
    """By the check and by the gateway: an acknowledged record would be lost with the power."""
    with postgres_server(settings=["fsync=off"]) as loose:
        assert "does not sync" in store_check.examine(loose.url(), {}).detail
        with pytest.raises(StoreUnavailable) as caught:
            PostgresStore(url=loose.url())
    assert "does not sync" in caught.value.detail


def test_a_file_needs_no_check() -> None:
    """Without a server nothing is asked."""
    store_check.require("sqlite", {})
