"""A gateway below the wire: real store, real core, programmed neighbours."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes.gateway_parts import FaultyStore, HostRuntime, NamedPeers, ProgrammedPolicy, peer
from fakes.postgres_server import PostgresServer, postgres_server
from meshgate_gateway import catalogue
from meshgate_gateway.adapters.postgres_store import PostgresStore
from meshgate_gateway.adapters.sqlite_store import SqliteStore
from meshgate_gateway.authenticate import Door, Mesh
from meshgate_gateway.beginnings import Beginnings
from meshgate_gateway.broker import Broker, Rooms
from meshgate_gateway.delegations import Delegations
from meshgate_gateway.drive import Drive
from meshgate_gateway.execute import Executor, Waiters
from meshgate_gateway.history import History
from meshgate_gateway.hosts import Hosts
from meshgate_gateway.journal import Journal
from meshgate_gateway.model import CallRequest
from meshgate_gateway.own_calls import OwnCalls
from meshgate_gateway.payloads import Vault
from meshgate_gateway.policy import ActivePolicy, PolicySlot
from meshgate_gateway.record import Recorder
from meshgate_gateway.runs import Runs
from meshgate_gateway.store import RecordQuery
from meshgate_gateway.sweeper import Sweeper
from meshgate_gateway.verdicts import Verdicts

AMOUNT = {
    "type": "object",
    "properties": {"order": {"type": "string"}, "amount": {"type": "number"}},
    "required": ["order", "amount"],
}
LOOKUP = {"type": "object", "properties": {"order": {"type": "string"}}, "required": ["order"]}
TASK = {"type": "object", "properties": {"task": {"type": "string"}}, "required": ["task"]}
AGENTS = ("billing", "refunds", *(f"a{number}" for number in range(10)))


def entry(schema: dict[str, object], **more: object) -> dict[str, object]:
    return {"host": "orders", "kind": "tool", "schema": schema, "definition_sha256": "d" * 64, **more}


CATALOGUE = {
    "tools": {
        "orders.refund": entry(AMOUNT, effect="irreversible"),
        "orders.lookup": entry(LOOKUP, effect="read"),
        "orders.keyed": entry(AMOUNT, effect="external", idempotent=True),
        "orders.once": entry(AMOUNT, effect="irreversible", repeat="deny"),
        "orders.booked": entry(AMOUNT, effect="irreversible", reconcile=True),
        "orders.again": entry(AMOUNT, effect="irreversible", repeat="allow"),
        "other.thing": {**entry(LOOKUP), "host": "other"},
        "desk.stage": {**entry(AMOUNT), "host": "desk", "effect": "memory", "execute": "agent"},
        **{f"agent:{name}": {**entry(TASK), "host": name, "kind": "delegate"} for name in AGENTS},
    },
    "apps": {
        "desk": {"kind": "crew"},
        "rival": {"kind": "crew"},
        "nightly": {"kind": "program"},
        "orders": {"kind": "toolhost"},
        "other": {"kind": "toolhost"},
        **{name: {"kind": "agent"} for name in AGENTS},
    },
}


class Clock:
    def __init__(self) -> None:
        self.ms = 1_800_000_000_000

    def __call__(self) -> int:
        return self.ms


GIVEN = b'{"app":"desk","command":["true"]}'  # as a launcher at a terminal tells it


@dataclass
class World:
    """Everything a test turns."""

    store: FaultyStore
    policy: ProgrammedPolicy
    runtime: HostRuntime
    broker: Broker
    hosts: Hosts
    runs: Runs
    sweeper: Sweeper
    executor: Executor
    clock: Clock
    vault: Vault
    journal: Journal
    history: History
    own_calls: OwnCalls
    drive: Drive

    def run(self, run_id: str = "run-1") -> Any:
        return self.store.read(lambda tables: tables.runs.get(run_id))

    def call(self, app: str = "desk", **changed: Any) -> Any:
        fields: dict[str, Any] = {
            "run_id": "run-1",
            "attempt": 1,
            "step_key": "0" * 32,
            "tool": "orders.refund",
            "arguments": {"order": "A1", "amount": 20},
            "deadline_ms": 0,
            "untrusted": {},
            "scope": "5c" * 32,
            **changed,
        }
        arguments = fields.pop("arguments")
        raw = arguments if isinstance(arguments, bytes) else json.dumps(arguments).encode()
        return self.broker.handle(peer(app), CallRequest(arguments_json=raw, **fields))

    def records(self, kind: str = "") -> list[dict[str, Any]]:
        rows = self.store.read(lambda tables: tables.records.query(RecordQuery(kind=kind)))
        return [json.loads(body) for _, body in rows]

    def row(self, call_id: str) -> Any:
        return self.store.read(lambda tables: tables.calls.get(call_id))

    def begin(self, app: str = "desk", run_id: str = "run-1", launcher: str = "l1") -> None:
        self.runs.start(peer(app), run_id=run_id, input_json=GIVEN)
        self.runs.start_attempt(peer(app), run_id=run_id, launcher=launcher)


def make_world(kept: SqliteStore | PostgresStore) -> World:
    tools = catalogue.parse(json.dumps(CATALOGUE).encode())
    store, policy, runtime, clock = (
        FaultyStore(kept),
        ProgrammedPolicy(),
        HostRuntime(),
        Clock(),
    )
    recorder = Recorder(instance=lambda: "gateway-0", now_ms=clock)
    mesh = Mesh("desk", "desk.example", frozenset(), tools)
    door = Door(verifier=NamedPeers(), mesh=mesh, store=store, recorder=recorder)
    vault, executor, waiters = Vault(key=b"k" * 32), Executor(runtime=runtime), Waiters(limit=4)
    slot = PolicySlot(active=ActivePolicy(policy, "r1", "sha256:0"))
    verdicts = Verdicts(slot, vault, recorder, tools, clock)
    hosts = Hosts(door, store, vault, recorder, executor, waiters, clock, verdicts, tools.reconciled)
    runtime.hosts = hosts
    delegations = Delegations(vault, recorder, waiters, clock)
    drive = Drive(store, vault, recorder, runtime, mesh, clock, delegations, since_ms=clock())
    rooms = Rooms(door, store, slot, vault, recorder, executor, waiters, delegations, drive)
    broker = Broker(rooms=rooms, catalogue=tools, now_ms=clock, wait_seconds=0.05)
    beginnings = Beginnings(delegations, verdicts, clock)
    runs = Runs(door, store, vault, recorder, clock, delegations, beginnings)
    sweeper = Sweeper(store, hosts, executor, clock, delegations, tools.agents)
    journal = Journal(door, store, vault, recorder, clock)
    history = History(store, vault, recorder, mesh, clock)
    own = OwnCalls(door, store, vault, recorder, waiters, clock)
    return World(
        store,
        policy,
        runtime,
        broker,
        hosts,
        runs,
        sweeper,
        executor,
        clock,
        vault,
        journal,
        history,
        own,
        drive,
    )


@dataclass
class Postgres:
    """A server and a database in it that has our schema, to copy from."""

    server: PostgresServer
    prepared: str

    def url(self) -> str:
        """A new database with our schema and nothing in it."""
        return self.server.url(self.server.database(self.prepared))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server for all tests that only fill databases of their own."""
    with postgres_server() as server:
        name = server.database()
        PostgresStore(url=server.url(name)).close()
        yield Postgres(server, name)


@pytest.fixture(params=["sqlite", "postgresql"])
def make_store(request, tmp_path: Path) -> Callable[[], SqliteStore | PostgresStore]:
    """Opens the test's database, as often as it is called."""
    if request.param == "sqlite":
        return lambda: SqliteStore(path=tmp_path / "s.db")
    url = request.getfixturevalue("postgres").url()
    return lambda: PostgresStore(url=url)


@pytest.fixture
def world(make_store) -> Iterator[World]:
    made = make_world(make_store())
    made.begin()
    yield made
    made.store.close()
