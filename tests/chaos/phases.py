"""Brings a call into a phase, held from outside, and kills in just that moment.

Every phase begins with the model's answer for the order being held at the checker. From there:

before_decision  OPA is stopped, the model answers: the call is asked for and cannot be decided.
after_decision   the host's sidecar is stopped, the model answers: decided, recorded, out of the host's reach.
during_tool      the tool's body waits in the service: before the effect (quote) or after it (serve).
after_tool       the gateway is stopped, the service answers, the tool reads it: no outcome can be recorded.
during_reply     the model's answer stays held.
during_replay    the program is killed first; its next process is held between two tasks of its journal.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from chaos.pairs import STORE, Pair
from chaos.victims import Process, find
from chaos.watch import Checker, Event
from fakes.postgres_server import PostgresServer
from integration.fault_mesh import Mesh
from meshgate_deploy.errors import MeshError

PATIENCE_SECONDS = 150.0  # a lost launcher and a cold CrewAI on a busy machine
SETTLE_SECONDS = 0.15  # from the model's answer to the engine's door; more only makes the phase surer
POLL_SECONDS = 0.05


class Missed(Exception):
    """The call was not to be brought into the phase; the kill is tried again with another order."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a kill happens: a run's order, and how its tool is held; which of its tasks, and whose it is.

    Attributes:
        agent: the app that has the task; the run's own where that is not split.
    """

    app: str
    run: str
    order: str
    tool: str
    early: bool
    number: int = 0
    agent: str = ""


class Stage:
    """One mesh, its checker, and the server of its store where that is one.

    `alone` is held while something that all apps share is stopped.
    """

    def __init__(self, mesh: Mesh, checker: Checker, server: PostgresServer | None = None) -> None:
        self.mesh, self.checker, self.server = mesh, checker, server
        self.alone = threading.RLock()
        self._lock = threading.Lock()
        self._kills = 0

    def gates(self, pair: Pair, place: Place) -> list[tuple[str, str]]:
        """What has to be shut before the run begins, and is open in the end."""
        return [("model", place.order)]

    def strike(self, pair: Pair, place: Place) -> Event:
        """Brings the order into the phase and kills; the kill as noted.

        Raises:
            Missed: the phase was not reached.
        """
        with ExitStack() as undo:
            undo.callback(self.checker.open, "model", place.order)
            self._held("model", place.order)
            return _PHASES[pair.phase](self, pair, place, undo)

    def _before_decision(self, pair: Pair, place: Place, undo: ExitStack) -> Event:
        undo.enter_context(self._standing("opa", place))
        self._answer(place)
        time.sleep(SETTLE_SECONDS)
        return self._kill(pair, place)

    def _after_decision(self, pair: Pair, place: Place, undo: ExitStack) -> Event:
        undo.enter_context(self._standing("host-daprd", place))
        self._answer(place)
        self._until(lambda: self._reserved(place), "the call is reserved")
        return self._kill(pair, place)

    def _during_tool(self, pair: Pair, place: Place, undo: ExitStack) -> Event:
        self._in_body(place, undo, "quote" if place.early else "serve")
        return self._kill(pair, place)

    def _after_tool(self, pair: Pair, place: Place, undo: ExitStack) -> Event:
        undo.enter_context(self.alone)  # first: the call has a deadline, and must not wait for our turn
        self._in_body(place, undo, "serve")
        undo.enter_context(self._standing("gateway", place))
        self.checker.open("serve", place.order)
        self._event(lambda e: e["e"] == "closed" and e["order"] == place.order, "the tool read its answer")
        return self._kill(pair, place)

    def _during_reply(self, pair: Pair, place: Place, undo: ExitStack) -> Event:
        return self._kill(pair, place)

    def _during_replay(self, pair: Pair, place: Place, undo: ExitStack) -> Event:
        gate, before = f"{place.run}:1", self.checker.length
        self.checker.shut("between", gate)
        undo.callback(self.checker.open, "between", gate)
        first = self._victim("child", place)
        first.signal(signal.SIGKILL)
        first.close()
        self.checker.open("model", place.order)
        self._held("between", gate, since=before)
        return self._kill(pair, place)

    def _in_body(self, place: Place, undo: ExitStack, point: str) -> None:
        self.checker.shut(point, place.order)
        undo.callback(self.checker.open, point, place.order)
        self.checker.open("model", place.order)
        self._held(point, place.order)

    def _answer(self, place: Place) -> None:
        self.checker.open("model", place.order)
        self._event(lambda e: e["e"] == "replied" and e["order"] == place.order, "the model answered")

    def _reserved(self, place: Place) -> bool:
        calls = self.mesh.ask("ListCalls", run_id=place.run)["calls"]
        return any(row["state"] == "reserved" for row in calls)

    def _held(self, point: str, name: str, since: int = 0) -> None:
        def wanted(event: Event) -> bool:
            return event["e"] == "held" and (event["point"], event["name"]) == (point, name)

        self._event(lambda event: event["n"] > since and wanted(event), f"{name} at {point}")

    def _event(self, wanted: Callable[[Event], bool], what: str) -> None:
        if self.checker.wait(wanted, PATIENCE_SECONDS) is None:
            raise Missed(what)

    def _until(self, check: Callable[[], bool], what: str) -> None:
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                if check():
                    return
            except (MeshError, OSError):
                pass  # the gateway is being started again
            if time.monotonic() > give_up_at or self.checker.stopped.is_set():
                raise Missed(what)
            time.sleep(POLL_SECONDS)

    def _victim(self, role: str, place: Place) -> Process:
        """Waits until the role is played, and takes hold of who plays it."""
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < give_up_at and not self.checker.stopped.is_set():
            pid = self._pid(role, place)
            if pid is not None:
                try:
                    return Process(pid)
                except ProcessLookupError:
                    pass
            time.sleep(POLL_SECONDS)
        raise Missed(f"nobody plays {role}")

    def _pid(self, role: str, place: Place) -> int | None:
        if role in STORE:
            return self.server.pid if self.server else None
        return find(self.mesh, role, app=place.app, run_id=place.run)

    def _about(self, pair: Pair, place: Place) -> Event:
        """What a note of a kill says of where it happened."""
        return {"run": place.run, "order": place.order, "tool": place.tool}

    @contextmanager
    def _standing(self, role: str, place: Place) -> Iterator[None]:
        """A shared process is stopped meanwhile, unless it is the one that was killed or stopped for good."""
        with self.alone:
            process = self._victim(role, place)
            process.signal(signal.SIGSTOP)
            self._stood = process.pid
            try:
                yield
            finally:
                if self._stood == process.pid:
                    process.signal(signal.SIGCONT)
                process.close()

    def _kill(self, pair: Pair, place: Place) -> Event:
        victim = self._victim(pair.victim, place)
        with self._lock:
            self._kills += 1
            number = self._kills
        number_of = signal.SIGKILL if pair.signal == "KILL" else signal.SIGSTOP
        at = time.time()
        hit = victim.signal(number_of)
        if getattr(self, "_stood", 0) == victim.pid:
            self._stood = 0  # a victim that was stopped stays so
        victim.close()
        if not hit:
            raise Missed(f"{pair.victim} was gone")
        noted = {
            "kill": number, "victim": pair.victim, "signal": pair.signal, "phase": pair.phase, "at": at,
            "shared": pair.shared, **self._about(pair, place),
        }  # fmt: skip
        self.checker.note("kill", **noted)
        if pair.victim in STORE and self.server is not None:
            self.server.start()  # no part of a mesh: whoever runs it brings it back
        return noted


_PHASES = {
    "before_decision": Stage._before_decision,
    "after_decision": Stage._after_decision,
    "during_tool": Stage._during_tool,
    "after_tool": Stage._after_tool,
    "during_reply": Stage._during_reply,
    "during_replay": Stage._during_replay,
}
