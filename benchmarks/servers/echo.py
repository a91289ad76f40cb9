"""The baseline: a bare threaded gRPC server over mTLS, with the gateway's messages and thread count.

With `--level identity` it also does what the gateway does first with every call: certificate to
caller. Nothing is decided or written.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import grpc
from ca import DOMAIN, MESH, Authority
from meshgate_gateway.adapters.sqlite_store import SqliteStore
from meshgate_gateway.authenticate import Door, Mesh
from meshgate_gateway.record import Recorder
from meshgate_gateway.server import presented
from meshgate_gateway.settings import DEFAULT_THREADS
from meshgate_identities.verification import PeerVerifier
from meshgate_wire import broker_pb2 as pb
from meshgate_wire import broker_pb2_grpc as services

from servers import desk, serve_until_told, task

Check = Callable[[grpc.ServicerContext], object]


class Echo(services.BrokerServicer):
    """Answers with the arguments it was given."""

    def __init__(self, check: Check | None) -> None:
        self._check = check

    def CallTool(  # noqa: N802 - the name is the proto's
        self, request: pb.CallToolRequest, context: grpc.ServicerContext
    ) -> pb.CallToolResponse:
        """Echoes."""
        if self._check:
            self._check(context)
        return pb.CallToolResponse(state=pb.CALL_STATE_DONE, result=request.arguments_json)


def door(authority: Authority, database: Path) -> Door:
    """The gateway's own first room; its store is written to only when somebody is refused."""
    bundles = {DOMAIN: (authority.root,)}
    return Door(
        verifier=PeerVerifier(bundles=lambda: bundles, clock=lambda: datetime.now(UTC)),
        mesh=Mesh(MESH, DOMAIN, frozenset(), desk.catalogue()),
        store=SqliteStore(path=database),
        recorder=Recorder(instance=lambda: "echo", now_ms=lambda: time.time_ns() // 1_000_000),
    )


def main() -> None:
    """Serves until the parent goes."""
    given = task()
    authority = Authority(given.ca)
    check: Check | None = None
    if given.level == "identity":
        entrance = door(authority, given.folder / "echo.db")
        check = lambda context: entrance.enter(presented(context), "CallTool", str)  # noqa: E731
    server = grpc.server(ThreadPoolExecutor(DEFAULT_THREADS), options=(("grpc.so_reuseport", 0),))
    services.add_BrokerServicer_to_server(Echo(check), server)
    port = server.add_secure_port("127.0.0.1:0", authority.server_credentials())
    server.start()
    serve_until_told(port=port)
    server.stop(None).wait()


if __name__ == "__main__":
    main()
