"""The development Workload API, asked by the unmodified spiffe package."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from meshgate_identities.authority import DevelopmentAuthority
from meshgate_identities.source import IdentitySource
from meshgate_identities.spiffe_id import SpiffeId
from meshgate_identities.workload_api import WorkloadApiServer
from spiffe import WorkloadApiClient
from spiffe.errors import PySpiffeError

ID = SpiffeId.parse("spiffe://desk.example/ns/m/a")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[WorkloadApiServer]:
    """A server with SVIDs that live four seconds."""
    authority = DevelopmentAuthority(directory=tmp_path / "ca", trust_domain="desk.example")
    server = WorkloadApiServer(socket_path=tmp_path / "w", authority=authority, ttl=timedelta(seconds=4))
    server.start()
    yield server
    server.close()


def test_gives_a_registered_process_its_identity(api: WorkloadApiServer, tmp_path: Path) -> None:
    """The exact pid gets its SVID."""
    api.register(os.getpid(), ID)
    with WorkloadApiClient(f"unix:{tmp_path / 'w'}") as client:
        assert str(client.fetch_x509_svid().spiffe_id) == str(ID)


def test_refuses_an_unregistered_process(api: WorkloadApiServer, tmp_path: Path) -> None:
    """No entry, no identity."""
    with (
        WorkloadApiClient(f"unix:{tmp_path / 'w'}") as client,
        pytest.raises(PySpiffeError, match="registered"),
    ):
        client.fetch_x509_svid(timeout=5)


def test_refuses_a_child_of_a_registered_process(api: WorkloadApiServer, tmp_path: Path) -> None:
    """A descendant does not inherit the identity."""
    api.register(os.getpid(), ID)
    code = (
        "import sys; from spiffe import WorkloadApiClient\n"
        "WorkloadApiClient(sys.argv[1]).fetch_x509_svid(timeout=5)"
    )
    argv = [sys.executable, "-c", code, f"unix:{tmp_path / 'w'}"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert "no identity is registered" in done.stderr


def test_requires_the_security_header(api: WorkloadApiServer, tmp_path: Path) -> None:
    """Without the mandatory metadata the answer is INVALID_ARGUMENT."""
    api.register(os.getpid(), ID)
    with grpc.insecure_channel(f"unix:{tmp_path / 'w'}") as channel:
        call = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")(b"", timeout=5)
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_rotates_before_the_end(api: WorkloadApiServer, tmp_path: Path) -> None:
    """A watcher gets a new certificate at about half of the life."""
    api.register(os.getpid(), ID)
    source, rotated = IdentitySource(socket_path=tmp_path / "w"), threading.Event()
    first = source.start()
    source.subscribe(lambda _: rotated.set())
    try:
        assert rotated.wait(10)
        assert source.snapshot().chain_pem != first.chain_pem
    finally:
        source.close()
