"""FAKE: what a gateway and workers make of delegations: a run of the other app, in a launcher of its own.

Nothing is decided here. Each run has a fake gateway of its own, which answers tool calls and plays further
delegations in turn.
"""

import json
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakes.fake_gateway import FakeGateway, Reply, Seen, done, pending, serving
from fakes.program_server import admitted
from meshgate_deploy.program_servers import ProgramServer
from meshgate_wire import broker_pb2 as pb

TESTS = Path(__file__).resolve().parents[1]
PLAYER = Path(__file__).with_name("unsafe_player.py")
SECONDS = 150


@dataclass
class Played:
    """The run of one delegation."""

    app: str
    gateway: FakeGateway
    answer: pb.CallToolResponse | None = None
    err: str = ""


@dataclass
class AgentApps:
    """`config(name, **settings)` writes a launcher's config file; `apps` are each one's settings."""

    config: Callable[..., Path]
    apps: Mapping[str, dict[str, Any]]
    server: ProgramServer | None = None  # from which their programs are forked
    answers: dict[str, Reply] = field(default_factory=dict)  # of apps that are not played
    calls: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)  # app, tool, arguments
    asked: list[tuple[str, Seen]] = field(default_factory=list)  # each delegation once, and by whom
    runs: dict[tuple[str, str], Played] = field(default_factory=dict)  # by the caller's run and step key
    keys: set[tuple[str, str]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def serves(self, app: str) -> Callable[[Seen, int], Reply]:
        """What the gateway of a run of this app answers."""
        return lambda seen, _nth: self._answer(app, seen)

    def _answer(self, caller: str, seen: Seen) -> Reply:
        kind, _, app = seen.tool.partition(":")
        with self.lock:
            first = (seen.run_id, seen.step_key) not in self.keys
            self.keys.add((seen.run_id, seen.step_key))
            if first and kind != "agent":
                self.calls.append((caller, seen.tool, seen.arguments))
            elif first:
                self.asked.append((caller, seen))
        if kind != "agent":
            return done(f"{seen.tool} ok")
        if app in self.answers:
            return self.answers[app]
        return self._played(app, seen)

    def _played(self, app: str, seen: Seen) -> Reply:
        with self.lock:
            played = self.runs.get((seen.run_id, seen.step_key))
            if played is None:
                order = json.dumps({"app": app, "delegation": seen.arguments}).encode()
                played = Played(app, FakeGateway(behave=self.serves(app), given=order))
                self.runs[(seen.run_id, seen.step_key)] = played
                threading.Thread(target=self._play, args=(played, len(self.runs)), daemon=True).start()
        return played.answer or pending()

    def _play(self, played: Played, nth: int) -> None:
        with serving(played.gateway) as gateway:
            address = {"target": f"127.0.0.1:{gateway.port}", "server_name": "unused"}
            given = {"app": played.app, "gateway": address, "run_id": f"d{nth}", **self.apps[played.app]}
            forks = {} if self.server is None else {sys.executable: str(self.server.path)}
            more = {"backoff_seconds": 0.05, "fork_servers": forks}
            config = self.config(f"{played.app}-{nth}.json", **more, **given)
            argv = ["env", f"PYTHONPATH={TESTS}", sys.executable, str(PLAYER), str(config)]
            with admitted(self.server, argv, cwd=config.parent) as popen:
                _, played.err = popen.communicate(timeout=SECONDS)
        state, detail = gateway.finished[-1] if gateway.finished else ("failed", played.err[-300:])
        if state == "completed":
            played.answer = done(json.loads(gateway.results[-1]))
        else:
            played.answer = pb.CallToolResponse(
                call_id=f"c{nth}", state=pb.CALL_STATE_FAILED, error_class=f"run_{state}", message=detail
            )
