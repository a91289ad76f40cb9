"""Puts a gateway together from its parts; tests and benchmarks give others than `__main__`."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import grpc

from meshgate_gateway import owner
from meshgate_gateway.adapters.services import AdminServicer, BrokerServicer, RunsServicer
from meshgate_gateway.admin import SAMPLE, Admin
from meshgate_gateway.archive import Archive
from meshgate_gateway.authenticate import Door, Mesh, Verifier
from meshgate_gateway.beginnings import Beginnings
from meshgate_gateway.broker import WAIT_SECONDS, Broker, Rooms
from meshgate_gateway.delegations import Delegations
from meshgate_gateway.drive import Drive, RunRuntime
from meshgate_gateway.errors import Refused, StoreUnavailable
from meshgate_gateway.execute import Executor, ToolRuntime, Waiters
from meshgate_gateway.health import Health
from meshgate_gateway.history import History
from meshgate_gateway.hosts import Hosts
from meshgate_gateway.instances import RENEW_SECONDS, Instance
from meshgate_gateway.journal import Journal
from meshgate_gateway.own_calls import OwnCalls
from meshgate_gateway.payloads import Vault
from meshgate_gateway.policy import ActivePolicy, PolicyPlace, PolicySlot
from meshgate_gateway.record import Recorder
from meshgate_gateway.runs import Runs
from meshgate_gateway.server import Server, Services, contained
from meshgate_gateway.store import Store
from meshgate_gateway.sweeper import Sweeper
from meshgate_gateway.verdicts import Verdicts

SWEEP_SECONDS = 3.0  # between two sweeps

_log = logging.getLogger(__name__)


class Runtime(ToolRuntime, RunRuntime, Protocol):
    """Delivers calls to tool hosts and runs to their apps."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything with a second implementation."""

    store: Store
    policy: PolicySlot
    runtime: Runtime
    verifier: Verifier
    now_ms: Callable[[], int]
    open_policy: Callable[[PolicyPlace], ActivePolicy]


class Gateway:
    """One gateway: a server, and loops that look after its health, its lease, and what was left open."""

    def __init__(  # noqa: PLR0913 - one place composes
        self,
        *,
        parts: Parts,
        mesh: Mesh,
        payload_key: bytes,
        listen: str,
        credentials: grpc.ServerCredentials,
        threads: int,
        probes: Mapping[str, Callable[[], object]] | None = None,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._parts, self._stop = parts, threading.Event()
        self._loops: list[threading.Thread] = []
        owner.claim(parts.store, mesh, payload_key=payload_key)
        self.instance = Instance(store=parts.store)
        self.recorder = Recorder(instance=lambda: self.instance.name, now_ms=parts.now_ms)
        vault = Vault(key=payload_key)
        door = Door(verifier=parts.verifier, mesh=mesh, store=parts.store, recorder=self.recorder)
        waiters = Waiters(limit=threads // 2)
        self.delegations = Delegations(vault, self.recorder, waiters, parts.now_ms)
        self.drive, self.history, self.archive = self._runs(vault, mesh)
        rooms = Rooms(
            door,
            parts.store,
            parts.policy,
            vault,
            self.recorder,
            Executor(runtime=parts.runtime),
            waiters,
            self.delegations,
            self.drive,
        )
        self.hosts = self._hosts(rooms, mesh)
        self.broker = Broker(
            rooms=rooms, catalogue=mesh.catalogue, now_ms=parts.now_ms, wait_seconds=wait_seconds
        )
        self.sweeper = Sweeper(
            parts.store, self.hosts, rooms.executor, parts.now_ms, self.delegations, mesh.catalogue.agents
        )
        self.health = Health(
            probes={**self._own_probes(), **(probes or {})},
            publish=lambda ready: self.server.serving(ready=ready),
        )
        self.server = Server(
            address=listen,
            credentials=credentials,
            door=door,
            make=self._services(door, vault, mesh),
            on_fault=self.health.fault,
            threads=threads,
        )

    def _hosts(self, rooms: Rooms, mesh: Mesh) -> Hosts:
        return Hosts(
            rooms.door,
            rooms.store,
            rooms.vault,
            self.recorder,
            rooms.executor,
            rooms.waiters,
            self._parts.now_ms,
            Verdicts(rooms.policy, rooms.vault, self.recorder, mesh.catalogue, self._parts.now_ms),
            mesh.catalogue.reconciled,
        )

    def _runs(self, vault: Vault, mesh: Mesh) -> tuple[Drive, History, Archive]:
        store, now_ms = self._parts.store, self._parts.now_ms
        runtime = self._parts.runtime
        return (
            Drive(store, vault, self.recorder, runtime, mesh, now_ms, self.delegations, since_ms=now_ms()),
            History(store, vault, self.recorder, mesh, now_ms),
            Archive(store, vault, self.recorder, mesh, now_ms),
        )

    def _services(self, door: Door, vault: Vault, mesh: Mesh) -> Services:
        parts, tools = self._parts, mesh.catalogue
        beginnings = Beginnings(self.delegations, self.hosts.verdicts, parts.now_ms)
        runs = Runs(door, parts.store, vault, self.recorder, parts.now_ms, self.delegations, beginnings)
        journal = Journal(door, parts.store, vault, self.recorder, parts.now_ms)
        own_calls = OwnCalls(door, parts.store, vault, self.recorder, self.hosts.waiters, parts.now_ms)
        admin = Admin(
            door=door,
            store=parts.store,
            policy=parts.policy,
            recorder=self.recorder,
            health=self.health,
            open_policy=parts.open_policy,
            run_control=runs,
            hosts=self.hosts,
            vault=vault,
            history=self.history,
            archive=self.archive,
            drive=self.drive,
        )
        return Services(
            lambda guard: BrokerServicer(
                guard=guard, broker=self.broker, hosts=self.hosts, own_calls=own_calls, catalogue=tools
            ),
            lambda guard: RunsServicer(guard=guard, runs=runs, journal=journal),
            lambda guard: AdminServicer(guard=guard, admin=admin),
        )

    def _own_probes(self) -> dict[str, Callable[[], object]]:
        return {
            "store_unavailable": self._parts.store.probe,
            "policy_unavailable": self._probe_policy,
        }

    def _probe_policy(self) -> None:
        # As a decision: an engine that is asked here is not stopped by an activation meanwhile.
        with self._parts.policy.deciding() as policy:
            policy.engine.evaluate(SAMPLE)

    def start(self) -> None:
        """Records the start, serves, and begins its loops."""
        active = self._parts.policy.active
        start = self.recorder.lifecycle(
            event="gateway_started", fields={"policy": active.revision, "policy_digest": active.digest}
        )
        self._parts.store.write(lambda tables: tables.records.append(start))
        self.server.start()
        loops = {"health": lambda: self.health.run(self._stop), "lease": self._lease, "keeper": self._keep}
        for name, loop in loops.items():
            thread = threading.Thread(target=loop, name=name, daemon=True)
            thread.start()
            self._loops.append(thread)

    def stop(self, grace_seconds: float = 5.0) -> None:
        """Stops serving, then its loops; records the stop where the store still works."""
        self._stop.set()
        self.health.stop()
        self.server.stop(grace_seconds)
        for loop in self._loops:
            loop.join(grace_seconds)
        record = self.recorder.lifecycle(event="gateway_stopped", fields={})
        try:
            self._parts.store.write(lambda tables: tables.records.append(record))
            self.instance.release()
        except StoreUnavailable as error:
            _log.warning("stopped without a record", extra={"detail": error.detail})

    def _lease(self) -> None:
        """Apart from the keeper: however long a sweep takes, its name stays with this gateway."""
        while not self._stop.wait(RENEW_SECONDS):
            self._kept(self._renew)

    def _keep(self) -> None:
        steps = (self.sweeper.sweep, self.drive.sweep, self.history.give_up_stale, self.archive.resume)
        while not self._stop.wait(SWEEP_SECONDS):
            for step in steps:
                self._kept(step)

    def _kept(self, step: Callable[[], object]) -> None:
        """One step of a loop, which no fault of a single row may end."""
        try:
            contained(step)
        except StoreUnavailable as error:
            self.health.fault(error.reason)
        except Refused as error:  # somebody else was quicker
            _log.warning("not swept", extra={"reason": error.reason})

    def _renew(self) -> None:
        if not self.instance.renew():
            _log.warning("another gateway took this name", extra={"name_lost": self.instance.name})
