"""The launcher's parts that need no process: frames, the tool map, settings, the import hook."""

import json
import shutil
import socket
import struct
import subprocess
import sys
from concurrent import futures

import grpc
import pytest
from meshgate_agents.child import import_hook
from meshgate_agents.child.framing import MAX_FRAME_BYTES, BadFrame, receive, send
from meshgate_agents.launcher.environment import SITE_FOLDER
from meshgate_agents.launcher.errors import AttemptEnded, BadSettings
from meshgate_agents.launcher.gateway import GrpcGateway
from meshgate_agents.launcher.launch import uuid7
from meshgate_agents.launcher.settings import ToolEntry, load
from meshgate_agents.launcher.tools import Refusal, ToolMap
from meshgate_wire import broker_pb2_grpc


class Refusing(broker_pb2_grpc.RunsServicer):
    """Refuses every start, as the gateway does: a reason, and nothing else for an agent."""

    def __init__(self, reason):
        self.reason = reason

    def StartRun(self, request, context):  # noqa: N802
        context.set_trailing_metadata((("meshgate-reason", self.reason),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.reason)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("run_ended", "the run has ended"),
        ("run_changed_input", "with another command"),
        ("run_purged", "was purged"),
        ("run_unknown", "no run of that id is this app's"),
    ],
)
def test_a_refusal_is_a_sentence_with_what_to_do(reason, said):
    """Its stable id stands once, behind it; the next step is a command."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    broker_pb2_grpc.add_RunsServicer_to_server(Refusing(reason), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        gateway = GrpcGateway(channel=lambda: channel)
        with pytest.raises(AttemptEnded, match=said) as caught:
            gateway.start_run(run_id="r-1", input_json=b"{}")
    server.stop(0).wait()
    assert str(caught.value).count(reason) == 1
    assert "meshgate run without --run-id" in caught.value.next_step
    assert "{" not in caught.value.next_step


@pytest.fixture
def pair():
    """Two ends of a socket."""
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def test_a_message_comes_back_as_it_was_sent(pair):
    """Lone surrogates and long texts too."""
    message = {"text": "a\ud800ü" * 1000, "n": 1}
    send(pair[0], message)
    assert receive(pair[1]) == message


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("!I", MAX_FRAME_BYTES + 1),
        struct.pack("!I", 10) + b"{}",
        struct.pack("!I", 2) + b"[]",
        struct.pack("!I", 2) + b"{x",
        struct.pack("!I", 0),
        b"\0\0",
    ],
    ids=["too long", "cut off", "no object", "no JSON", "empty", "half a length"],
)
def test_what_is_no_frame_is_refused(pair, data):
    """Nothing is guessed."""
    pair[0].sendall(data)
    pair[0].close()
    with pytest.raises(BadFrame):
        receive(pair[1])


def test_a_close_without_a_byte_is_no_frame(pair):
    """It is told apart from a cut-off one."""
    pair[0].close()
    assert receive(pair[1]) is None


ENTRIES = (
    ToolEntry(tool="a.one", qualname="m:one", fields_sha256="00"),
    ToolEntry(tool="a.two", qualname="m:Two", fields_sha256="11"),
    ToolEntry(tool="b.two", qualname="m:Two", fields_sha256="22"),
    ToolEntry(tool="a.twin", qualname="m:twin", fields_sha256="33"),
    ToolEntry(tool="b.twin", qualname="m:twin", fields_sha256="33"),
)


@pytest.mark.parametrize(
    ("qualname", "fields", "expected"),
    [
        ("m:one", "00", "a.one"),
        ("m:Two", "22", "b.two"),
        ("m:one", "99", "built with other values than a.one"),
        ("m:twin", "33", "served by a.twin, b.twin"),
        ("m:none", "00", 'is not in meshgate.yaml; add under toolhosts.<host>.tools: - {class: "m:none"'),
    ],
)
def test_an_object_is_exactly_one_entry_or_refused(qualname, fields, expected):
    """None and two are refusals that say what to write."""
    found = ToolMap(entries=ENTRIES).find(
        identity={"kind": "class", "qualname": qualname, "fields_sha256": fields}, name="x\ny"
    )
    assert (
        (expected in found.text and "\n" not in found.text)
        if isinstance(found, Refusal)
        else found == expected
    )


def test_a_tool_of_an_mcp_server_is_refused_with_the_servers_line():
    """No class stands for it: a tool host must start the server."""
    identity = {"kind": "mcp", "qualname": "python_server_py:add", "fields_sha256": "00"}
    found = ToolMap(entries=ENTRIES).find(identity=identity, name="add")
    assert isinstance(found, Refusal)
    assert "toolhosts: {<host>: {mcp: {command: [" in found.text
    assert "class:" not in found.text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "crew"}'])
def test_a_bad_config_is_refused(tmp_path, text):
    """With the file's name."""
    path = tmp_path / "launcher.json"
    path.write_text(text)
    with pytest.raises(BadSettings):
        load(path)


def test_a_failing_patch_fails_the_import(tmp_path, monkeypatch):
    """Nothing is used unpatched; other modules are left alone."""
    (tmp_path / "patched_module.py").write_text("X = 1")
    (tmp_path / "other_module.py").write_text("X = 2")
    monkeypatch.syspath_prepend(str(tmp_path))

    def patch(module):
        raise RuntimeError(json.dumps(module.X))

    finder = import_hook.PatchingFinder(patches={"patched_module": patch})
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    with pytest.raises(RuntimeError, match="1"):
        __import__("patched_module")
    assert "patched_module" not in sys.modules
    assert __import__("other_module").X == 2


def test_a_broken_child_side_ends_the_interpreter(tmp_path):
    """site.py would print an error of sitecustomize and go on; ours ends the process."""
    child = tmp_path / "child"
    shutil.copytree(SITE_FOLDER.parent, child)
    (child / "install.py").write_text("raise RuntimeError('broken')")
    done = subprocess.run(
        [sys.executable, "-c", "print('RAN')"],
        env={"PYTHONPATH": str(child / "sitecustomize")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (125, "")
    assert "broken" in done.stderr


def test_run_ids_are_of_version_7_and_sort():
    """As the gateway expects them."""
    first, second = uuid7(), uuid7()
    assert first[14] == "7"
    assert first[19] in "89ab"
    assert first[:13] <= second[:13]
