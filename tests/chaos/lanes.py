"""Lanes: each works on runs of one app, one after the other, and kills in the middle of their tasks."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from chaos.pairs import CREW, EVERY_PHASE, SPLIT, VICTIMS, Pair
from chaos.phases import Missed, Place, Stage
from chaos.watch import Event, Interrupted
from integration.fault_mesh import MESHGATE
from meshgate_deploy.errors import MeshError

TOOLS = ("look", "keyed", "pay")
KILLS_PER_RUN = {
    "mesh": 6,
    "own": 4,
    "split": 4,
}  # every loss of a program costs an import of CrewAI and a backoff
TRIES = 3
RUN_SECONDS = 300.0  # from the last kill to the end of its run; then the run is lost
PROGRESS_SECONDS = 120.0
WATCH_SECONDS = 0.5
BREATH_SECONDS = 1.0

Say = Callable[[str], None]


@dataclass
class Plan:
    """The kills that are still to be made, shared by the lanes that may make them.

    Attributes:
        turn: which tool a pair begins with; it goes on from there each time that the pair is made.
    """

    pairs: deque[Pair]
    turn: int = 0
    tries: Counter[Pair] = field(default_factory=Counter)
    made: Counter[Pair] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, count: int) -> list[Pair]:
        """The next few."""
        with self.lock:
            return [self.pairs.popleft() for _ in range(min(count, len(self.pairs)))]

    def again(self, pair: Pair, why: str) -> None:
        """One that did not come off is made later, a few times."""
        with self.lock:
            self.tries[pair] += 1
            self.missed.append(f"{pair.label} in {pair.phase}: {why}")
            if self.tries[pair] < TRIES:
                self.pairs.append(pair)

    def tool(self, pair: Pair) -> tuple[str, bool]:
        """The tool whose call a pair meets, and whether it is held before its effect."""
        with self.lock:
            turn = self.turn + self.made[pair]
            self.made[pair] += 1
        # In its first turn a lost tool host meets the tool that must not run twice.
        place = (*VICTIMS, *SPLIT).index(pair.victim) + EVERY_PHASE.index(pair.phase) + 1
        return TOOLS[(place + turn) % len(TOOLS)], turn % 2 == 1

    def clear(self) -> None:
        """No more."""
        with self.lock:
            self.pairs.clear()


class Lane(threading.Thread):
    """One run at a time, with a kill in each of its tasks but the first and the last."""

    def __init__(  # noqa: PLR0917 - a thread's arguments
        self, stage: Stage, plan: Plan, app: str, kind: str, say: Say, names: str
    ) -> None:
        super().__init__(name=app, daemon=True)
        self._stage, self._plan, self._app, self._kind = stage, plan, app, kind
        self._say, self._names = say, names
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Until the plan is empty."""
        number = 0
        try:
            while pairs := self._plan.take(KILLS_PER_RUN[self._kind]):
                number += 1
                self._work(f"{self._names}-{self._app}-{number}", pairs)
        except Interrupted:
            return
        except BaseException as error:
            self.failure = error
            raise

    def _work(self, run_id: str, pairs: list[Pair]) -> None:
        places = [self._place(run_id, number, pair) for number, pair in enumerate(pairs, start=2)]
        tools = self._tools([place.tool for place in places])
        orders = [
            (f"{run_id}-{number}", tool, self._owner(number)) for number, tool in enumerate(tools, start=1)
        ]
        gates = [
            gate for pair, place in zip(pairs, places, strict=True) for gate in self._stage.gates(pair, place)
        ]
        for gate in gates:
            self._stage.checker.shut(*gate)
        self._stage.checker.note("begun", run=run_id, app=self._app, orders=orders)
        run = self._begin(run_id, tools)
        try:
            for pair, place in zip(pairs, places, strict=True):
                self._strike(pair, place, run)
            run.end()
        finally:
            run.close()
            for gate in gates:
                self._stage.checker.open(*gate)

    def _begin(self, run_id: str, tools: list[str]) -> "Run":
        return Terminal(self._stage, self._app, run_id, tools)

    def _tools(self, wanted: list[str]) -> list[str]:
        """The tool of every task: nobody is killed in the first one and the last."""
        return ["look", *wanted, "keyed"]

    def _owner(self, number: int) -> str:
        """Whose a task is."""
        return self._app

    def _strike(self, pair: Pair, place: Place, run: "Run") -> None:
        if not run.running:
            self._plan.again(pair, "its run had ended")
            return
        with self._stage.alone if pair.shared else nullcontext():
            try:
                kill = self._stage.strike(pair, place)
            except Missed as error:
                self._plan.again(pair, str(error))
                return
            seconds = self._got_on(pair, kill)
        if pair.shared:
            self._breathe()  # not alone: now the other lanes may stop what is shared
        took = "no progress" if seconds is None else f"{seconds:.1f} s"
        self._say(f"  {pair.label:24} {pair.phase:16} {place.tool:6} {took}")

    def _breathe(self) -> None:
        """Lets everybody reach the gateway again: runs beside ours have a minute for each step."""
        if not self._stage.checker.stopped.is_set():
            with suppress(MeshError):  # it went away again between two looks
                self._stage.mesh.healed()
            self._stage.checker.stopped.wait(BREATH_SECONDS)

    def _got_on(self, pair: Pair, kill: Event) -> float | None:
        """Waits until the run is seen to get on: of a split crew also by its next task."""
        run, at = kill["run"], kill["at"]
        seen = {"asked", "final"}
        if pair.split:  # the crew may be held before its next task
            seen = {"between", "final"} if pair.victim in CREW else {"between", *seen}
        event = self._stage.checker.wait(
            lambda e: e.get("run") == run and e["t"] > at and e["e"] in seen, PROGRESS_SECONDS
        )
        return None if event is None else float(event["t"]) - at

    def _place(self, run_id: str, number: int, pair: Pair) -> Place:
        tool, early = self._plan.tool(pair)
        return Place(self._app, run_id, f"{run_id}-{number}", tool, early, number, self._owner(number))


class Run:
    """One run under way. An unknown call of it is resolved by what the checker saw."""

    def __init__(self, stage: Stage, run_id: str) -> None:
        self._stage, self._run_id = stage, run_id
        self._over = threading.Event()
        self._person = threading.Thread(target=self._resolve, daemon=True)
        self._person.start()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        raise NotImplementedError

    def end(self) -> None:
        """Waits for its end and tells the checker its answer."""
        give_up_at = time.monotonic() + RUN_SECONDS
        while self.running and time.monotonic() < give_up_at:
            if self._stage.checker.stopped.is_set():
                raise Interrupted
            time.sleep(0.05)
        status, answer = self._told()
        self._stage.checker.note("final", run=self._run_id, status=status, answer=answer)

    def close(self) -> None:
        """Ends it in any case."""
        self._over.set()
        self._person.join()

    def _told(self) -> tuple[int | None, list[str] | None]:
        """The status with which it ended, and its answer."""
        raise NotImplementedError

    def _rows(self) -> list[dict[str, Any]]:
        """The run as the store has it, and what else is its own."""
        return [self._stage.mesh.ask("ShowRun", run_id=self._run_id, row_only=True)["run"]]

    def _resolve(self) -> None:
        """The person who looks into the service's book when a call is unknown."""
        while not self._over.wait(WATCH_SECONDS):
            try:
                rows = self._rows()
            except (MeshError, OSError, ValueError):
                continue
            for row in rows:
                if row["state"] == "waiting" and row["detail"].startswith("unknown "):
                    self._settle(row["detail"].removeprefix("unknown "))

    def _settle(self, call: str) -> None:
        self._over.wait(WATCH_SECONDS)  # a request that was sent by a process that then died may still arrive
        paid = self._stage.checker.find(lambda e: e["e"] == "effect" and e["call"] == call)
        quoted = paid or self._stage.checker.find(lambda e: e["e"] == "quoted" and e["call"] == call)
        said: list[str] = ["--as", "failed", "--result", "it was not paid"]
        if paid:
            said = ["--as", "done", "--result", f"{paid['order']} receipt {paid['receipt']}"]
        done = subprocess.run(
            [MESHGATE, "runs", "resolve", call, *said],
            cwd=self._stage.mesh.root, check=False, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode == 0 and quoted:
            self._stage.checker.note("resolved", order=quoted["order"], call=call, **{"as": said[1]})


class Terminal(Run):
    """One program under `meshgate run`."""

    def __init__(self, stage: Stage, app: str, run_id: str, tools: list[str]) -> None:
        self._out = (stage.mesh.root / f"{run_id}.out").open("w+")
        program = [sys.executable, "desk.py", run_id, *tools]
        self._popen = subprocess.Popen(
            [MESHGATE, "run", "--app", app, "--run-id", run_id, "--", *program],
            cwd=stage.mesh.root, stdout=self._out, stderr=self._out, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        super().__init__(stage, run_id)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def close(self) -> None:
        """Ends it in any case."""
        super().close()
        if self.running:
            self._popen.terminate()
        try:
            self._popen.wait(30)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._out.close()

    def _told(self) -> tuple[int | None, list[str] | None]:
        with open(self._out.name) as file:  # noqa: PTH123 - a name of our own
            said = [line.removeprefix("ANSWER ") for line in file if line.startswith("ANSWER ")]
        return self._popen.poll(), json.loads(said[-1]) if said else None
