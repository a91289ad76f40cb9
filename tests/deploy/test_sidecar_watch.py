"""A sidecar that answers and serves no worker is ended, once it had time; nothing else is."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from meshgate_deploy.services import Service
from meshgate_deploy.sidecar_watch import SETTLING_SECONDS, UNSERVED_SECONDS, Sidecar, SidecarWatch

TOKEN = "t0ken"


class Metadata(BaseHTTPRequestHandler):
    """A sidecar's metadata, as Dapr 1.18 gives it: without the entry while no worker is connected."""

    def do_GET(self) -> None:
        """Answers who shows the token."""
        known = self.path == "/v1.0/metadata" and self.headers["dapr-api-token"] == TOKEN
        body = json.dumps(self.server.told).encode() if known else b"{}"
        self.send_response(200 if known else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Quiet."""


class World:
    """A mesh's services, of which only names, states and pids count, on a clock of ours."""

    def __init__(self, server: ThreadingHTTPServer, token_file) -> None:
        self.server, self.now, self.killed, self.said = server, 1000.0, [], []
        self.rows = {
            name: Service(
                name, lambda _: None, state="ready", child=SimpleNamespace(pid=number), since=1000.0
            )
            for number, name in enumerate(("placement", "scheduler", "gateway", "dapr-gateway"), 1)
        }
        url = f"http://127.0.0.1:{server.server_port}/v1.0/healthz/outbound"
        self.watch = SidecarWatch(
            services=self,
            sidecars=lambda: {"gateway": Sidecar(url, token_file)},
            say=self.said.append,
            clock=lambda: self.now,
        )

    def find(self, name):
        """A service by name."""
        return self.rows.get(name)

    def kill(self, service, _number):
        """What the watch did."""
        self.killed.append(service.name)

    def wait(self, seconds):
        """Time goes by, a round each second."""
        for _ in range(int(seconds)):
            self.now += 1
            self.watch.round()


@pytest.fixture
def world(tmp_path):
    """A sidecar whose worker is connected."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    server.told = {"workflows": {"connectedWorkers": 1}}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "token").write_text(TOKEN)
    yield World(server, tmp_path / "token")
    server.shutdown()
    server.server_close()


def test_a_sidecar_that_serves_its_worker_is_left_alone(world):
    """However long it runs."""
    world.wait(SETTLING_SECONDS * 3)
    assert world.killed == []


def test_a_sidecar_that_serves_nobody_is_ended(world):
    """Once it had time to take the worker up; said with its name."""
    world.wait(SETTLING_SECONDS + 1)
    world.server.told = {"actorRuntime": {"hostReady": True}}
    world.wait(UNSERVED_SECONDS)
    assert world.killed == []
    world.wait(2)
    assert world.killed == ["dapr-gateway"]
    assert "dapr-gateway" in world.said[0]


def test_a_young_sidecar_is_given_time(world):
    """A worker that found no sidecar tries again after a while."""
    world.server.told = {}
    world.wait(SETTLING_SECONDS - 1)
    assert world.killed == []
    world.wait(3)
    assert world.killed == ["dapr-gateway"]


def test_a_worker_that_came_back_clears_it(world):
    """Unserved for a moment, again and again, is no fault."""
    world.wait(SETTLING_SECONDS)
    for _ in range(5):
        world.server.told = {}
        world.wait(UNSERVED_SECONDS - 1)
        world.server.told = {"workflows": {"connectedWorkers": 1}}
        world.wait(1)
    assert world.killed == []


@pytest.mark.parametrize("away", ["placement", "scheduler", "gateway", "dapr-gateway"])
def test_nothing_is_ended_while_a_part_it_needs_is_away(world, away):
    """A sidecar without placement, or without its app, cannot serve a worker."""
    world.server.told = {}
    world.rows[away].state = "restarting"
    world.wait(SETTLING_SECONDS * 2)
    assert world.killed == []


def test_a_sidecar_that_gives_no_answer_is_not_judged_here(world):
    """A refused token is no evidence of anything."""
    world.watch.sidecars()["gateway"].token_file.write_text("another")
    world.wait(SETTLING_SECONDS * 2)
    assert world.killed == []


def test_each_new_pair_of_processes_starts_afresh(world):
    """A process that was just started again has its own time."""
    world.wait(SETTLING_SECONDS)
    world.server.told = {}
    for number in range(5):
        world.rows["gateway"].child = SimpleNamespace(pid=100 + number)
        world.wait(UNSERVED_SECONDS - 1)
    assert world.killed == []
