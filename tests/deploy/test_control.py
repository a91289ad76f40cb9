"""The control socket: who is admitted, how descriptors and errors travel."""

import base64
import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from meshgate_deploy import control
from meshgate_deploy.control import (
    MAX_REQUEST_BYTES,
    ControlServer,
    ask,
    ask_once,
    connect,
    converse,
    reachable,
)
from meshgate_deploy.errors import Denied, DependencyUnavailable, NotFound, UsageError
from meshgate_gateway.server import MAX_MESSAGE_BYTES
from meshgate_identities import attestation

# A supervisor in a process of its own: the tests are then no descendants of it.
SERVER = """
import os, subprocess, sys, threading
from pathlib import Path
from meshgate_deploy.control import ControlServer
from meshgate_deploy.errors import NotFound
def handle(request, descriptors, connection, send):
    if request["op"] == "write":
        os.write(descriptors[1], b"through")
        send({"got": len(descriptors)})
    elif request["op"] == "spawn":
        done = subprocess.run([sys.executable, "-c", request["code"]], capture_output=True, text=True)
        send({"out": done.stdout, "err": done.stderr})
    elif request["op"] == "size":
        send({"size": len(request["given"])})
    elif request["op"] == "fail":
        raise NotFound("nothing there", why="because", next_step="look elsewhere")
    else:
        raise ValueError("no such operation")
server = ControlServer(path=Path(sys.argv[1]), handle=handle)
server.start()
print("ready", flush=True)
sys.stdin.read()
server.close()
"""
INNER = """
from pathlib import Path
from meshgate_deploy.control import ask_once
from meshgate_deploy.errors import Denied
try:
    ask_once(Path({path!r}), {{"op": "fail"}})
except Denied as error:
    print("denied:", error.what)
"""


@pytest.fixture
def served(tmp_path):
    """The socket of a running server."""
    path = tmp_path / "c.sock"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdout.readline() == b"ready\n"
    yield path
    server.communicate(timeout=10)
    assert not path.exists()


def test_the_socket_is_for_its_owner(served):
    """Mode 0600."""
    assert served.stat().st_mode & 0o777 == 0o600


def test_descriptors_pass_through(served):
    """Standard streams reach the supervisor as they are."""
    reader, writer = os.pipe()
    with Path(os.devnull).open() as null:
        answers = list(ask(served, {"op": "write"}, descriptors=(null.fileno(), writer, writer)))
    os.close(writer)
    assert answers == [{"got": 3}]
    assert os.read(reader, 100) == b"through"
    os.close(reader)


def test_what_an_earlier_mesh_left_is_refused(served):
    """A program's process whose supervisor and launcher were killed at once descends from nobody any more."""
    marked = "import ctypes; ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)\n" + INNER.format(path=str(served))
    done = subprocess.run([sys.executable, "-c", marked], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("denied: a process without a way to privileges"), done.stderr


def test_a_process_of_the_mesh_is_refused(served):
    """A child of the supervisor, as every process of an agent is, commands nothing."""
    answer = ask_once(served, {"op": "spawn", "code": INNER.format(path=str(served))})
    assert answer["out"] == "denied: a process of the mesh may not command it\n", answer["err"]


def test_an_orphan_of_the_mesh_is_refused_too(served):
    """Leaving the session does not make a process anybody else's."""
    inner = INNER.format(path=str(served))
    code = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], start_new_session=True)"
    )
    assert "denied:" in ask_once(served, {"op": "spawn", "code": code})["out"]


def test_the_largest_message_of_the_gateway_fits_into_a_request(served):
    """As base64 in JSON; what is larger than that is refused before anything is sent."""
    largest = base64.b64encode(b"x" * MAX_MESSAGE_BYTES).decode()
    assert ask_once(served, {"op": "size", "given": largest}) == {"size": len(largest)}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(UsageError, match="too large") as caught:
            next(converse(ours, {"op": "size", "given": 2 * largest}, ()))
        assert str(MAX_REQUEST_BYTES) in caught.value.why
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


@pytest.mark.parametrize(
    ("sent", "said"), [(b'{"op"', "ended in its middle"), (b" " * (MAX_REQUEST_BYTES + 1), "too large")]
)
def test_a_request_that_cannot_be_read_is_told_in_a_sentence(served, sent, said):
    """Whoever wrote it: the supervisor does not rely on the command line's own check."""
    with connect(served) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
        answer = json.loads(sock.makefile("rb").readline())
    assert said in answer["error"]["what"]
    assert answer["error"]["exit_code"] == UsageError.exit_code


@pytest.mark.parametrize("fault", ["ended", "younger"])
def test_a_process_whose_origin_cannot_be_told_is_refused(tmp_path, monkeypatch, fault):
    """A parent that ends during the walk, or whose pid a younger one has, could hide where it came from."""

    def process(pid):
        if pid != os.getpid() and fault == "ended":
            raise ProcessLookupError(pid)
        return attestation.Process(pid, 1 if pid == os.getpid() else 2)

    server = ControlServer(path=tmp_path / "c.sock", handle=lambda *_: pytest.fail("it was let in"))
    server._own = attestation.Process(2**22 + 1, 0)  # nobody on the way is the supervisor
    monkeypatch.setattr(attestation, "peer", lambda _: attestation.Peer(process(os.getpid()), os.getuid()))
    monkeypatch.setattr(attestation, "process", process)
    server.start()
    try:
        with pytest.raises(Denied, match="cannot be told"):
            ask_once(tmp_path / "c.sock", {"op": "status"})
    finally:
        server.close()


def test_another_user_is_refused(tmp_path, monkeypatch):
    """Should a process of another user ever reach the socket, the kernel's word about it decides."""
    server = ControlServer(path=tmp_path / "c.sock", handle=lambda *_: pytest.fail("it was let in"))
    stranger = attestation.Peer(attestation.process(1), os.getuid() + 1)
    monkeypatch.setattr(attestation, "peer", lambda _: stranger)
    server.start()
    try:
        with pytest.raises(Denied):
            ask_once(tmp_path / "c.sock", {"op": "status"})
    finally:
        server.close()


def test_errors_keep_their_kind_of_exit(served):
    """What the supervisor raises is what the command shows."""
    with pytest.raises(Exception, match="nothing there") as caught:
        ask_once(served, {"op": "fail"})
    assert (caught.value.why, caught.value.next_step) == ("because", "look elsewhere")
    assert caught.value.exit_code == NotFound.exit_code


def test_a_bad_request_is_answered(served):
    """A handler's ValueError is an answer, not a dead thread."""
    with pytest.raises(Exception, match="the request failed"):
        ask_once(served, {"op": "?"})


def test_a_second_server_is_refused(served):
    """One supervisor per project."""
    with pytest.raises(DependencyUnavailable):
        ControlServer(path=served, handle=lambda *_: None).start()


def test_no_supervisor_is_told_with_the_next_command(tmp_path):
    """`meshgate up` is what helps."""
    assert not reachable(tmp_path / "none")
    with pytest.raises(DependencyUnavailable) as caught:
        ask_once(tmp_path / "none", {"op": "status"})
    assert caught.value.next_step == "meshgate up"
    assert not isinstance(caught.value, Denied)


def test_a_request_whose_streams_do_not_fit_is_refused():
    """The kernel leaves out what there is no room for: a run with a terminal is not taken for one without."""
    asker, supervisor = socket.socketpair()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held, got = [], []
    with asker, supervisor:
        socket.send_fds(asker, [b'{"op": "run"}\n'], [0, 1, 2])
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.open(os.devnull, os.O_RDONLY))
            os.close(held.pop())  # room for one
            with pytest.raises(OSError, match="no room for the request's streams"):
                control._receive(supervisor, got)
        finally:
            for descriptor in (*held, *got):
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(got) == 1  # handed to whoever closes them
