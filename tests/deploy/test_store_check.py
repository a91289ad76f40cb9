"""What a person is told about a store on a server that cannot be used, before anything starts."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.postgres_server import PostgresServer, postgres_server
from meshgate_deploy import store_check
from meshgate_deploy.environment import Environment
from meshgate_deploy.errors import DependencyUnavailable
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.probes import Check
from meshgate_gateway.adapters.postgres_store import PostgresStore
from meshgate_gateway.adapters.sqlite_store import SqliteStore
from meshgate_gateway.errors import StoreUnavailable

PASSWORD = "hunter2-of-the-store"
NOWHERE = Path("/nowhere/gateway.db")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that asks for a password, with a role that owns nothing."""
    with postgres_server(password=PASSWORD) as made:
        with made.connect() as owner:
            owner.execute(f"CREATE ROLE weak LOGIN PASSWORD '{PASSWORD}'".encode())
        yield made


def looked_at(tmp_path: Path, url: str, **variables: str) -> tuple[Manifest, Environment]:
    """A manifest with that store, and what is set."""
    programs = {"nightly": {"run": ["python", "n.py"]}}
    values = {"apiVersion": "meshgate/v1", "mesh": "m", "trustDomain": "m.example", "programs": programs}
    manifest = Manifest.model_validate({**values, "store": url})
    return manifest, Environment(project=tmp_path, environ=variables)


@pytest.fixture
def examined(tmp_path, server) -> Callable[..., Check]:
    """The check of a store on that server, as the gateway will use it."""

    def examine(password: str = PASSWORD, role: str = "gateway", database: str = "") -> Check:
        url = server.url(database or server.database(), role)
        return store_check.examine(*looked_at(tmp_path, url, PGPASSWORD=password), file=NOWHERE)[0]

    return examine


def test_a_store_that_can_be_used(server, examined, monkeypatch) -> None:
    """Empty or in use; nothing is left there, and nothing stays open."""
    name = server.database()
    assert examined(database=name).ok
    with server.connect(name) as owner:
        assert owner.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    PostgresStore(url=server.url(name)).close()
    assert examined(database=name).ok


@pytest.mark.parametrize("password", ["", "hunter3-of-the-store"])
def test_a_wrong_password_is_said_and_not_repeated(examined, password) -> None:
    """The fix names the variable."""
    check = examined(password=password)
    assert not check.ok
    assert "PGPASSWORD" in check.fix
    assert "hunter" not in check.detail + check.fix


def test_a_server_that_is_away_stops_the_start(server, tmp_path) -> None:
    """Exit 5, with the place and what to try."""
    url = server.url().replace(str(server.folder), "/nowhere")
    with pytest.raises(DependencyUnavailable) as caught:
        store_check.require(*looked_at(tmp_path, url), file=NOWHERE)
    assert "is not reached" in caught.value.why
    assert "psql" in caught.value.next_step


def test_a_stopped_server_is_not_waited_for(server, examined) -> None:
    """Its kernel takes the connection and nobody answers."""
    name = server.database()
    with server.stopped():
        check = examined(database=name)
    assert "timeout" in check.detail


def test_a_role_without_rights_is_told_which(server, examined, monkeypatch) -> None:
    """No table may be made; or what is there belongs to another."""
    name = server.database()
    check = examined(role="weak", database=name)
    assert "cannot make tables" in check.detail
    assert check.fix.endswith("GRANT USAGE, CREATE ON SCHEMA public TO weak")
    with server.connect(name) as owner:
        owner.execute("GRANT USAGE, CREATE ON SCHEMA public TO weak")
    assert examined(role="weak", database=name).ok
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    PostgresStore(url=server.url(name)).close()
    check = examined(role="weak", database=name)
    assert "weak cannot read and write" in check.detail
    assert "records" in check.fix


def test_sidecars_may_have_a_role_of_their_own(server, tmp_path, monkeypatch) -> None:
    """It needs its own tables only; its password is asked for by name."""
    name = server.database()
    url = server.url(name)
    with server.connect() as owner:
        owner.execute("CREATE ROLE dapr LOGIN PASSWORD 'hunter4-of-dapr'")
    given = {"PGPASSWORD": PASSWORD, "MESHGATE_DAPR_PGUSER": "dapr"}
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    PostgresStore(url=url).close()
    _, check = store_check.examine(*looked_at(tmp_path, url, **given), file=NOWHERE)
    assert "MESHGATE_DAPR_PGPASSWORD" in check.fix
    given["MESHGATE_DAPR_PGPASSWORD"] = "hunter4-of-dapr"
    _, check = store_check.examine(*looked_at(tmp_path, url, **given), file=NOWHERE)
    assert "GRANT USAGE, CREATE ON SCHEMA public TO dapr" in check.fix
    with server.connect(name) as owner:
        owner.execute("GRANT USAGE, CREATE ON SCHEMA public TO dapr")
    checks = store_check.examine(*looked_at(tmp_path, url, **given), file=NOWHERE)
    assert [check.ok for check in checks] == [True, True]


def test_a_server_that_does_not_sync_is_refused(tmp_path) -> None:
    """By the check and by the gateway: an acknowledged record would be lost with the power."""
    with postgres_server(settings=["fsync=off"]) as loose:
        (check, _) = store_check.examine(*looked_at(tmp_path, loose.url()), file=NOWHERE)
        assert "does not sync" in check.detail
        with pytest.raises(StoreUnavailable) as caught:
            PostgresStore(url=loose.url())
    assert "does not sync" in caught.value.detail


def owned_by(mesh: str, trust_domain: str) -> str:
    """What a gateway of that mesh leaves in its store."""
    return json.dumps({"mesh": mesh, "trust_domain": trust_domain, "payload_key": "0" * 64})


@pytest.mark.parametrize("owner", [owned_by("n", "m.example"), owned_by("m", "n.example"), "{}", "nonsense"])
def test_a_store_of_another_mesh_stops_the_start(server, tmp_path, monkeypatch, owner) -> None:
    """On a server and in a file: who owns it, and what to do."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    url, file = server.url(server.database()), tmp_path / "gateway.db"
    for store, place in ((PostgresStore(url=url), url), (SqliteStore(path=file), "sqlite")):
        store.write(lambda tables: tables.own(owner))
        store.close()
        given = (*looked_at(tmp_path, place, PGPASSWORD=PASSWORD),)
        with pytest.raises(DependencyUnavailable) as caught:
            store_check.require(*given, file=file)
        named = json.loads(owner).get("trust_domain", "?") if owner.startswith("{") else "?"
        assert f"of trust domain '{named}', this is mesh 'm' of 'm.example'" in caught.value.why
        assert "meshgate.yaml" in caught.value.next_step


def test_a_store_of_this_mesh_is_used(server, tmp_path, monkeypatch) -> None:
    """Whoever of its gateways came first."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    url, file = server.url(server.database()), tmp_path / "gateway.db"
    for store, place in ((PostgresStore(url=url), url), (SqliteStore(path=file), "sqlite")):
        store.write(lambda tables: tables.own(owned_by("m", "m.example")))
        store.close()
        checks = store_check.examine(*looked_at(tmp_path, place, PGPASSWORD=PASSWORD), file=file)
        assert all(check.ok for check in checks)
        assert checks


def test_a_file_that_is_no_store_is_said(tmp_path) -> None:
    """And left alone; one that was cut while it was made is begun anew."""
    file = tmp_path / "gateway.db"
    file.touch()
    assert store_check.examine(*looked_at(tmp_path, "sqlite"), file=file)[0].ok
    file.write_bytes(b"a letter to somebody" * 100)
    (check,) = store_check.examine(*looked_at(tmp_path, "sqlite"), file=file)
    assert (check.ok, "is not read" in check.detail) == (False, True)
    assert file.read_bytes() == b"a letter to somebody" * 100


def test_a_file_needs_no_check(tmp_path) -> None:
    """Without a server and before the first start nothing is asked."""
    assert store_check.examine(*looked_at(tmp_path, "sqlite"), file=NOWHERE) == []
