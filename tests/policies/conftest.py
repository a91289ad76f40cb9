"""Real OPA servers on Unix sockets, and fake ones that misbehave."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.opa_servers import FakeServer, RunningOpa, run_opa


@pytest.fixture(scope="session")
def running_opa(opa_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningOpa]:
    """One OPA for the tests that leave it alone."""
    with run_opa(opa_binary, tmp_path_factory.mktemp("opa")) as running:
        yield running


@pytest.fixture
def fake_opa(tmp_path: Path) -> Iterator[Callable[[Callable[[socket.socket], None]], FakeServer]]:
    """Starts fake servers."""
    servers: list[FakeServer] = []

    def start(serve: Callable[[socket.socket], None]) -> FakeServer:
        server = FakeServer(tmp_path / f"fake{len(servers)}.sock", serve)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()
