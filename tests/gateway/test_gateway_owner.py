"""A store is one mesh's: its own gateways use it together, another mesh's end before they write."""

import threading

import pytest
from fakes.gateway_parts import FaultyStore
from fakes.gateway_wire import serve
from gateway.conftest import CATALOGUE
from meshgate_gateway import catalogue, owner
from meshgate_gateway.adapters.sqlite_store import SqliteStore
from meshgate_gateway.authenticate import Mesh
from meshgate_gateway.errors import ConfigurationError, StoreUnavailable
from meshgate_gateway.model import Run

KEY = b"k" * 32


def mesh(name: str = "desk", trust_domain: str = "desk.example") -> Mesh:
    """A mesh without apps."""
    return Mesh(name, trust_domain, frozenset(), catalogue.parse(b'{"tools": {}, "apps": {}}'))


def test_gateways_of_one_mesh_share_a_store(make_store) -> None:
    """However many, one after the other and at once."""
    stores = [make_store() for _ in range(2)]
    for store in (*stores, *stores):
        owner.claim(store, mesh(), payload_key=KEY)
    assert len({store.read(lambda tables: tables.owner()) for store in stores}) == 1
    for store in stores:
        store.close()


@pytest.mark.parametrize(
    ("other", "key", "said"),
    [
        (mesh(name="shop"), KEY, "belongs to mesh 'desk' of trust domain 'desk.example'"),
        (mesh(trust_domain="shop.example"), KEY, "this is mesh 'desk' of 'shop.example'"),
        (mesh(), b"l" * 32, "under another payload key"),
    ],
)
def test_another_mesh_is_refused(make_store, other, key, said) -> None:
    """By name, by trust domain, and a copy of a project by its key; the owner stays."""
    store = make_store()
    owner.claim(store, mesh(), payload_key=KEY)
    with pytest.raises(ConfigurationError) as caught:
        owner.claim(store, other, payload_key=key)
    assert said in str(caught.value)
    assert "store of its own" in str(caught.value)
    owner.claim(store, mesh(), payload_key=KEY)
    store.close()


def test_of_two_meshes_that_come_at_once_one_is_refused(make_store) -> None:
    """Which one, the store says."""
    stores = [make_store() for _ in range(2)]
    together, ends = threading.Barrier(2), []

    def begin(store, name: str) -> None:
        together.wait()
        try:
            owner.claim(store, mesh(name=name), payload_key=KEY)
            ends.append("owner")
        except ConfigurationError:
            ends.append("refused")

    threads = [
        threading.Thread(target=begin, args=(store, f"m{number}")) for number, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["owner", "refused"]
    for store in stores:
        store.close()


@pytest.mark.parametrize(
    "app", ["spiffe://desk.example/ns/shop/crew", "spiffe://shop.example/ns/desk/crew", "nobody"]
)
def test_a_store_from_before_is_the_mesh_s_whose_runs_it_holds(make_store, app) -> None:
    """It says nothing of an owner: its newest run does."""
    store = make_store()
    store.write(lambda tables: tables.runs.insert(Run("r", app, "running", 1, "l1", 1, 1, 1, 0, "")))
    with pytest.raises(ConfigurationError):
        owner.claim(store, mesh(), payload_key=KEY)
    assert store.read(lambda tables: tables.owner()) is None
    own = Run("s", "spiffe://desk.example/ns/desk/crew", "running", 1, "l1", 2, 2, 2, 0, "")
    store.write(lambda tables: tables.runs.insert(own))
    owner.claim(store, mesh(), payload_key=KEY)
    store.close()


@pytest.mark.parametrize(
    "said", ["", "nonsense", "[]", "{}", '{"mesh": "desk", "trust_domain": "desk.example"}']
)
def test_an_owner_that_cannot_be_read_is_not_us(make_store, said) -> None:
    """Refused in words, not by a crash."""
    store = make_store()
    store.write(lambda tables: tables.own(said))
    with pytest.raises(ConfigurationError):
        owner.claim(store, mesh(), payload_key=KEY)
    store.close()


def test_a_store_that_cannot_say_is_not_used(make_store) -> None:
    """No verdict is no leave."""
    store = FaultyStore(make_store())
    store.fail_before = True
    with pytest.raises(StoreUnavailable):
        owner.claim(store, mesh(), payload_key=KEY)
    store.close()


def test_a_gateway_of_another_mesh_writes_nothing(tmp_path) -> None:
    """It ends before it takes a name in the store, or opens a port."""
    store = SqliteStore(path=tmp_path / "g.db")
    owner.claim(store, mesh(name="shop"), payload_key=KEY)
    with pytest.raises(ConfigurationError):
        serve(tmp_path, CATALOGUE)
    counted = store.read(
        lambda tables: (
            tables.records.head().seq,
            tables.instances._db.execute("SELECT count(*) FROM instances").fetchone(),
        )
    )
    assert counted == (0, (0,))
    store.close()
