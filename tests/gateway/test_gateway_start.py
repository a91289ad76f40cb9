"""Bad configuration ends the process before a port opens; two gateways never share a name."""

import json
from pathlib import Path

import pytest
from gateway.conftest import CATALOGUE
from meshgate_gateway import catalogue, schemas
from meshgate_gateway.__main__ import main
from meshgate_gateway.adapters.sqlite_store import SqliteStore
from meshgate_gateway.errors import ConfigurationError, Conflict, StoreUnavailable
from meshgate_gateway.instances import Instance
from meshgate_gateway.payloads import Vault, load_key
from meshgate_gateway.server import contained


def test_a_configuration_without_its_parts_is_status_1(tmp_path: Path, caplog) -> None:
    """Missing file, missing key of the file: one line, status 1."""
    config = tmp_path / "c.json"
    assert main(["--config", str(config)]) == 1
    config.write_text(json.dumps({"mesh": "desk"}))
    assert main(["--config", str(config)]) == 1
    assert "trust_domain" in caplog.text


@pytest.mark.parametrize(
    "entries",
    [
        b"nonsense",
        b"{}",
        json.dumps(
            {"tools": {"a.b": {"host": "a", "schema": {}, "definition_sha256": ""}}, "apps": {}}
        ).encode(),
        json.dumps({**CATALOGUE, "apps": {"desk": {"kind": "wizard"}}}).encode(),
    ],
)
def test_a_catalogue_that_does_not_hold_together_is_refused(entries: bytes) -> None:
    """Not JSON, no tools, a host that is no app, an unknown kind."""
    with pytest.raises(ConfigurationError):
        catalogue.parse(entries)


def test_the_careful_defaults_of_a_tool() -> None:
    """Silence means irreversible and not idempotent; a schema that points elsewhere is refused."""
    entry = {"host": "orders", "schema": {"$ref": "http://x/y"}, "definition_sha256": "d"}
    document = {"tools": {"orders.t": entry}, "apps": {"orders": {"kind": "toolhost"}}}
    tool = catalogue.parse(json.dumps(document).encode()).tools["orders.t"]
    assert (tool.effect, tool.idempotent, tool.repeat, tool.repeatable) == (
        "irreversible",
        False,
        "same",
        False,
    )
    with pytest.raises(ConfigurationError):
        schemas.validator(tool)


def test_payloads_open_under_their_own_key_only(tmp_path: Path) -> None:
    """What was sealed comes back; another key or a short key file is an error, never garbage."""
    store = SqliteStore(path=tmp_path / "s.db")
    sealed = store.write(lambda tables: Vault(key=b"a" * 32).put(tables, b"clear text"))
    assert store.read(lambda tables: Vault(key=b"a" * 32).get(tables, sealed)) == b"clear text"
    with pytest.raises(StoreUnavailable):
        store.read(lambda tables: Vault(key=b"b" * 32).get(tables, sealed))
    store.close()
    assert b"clear text" not in (tmp_path / "s.db").read_bytes()
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(ConfigurationError):
        load_key(tmp_path / "key")


def test_two_gateways_have_two_names(tmp_path: Path) -> None:
    """A name is held while its lease runs, and free once it is released."""
    store = SqliteStore(path=tmp_path / "s.db")
    first, second = Instance(store=store), Instance(store=store)
    assert (first.name, second.name) == ("gateway-0", "gateway-1")
    assert first.renew()
    first.release()
    assert Instance(store=store).name == "gateway-0"
    assert not first.renew()
    store.close()


def test_a_loop_outlives_what_nobody_foresaw(caplog) -> None:
    """It is told by its place, without its text; what the loop knows how to take goes through."""

    def fault() -> None:
        raise ValueError("card 4111")

    def busy() -> None:
        raise Conflict("run_changed")

    contained(fault)
    assert "a loop met an internal error: ValueError" in caplog.text
    assert "4111" not in caplog.text
    with pytest.raises(Conflict):
        contained(busy)
