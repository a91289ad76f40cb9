"""Puts a gateway together from its parts; tests and benchmarks compose it with other parts."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import grpc
from grpc_health.v1 import health_pb2_grpc
from meshgate_identities.verification import Bundles, PeerVerifier
from meshgate_wire import broker_pb2_grpc as rpc

from meshgate_gateway.admin import Admin
from meshgate_gateway.authenticate import Authenticator
from meshgate_gateway.broker import ActivePolicy, Books, Broker
from meshgate_gateway.catalogue import Catalogue
from meshgate_gateway.execute import Executor, ToolRuntime
from meshgate_gateway.hosts import Hosts
from meshgate_gateway.outcomes import Outcomes
from meshgate_gateway.payloads import Payloads
from meshgate_gateway.readiness import Readiness
from meshgate_gateway.record import Recorder
from meshgate_gateway.runs import Runs
from meshgate_gateway.server import SERVER_OPTIONS, AdminService, BrokerService, Door, RunsService
from meshgate_gateway.store import Store
from meshgate_gateway.sweeper import Sweeper

THREADS = 16  # measured best on 2 cores


@dataclass(frozen=True, slots=True)
class Mesh:
    """What the gateway knows of its mesh."""

    name: str
    trust_domain: str
    catalogue: Catalogue
    operators: frozenset[str]


@dataclass(frozen=True, slots=True)
class Parts:
    """What differs between production, tests and benchmarks."""

    store: Store
    payload_key: bytes
    policy: ActivePolicy
    runtime: ToolRuntime
    bundles: Callable[[], Bundles]
    version: str
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)


class Gateway:
    """A composed gateway: a gRPC server, its sweeper and its readiness."""

    def __init__(self, *, mesh: Mesh, parts: Parts, threads: int = THREADS) -> None:
        self.outcomes = Outcomes()
        recorder = Recorder(gateway=f"{mesh.name}/gateway", version=parts.version, clock=parts.clock)
        self.books = Books(parts.store, recorder, Payloads(parts.payload_key), parts.clock)
        executor = Executor(runtime=parts.runtime)
        self.broker = Broker(
            books=self.books,
            catalogue=mesh.catalogue,
            policy=parts.policy,
            executor=executor,
            outcomes=self.outcomes,
            waiters=threads // 2,
        )
        self.hosts = Hosts(books=self.books, outcomes=self.outcomes, executor=executor)
        self.admin = Admin(books=self.books, broker=self.broker, operators=mesh.operators)
        self.runs = Runs(store=parts.store, recorder=recorder, clock=parts.clock)
        self.sweeper = Sweeper(books=self.books, outcomes=self.outcomes)
        self.readiness = Readiness(books=self.books, broker=self.broker)
        self.server = self._server(mesh, parts, threads)

    def start(self) -> None:
        """Starts serving; the port must have been added."""
        self.readiness.start()
        self.sweeper.start()
        self.server.start()

    def close(self, grace_seconds: float = 2.0) -> None:
        """Stops serving, lets calls under way end, then stops the rest."""
        self.readiness.close()
        self.server.stop(grace_seconds).wait()
        self.sweeper.close()
        self.books.store.close()

    def _server(self, mesh: Mesh, parts: Parts, threads: int) -> grpc.Server:
        verifier = PeerVerifier(bundles=parts.bundles, clock=parts.clock)
        authenticator = Authenticator(
            verifier=verifier, mesh=mesh.name, trust_domain=mesh.trust_domain, catalogue=mesh.catalogue
        )
        door = Door(authenticator=authenticator, books=self.books)
        server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="call"), options=list(SERVER_OPTIONS)
        )
        broker = BrokerService(door=door, broker=self.broker, hosts=self.hosts, catalogue=mesh.catalogue)
        admin = AdminService(
            door=door, admin=self.admin, version=parts.version, readiness=self.readiness.reasons
        )
        rpc.add_BrokerServicer_to_server(broker, server)
        rpc.add_RunsServicer_to_server(RunsService(door=door, runs=self.runs), server)
        rpc.add_AdminServicer_to_server(admin, server)
        health_pb2_grpc.add_HealthServicer_to_server(self.readiness.servicer, server)
        return server
