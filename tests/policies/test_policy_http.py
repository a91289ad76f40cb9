"""The adapter over opa-python-client, against a real OPA on loopback."""

import socket
import subprocess
import time

import pytest
from meshgate_policies.errors import PolicyUnavailable
from meshgate_policies.http_opa import HttpOpa

DEADLINE_SECONDS = 20


@pytest.fixture
def port():
    """A port nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_health_and_status_of_an_opa_over_http(opa_binary, tmp_path, port):
    """Health turns true once it is up, and its modules are listed; nothing afterwards."""
    (tmp_path / "a.rego").write_text('package mesh.agents.desk\n\nallow contains "a.b"\n')
    command = [str(opa_binary), "run", "--server", "--addr", f"127.0.0.1:{port}", "--log-level=error"]
    process = subprocess.Popen([*command, "--skip-version-check", "a.rego"], cwd=tmp_path)
    try:
        with HttpOpa(host="127.0.0.1", port=port) as opa:
            deadline = time.monotonic() + DEADLINE_SECONDS
            while not opa.health():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert opa.status().policies == ("a.rego",)
            process.kill()
            process.wait(timeout=10)
            assert not opa.health()
            with pytest.raises(PolicyUnavailable):
                opa.status()
    finally:
        process.kill()
        process.wait(timeout=10)


def test_token_reaches_the_server(opa_binary, tmp_path, port):
    """Status is refused without the token and given with it."""
    rules = """\
package system.authz

default allow := false

allow if input.identity == "secret"

allow if input.path == ["health"]
"""
    (tmp_path / "authz.rego").write_text(rules)
    command = [str(opa_binary), "run", "--server", "--addr", f"127.0.0.1:{port}", "--log-level=error"]
    command += ["--authentication=token", "--authorization=basic", "--skip-version-check", "authz.rego"]
    process = subprocess.Popen(command, cwd=tmp_path)
    try:
        with (
            HttpOpa(host="127.0.0.1", port=port) as stranger,
            HttpOpa(host="127.0.0.1", port=port, token="secret") as known,
        ):
            deadline = time.monotonic() + DEADLINE_SECONDS
            while not known.health():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert known.status().policies == ("authz.rego",)
            with pytest.raises(PolicyUnavailable):
                stranger.status()
    finally:
        process.kill()
        process.wait(timeout=10)
