"""A host's insides against a fake gateway: everything but mTLS and Dapr is real."""

import itertools
import sys
import textwrap
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from fakes.fake_broker import FakeBroker
from meshgate_toolhost import definitions, loader
from meshgate_toolhost.delivery import Delivery
from meshgate_toolhost.finished import FinishedLedger
from meshgate_toolhost.gateway import GrpcGateway
from meshgate_toolhost.invoke import Invoker, Limits

NUMBERS = itertools.count(1)


class HostUnderTest:
    """One process life of a host; make a second one for "after a restart"."""

    def __init__(self, broker, tools, database, *, limits=None, withheld=()):
        self.broker, self.tools = broker, tools
        self._channel = grpc.insecure_channel(f"127.0.0.1:{broker.port}")
        self.finished = FinishedLedger(path=database)
        gateway = GrpcGateway(channel=lambda: self._channel)
        self.delivery = Delivery(gateway=gateway, finished=self.finished)
        self.invoker = Invoker(
            tools=tools,
            limits=limits or {},
            gateway=gateway,
            finished=self.finished,
            delivery=self.delivery,
            instance=str(uuid.uuid4()),
            withheld=withheld,
        )
        self.left = self.delivery.start()

    def put(self, tool_id, arguments, **more):
        """A decided call of one of our tools."""
        call_id = f"c{next(NUMBERS):040x}"
        more.setdefault("definition_sha256", definitions.digest(self.tools[tool_id]))
        return self.broker.put(call_id, tool_id, arguments, **more)

    def call(self, tool_id, arguments, **more):
        """Delivers one call and gives its state at the gateway."""
        call_id = self.put(tool_id, arguments, **more)
        self.invoker.invoke(call_id)
        return self.broker.calls[call_id]

    def in_background(self, call_id):
        """Delivers without waiting."""
        thread = threading.Thread(target=self.invoker.invoke, args=(call_id,), daemon=True)
        thread.start()
        return thread

    def close(self):
        """Ends this life without waiting for bodies."""
        self.invoker.close()
        self.delivery.close()
        self._channel.close()


@pytest.fixture
def broker():
    fake = FakeBroker()
    yield fake
    fake.stop()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder on sys.path; `write(name, source)` adds a module with a fresh name."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.syspath_prepend(str(root))
    before = set(sys.modules)

    class Project:
        folder = root

        def write(self, source, name=None):
            name = name or f"tools_{uuid.uuid4().hex[:8]}"
            path = root / (name if name.endswith(".py") else f"{name}.py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source))
            return name

        def load(self, *written, host="orders", withheld=()):
            return loader.load_all(host=host, written=written, project_root=root.resolve(), withheld=withheld)

    yield Project()
    for name in set(sys.modules) - before:
        if name.startswith(("tools_", "_meshgate_script_")):
            del sys.modules[name]


@pytest.fixture
def start(broker, tmp_path):
    """Starts a life of a host over one ledger file."""
    lives = []

    def begin(tools, **more):
        lives.append(HostUnderTest(broker, tools, tmp_path / "hosts" / "orders.db", **more))
        return lives[-1]

    yield begin
    for life in lives:
        life.close()


@pytest.fixture
def limits():
    return Limits


class _Bank(BaseHTTPRequestHandler):
    def do_POST(self):
        """Remembers the key."""
        self.server.keys.append(self.headers["Idempotency-Key"])
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"refunded")

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def bank():
    """A service that remembers the keys of its requests."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Bank)
    server.keys = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(20)
