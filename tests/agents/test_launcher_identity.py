"""The launcher with the real identity plane: Workload API, SVID, mTLS. The gateway stays a fake."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from meshgate_identities.authority import DevelopmentAuthority
from meshgate_identities.source import IdentitySource
from meshgate_identities.spiffe_id import SpiffeId
from meshgate_identities.tls import gateway_dns_name, server_credentials
from meshgate_identities.workload_api import WorkloadApiServer
from meshgate_wire import broker_pb2_grpc

DOMAIN = "test.example"
SERVER_NAME = gateway_dns_name(trust_domain=DOMAIN, mesh="test")
ONE_CALL = "import desk_tools; print('GOT', desk_tools.refund.run(order='1'))"


@pytest.fixture
def workload_api(tmp_path: Path) -> Iterator[WorkloadApiServer]:
    """A development Workload API; its socket lies where paths are short."""
    with tempfile.TemporaryDirectory(prefix="mg") as folder:
        Path(folder).chmod(0o700)
        authority = DevelopmentAuthority(directory=tmp_path / "ca", trust_domain=DOMAIN)
        server = WorkloadApiServer(socket_path=Path(folder) / "w", authority=authority)
        server.path = Path(folder) / "w"
        server.start()
        yield server
        server.close()


@pytest.fixture
def tls_port(workload_api, desk) -> Iterator[int]:
    """The fake gateway behind real mTLS."""
    workload_api.register(os.getpid(), SpiffeId.parse(f"spiffe://{DOMAIN}/ns/test/gateway"), (SERVER_NAME,))
    source = IdentitySource(socket_path=workload_api.path)
    source.start(20)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    broker_pb2_grpc.add_BrokerServicer_to_server(desk.gateway, server)
    broker_pb2_grpc.add_RunsServicer_to_server(desk.gateway, server)
    port = server.add_secure_port("127.0.0.1:0", server_credentials(source))
    server.start()
    yield port
    server.stop(None).wait()
    source.close()


def launch(desk, workload_api, port, identity: str | None):
    """Starts `python -m meshgate_agents.launcher`, attested by its exact pid."""
    argv = desk.argv(
        sys.executable,
        "-c",
        ONE_CALL,
        workload_api=str(workload_api.path),
        gateway={"target": f"127.0.0.1:{port}", "server_name": SERVER_NAME},
    )
    argv[1:2] = ["-m", "meshgate_agents.launcher"]
    with subprocess.Popen(
        argv, cwd=desk.tmp, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        if identity:
            workload_api.register(process.pid, SpiffeId.parse(identity))
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_call_over_mtls(desk, workload_api, tls_port):
    """The launcher fetches its SVID and is served; the child never had either."""
    status, out, err = launch(desk, workload_api, tls_port, f"spiffe://{DOMAIN}/ns/test/desk")
    assert status == 0, err
    assert "GOT desk.refund ok" in out
    assert desk.marks() == []


def test_another_apps_identity_starts_nothing(desk, workload_api, tls_port):
    """A config of one app under the identity of another is an error of ours."""
    status, out, err = launch(desk, workload_api, tls_port, f"spiffe://{DOMAIN}/ns/test/other")
    assert status == 125
    assert "but the config is of" in err
    assert "GOT" not in out


def test_no_identity_starts_nothing(desk, workload_api, tls_port):
    """A launcher that nobody registered gets no SVID."""
    status, _out, err = launch(desk, workload_api, tls_port, None)
    assert status == 125
    assert "no identity for app 'desk'" in err
    assert desk.gateway.runs == []
