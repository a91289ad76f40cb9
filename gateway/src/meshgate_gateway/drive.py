"""Runs that the worker of an app plays: ordered by an operator, delivered, and delivered again.

The store is the truth about them. The durable runtime only tells an app that it has a run to play, and
carries the run's id; a run of which nobody gives a sign of life is told to its app once more.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from meshgate_gateway import attempts, calls, inputs, runs, tellings
from meshgate_gateway.authenticate import Mesh
from meshgate_gateway.decide import Permit
from meshgate_gateway.delegations import Delegations
from meshgate_gateway.errors import Conflict, InvalidRequest, Missing, NotPermitted
from meshgate_gateway.model import RUNNERS, Kind, Run
from meshgate_gateway.notes import note
from meshgate_gateway.passes import Pass
from meshgate_gateway.payloads import Vault
from meshgate_gateway.record import Recorder, time_text
from meshgate_gateway.store import Store, Tables

PER_APP = 20  # of one sweep, the rest of the app's in turn with the next ones: no app waits for another's
MAX_TOLD = 10_000  # tellings that are remembered; a runtime asked again answers that it knows
MAX_WORDS = 1024  # of a command


class RunRuntime(Protocol):
    """Tells an app of a run, at least once.

    Durability: when `start_run` returns, the delivery survives a crash. Concurrency: safe for threads.
    The sweep retries.
    """

    def start_run(self, run_id: str, app: str, *, telling: str) -> None:
        """Tells the app, once for each name of a telling.

        Raises:
            RuntimeUnavailable: not told, as far as we know.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What an operator wants run.

    Attributes:
        input_json: one JSON value for the app's program or crew, or nothing.
        command: instead of what the app runs by itself; in `cwd`, with `env` over the app's own.
    """

    app: str
    run_id: str
    input_json: bytes = b""
    command: tuple[str, ...] = ()
    cwd: str = ""
    env: Mapping[str, str] | None = None

    def envelope(self, kind: Kind) -> bytes:
        """The run's input as it is kept: equal bytes for equal orders.

        Raises:
            InvalidRequest: the input is not what this kind of app takes, or there is too much of it.
        """
        kept: dict[str, Any] = {"app": self.app}
        if self.input_json:
            kept["input"] = inputs.parse(self.input_json)
            if kind is Kind.CREW and not self.command and not isinstance(kept["input"], dict):
                raise InvalidRequest("input_not_an_object")
        if (self.cwd or self.env) and not self.command:  # they would say nothing, or change what the app runs
            raise InvalidRequest("command_invalid", detail="a folder or variables without a command")
        if self.command:
            words = [*self.command, self.cwd, *(self.env or {}), *(self.env or {}).values()]
            odd = any("\0" in word for word in words) or any("=" in name for name in self.env or {})
            if len(self.command) > MAX_WORDS or not self.cwd.startswith("/") or odd:
                raise InvalidRequest("command_invalid")
            kept |= {"command": list(self.command), "cwd": self.cwd, "env": dict(self.env or {})}
        made = json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
        if len(made) > inputs.MAX_INPUT_BYTES:
            raise InvalidRequest("input_too_large", detail=f"{len(made)} bytes")
        return made


def has_command(envelope: bytes) -> bool:
    """Whether a run's kept input names what it starts; one that cannot be read counts as such."""
    try:
        return not envelope or "command" in json.loads(envelope)
    except (ValueError, TypeError):
        return True


@dataclass(frozen=True, slots=True)
class Drive:
    """Orders and deliveries.

    Attributes:
        since_ms: since when this gateway knows which apps its mesh has.
        told: the last telling of each run, so that a slow runtime is asked once for each.
    """

    store: Store
    vault: Vault
    recorder: Recorder
    runtime: RunRuntime
    mesh: Mesh
    now_ms: Callable[[], int]
    delegations: Delegations
    since_ms: int = 0
    turns: Iterator[int] = field(default_factory=itertools.count)
    told: dict[str, str] = field(default_factory=dict)

    def order(self, order: Order, *, operator: str, local: bool = False) -> Run:
        """Makes the run and tells its app. The same id and order again is the same run.

        Args:
            order: what is to run.
            operator: who says so.
            local: it came over the control socket, whose owner may start any program here anyway.

        Raises:
            Missing: no such app.
            NotPermitted: a command for an app that takes none, or an agent's app.
            Conflict: the id is another run's.
            InvalidRequest: the id, the input or the command is not valid.
        """
        kind = self.mesh.catalogue.apps.get(order.app)
        if kind not in RUNNERS:
            raise Missing("app_unknown", detail=f"no crew or program {order.app[:64]!r}")
        if kind is Kind.AGENT:
            raise NotPermitted(
                "run_of_agent",
                detail=f"{order.app} is an agent's app: it works on what others delegate to it, and would "
                "have no task; start the app that kicks the crew off",
            )
        if not calls.is_new_run_id(order.run_id):
            raise InvalidRequest("run_id_invalid")
        envelope = order.envelope(kind)
        self.check_command(order.app, envelope, local=local)
        run = self.store.write(lambda tables: self._made(tables, order, envelope, operator))
        if run.state == "pending":
            self.deliver(run)
        return run

    def _made(self, tables: Tables, order: Order, envelope: bytes, operator: str) -> Run:
        spiffe_id = f"spiffe://{self.mesh.trust_domain}/ns/{self.mesh.name}/{order.app}"
        earlier = tables.runs.get(order.run_id)
        if earlier is not None:
            same = (
                earlier.app == spiffe_id
                and earlier.input is not None
                and self.vault.matches(tables, earlier.input, envelope)
            )
            if earlier.purged_ms:  # what it was given is not known any more
                raise Conflict("run_purged", detail=order.run_id)
            if not same:
                raise Conflict("run_changed_input", detail=f"{order.run_id} was started as another run")
            return earlier
        now = self.now_ms()
        run = Run(order.run_id, spiffe_id, "pending", 0, "", now, now, now, 0, "")
        run = replace(run, driven=True, input=self.vault.put(tables, envelope))
        tables.runs.insert(run)
        more = {"command": True} if order.command else {}  # what it is, the commitment to the input says
        tables.records.append(note(self.recorder, "run_started", run, operator, more=more))
        return run

    def check_command(self, app: str, envelope: bytes, *, local: bool) -> None:
        """May an operator have this started? What an app runs by itself always.

        Raises:
            NotPermitted: a command, and neither the app's entry in the manifest nor its place allows that.
        """
        if local or app in self.mesh.catalogue.commands or not has_command(envelope):
            return
        raise NotPermitted(
            "commands_off",
            detail=f"{app} runs only what its manifest says; `commands: true` there allows more",
        )

    def shown(self, run: Run) -> Run:
        """The run as people see it: with who is waited for, where nobody is at it. Not stored."""
        now = self.now_ms()
        seen = runs.shown(run, now_ms=now)
        if runs.left(run, now_ms=now):
            why = _remedy(run)
        elif runs.forsaken(run, now_ms=now):
            why = self._awaited(run, now)
        else:
            return seen
        return replace(seen, detail="; ".join(filter(None, (seen.detail, why))))

    def _awaited(self, run: Run, now: int) -> str:
        app, due = _app(run), tellings.due(run, now_ms=now)
        if not self.mesh.has_runner(run.app):
            return f"its app {app} is not in the manifest; failed after an hour, unless it comes back"
        return f"waits for a worker of {app}: told again {due.number} times, next at {time_text(due.next_ms)}"

    def sweep(self) -> int:
        """Tells the apps of their forsaken runs, and ends those whose app is gone; returns how many."""
        sweep, turn = Pass(self.now_ms), next(self.turns)
        since = {state: sweep.now - patience for state, patience in runs.FORSAKEN_AFTER_MS.items()}
        found = self.store.read(lambda tables: tables.runs.forsaken(since, per_app=PER_APP, turn=turn))
        touched = 0
        for run in found:
            if self.mesh.has_runner(run.app):
                touched += sweep.asked(lambda run=run: self._tell(run), run_id=run.run_id)  # type: ignore[misc]
            else:
                touched += self._given_up(run)
        return touched

    def _given_up(self, run: Run) -> bool:
        """Ends a run that nobody can ever play, with its journal kept: a fork may go on with it."""
        now = self.now_ms()
        if not tellings.gone(run, now_ms=now, since_ms=self.since_ms):
            return False

        def work(tables: Tables) -> bool:
            if tables.runs.get(run.run_id) != run:
                return False
            detail = f"its app {_app(run)} is not in the manifest any more"
            after = replace(attempts.ended(run, lost=True), state="failed", detail=detail, updated_ms=now)
            tables.runs.move(run, after)
            tables.records.append(note(self.recorder, "run_finished", after, more={"cause": "app_gone"}))
            self.delegations.ended(tables, after)
            return True

        ended = self.store.write(work)
        if ended:
            self.delegations.wake(replace(run, state="failed"))
        return ended

    def begin(self, permit: Permit) -> None:
        """Tells the callee's app of the run that a permitted delegation made, unless it has begun."""
        run_id = calls.delegated_run(permit.call_id)
        run = self.store.read(lambda tables: tables.runs.get(run_id))
        if run is not None and run.state == "pending":
            self.deliver(run)

    def deliver(self, run: Run) -> bool:
        """Tells a run's app of it; False when that has to wait for the next sweep."""
        return Pass(self.now_ms).asked(lambda: self._tell(run), run_id=run.run_id)

    def _tell(self, run: Run) -> None:
        due = tellings.due(run, now_ms=self.now_ms())
        if self.told.get(run.run_id) == due.name:
            return
        self.runtime.start_run(run.run_id, _app(run), telling=due.name)
        if len(self.told) >= MAX_TOLD:
            self.told.clear()
        self.told[run.run_id] = due.name


def _remedy(run: Run) -> str:
    """For a run of a launcher's own that is gone: no worker takes it over."""
    command = f"meshgate run --app {_app(run)} --run-id {run.run_id} -- CMD"
    return (
        f"no sign of its launcher: `{command}`, with its command as before, goes on with it; "
        f"`meshgate runs cancel {run.run_id}` ends it"
    )


def _app(run: Run) -> str:
    return run.app.rpartition("/")[2]
