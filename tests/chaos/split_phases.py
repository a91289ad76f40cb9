"""The phases of a task that a split crew hands to an agent's app, held from outside like all others.

before_delegation  the crew stands between two tasks, OPA is stopped, the crew goes on: nobody decides.
after_delegation   the agent's worker is stopped: decided, recorded, the agent's run is made and not begun.
during_reply       the agent's model does not answer its first question.
during_tool        the body of the agent's tool waits in the service.
while_pending      the agent's tool is through, its model holds the answer: the delegation is pending.
after_answer       the crew's worker is stopped, the agent's run ends: its call is settled, nobody was told.
during_replay      the program is killed first: the crew's next one is held between two tasks of its
                   journal, the agent's as soon as it has built the crew.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from chaos.pairs import AGENT, CREW, Pair
from chaos.phases import SETTLE_SECONDS, Place, Stage
from chaos.victims import find
from chaos.watch import Event
from meshgate_deploy.errors import MeshError

OVER = ("completed", "failed", "cancelled")
MANY = 1000  # runs of one part, and more
# Who plays a victim of a split crew: of which app, and what of it.
ROLES = {
    "crew-child": ("crew", "child"),
    "crew-worker": ("crew", "launcher"),
    "crew-daprd": ("crew", "agent-daprd"),
    "agent-child": ("agent", "child"),
    "agent-worker": ("agent", "launcher"),
    "split-daprd": ("agent", "agent-daprd"),
    "split-gateway": ("", "gateway"),
    "split-toolhost": ("", "toolhost"),
}


class SplitStage(Stage):
    """A stage on which a crew may be split."""

    def gates(self, pair: Pair, place: Place) -> list[tuple[str, str]]:
        """The crew is also held before a task whose delegation is waited for."""
        shut = super().gates(pair, place)
        before = pair.phase in ("before_delegation", "after_delegation")
        return [*shut, _last_task(place)] if pair.split and before else shut

    def strike(self, pair: Pair, place: Place) -> Event:
        """As any stage does it, the phases of a split crew too.

        Raises:
            Missed: the phase was not reached.
        """
        if not pair.split:
            return super().strike(pair, place)
        with ExitStack() as undo:
            for gate in (*self.gates(pair, place), ("answer", place.order)):
                undo.callback(self.checker.open, *gate)
            return _PHASES[pair.phase](self, pair, place, undo)

    def runs_of(self, run_id: str) -> list[dict[str, Any]]:
        """The runs of agents that a run asked for, newest first."""
        rows = self.mesh.ask("ListRuns", limit=MANY)["runs"]
        return [row for row in rows if row["parent_run"] == run_id]

    def _before_delegation(self, pair: Pair, place: Place, undo: ExitStack) -> Event:
        gate = _last_task(place)
        self._held(*gate)
        undo.enter_context(self._standing("opa", place))
        self.checker.open(*gate)
        self._event(lambda e: _through(e, place), "the crew goes on to its task")
        time.sleep(SETTLE_SECONDS)
        return self._kill(pair, place)

    def _after_delegation(self, pair: Pair, place: Place, undo: ExitStack) -> Event:
        gate = _last_task(place)
        self._held(*gate)
        undo.enter_context(self._asleep("agent-worker", place))
        self.checker.open(*gate)
        self._until(lambda: self._task(place) != "", "the agent's run is made")
        return self._kill(pair, place)

    def _during_reply(self, pair: Pair, place: Place, undo: ExitStack) -> Event:
        self._held("model", place.order)
        return self._kill(pair, place)

    def _during_tool(self, pair: Pair, place: Place, undo: ExitStack) -> Event:
        self._held("model", place.order)
        return super()._during_tool(pair, place, undo)

    def _while_pending(self, pair: Pair, place: Place, undo: ExitStack) -> Event:
        self._answering(place)
        return self._kill(pair, place)

    def _after_answer(self, pair: Pair, place: Place, undo: ExitStack) -> Event:
        self._answering(place)
        undo.enter_context(self._asleep("crew-worker", place))
        self.checker.open("answer", place.order)
        self._until(lambda: not self._task(place), "the agent's run is over")
        return self._kill(pair, place)

    def _during_replay(self, pair: Pair, place: Place, undo: ExitStack) -> Event:
        at_task = pair.victim in AGENT
        gate = ("hello", place.agent) if at_task else ("between", f"{place.run}:1")
        if at_task:
            self._answering(place)
        else:
            self._held("model", place.order)
        first = self._victim("agent-child" if at_task else "crew-child", place)
        before = self.checker.length
        self.checker.shut(*gate)
        undo.callback(self.checker.open, *gate)
        first.signal(signal.SIGKILL)
        first.close()
        self._held(*gate, since=before)
        return self._kill(pair, place)

    def _answering(self, place: Place) -> None:
        """The agent's tool is through, and its model holds what it makes of it."""
        self._held("model", place.order)
        self.checker.shut("answer", place.order)
        self.checker.open("model", place.order)
        self._held("answer", place.order)

    def _task(self, place: Place) -> str:
        """The run of the agent that is under way for this one; empty while there is none."""
        rows = self.runs_of(place.run)
        return next((str(row["run_id"]) for row in rows if row["state"] not in OVER), "")

    @contextmanager
    def _asleep(self, role: str, place: Place) -> Iterator[None]:
        """A process that only this run feels is stopped meanwhile, unless it is the one that was killed."""
        process = self._victim(role, place)
        process.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.signal(signal.SIGCONT)
            process.close()

    def _pid(self, role: str, place: Place) -> int | None:
        if role not in ROLES:
            return super()._pid(role, place)
        side, role = ROLES[role]
        if side != "agent":
            return super()._pid(role, place)
        task = ""
        if role == "child":
            try:
                task = self._task(place)
            except (MeshError, OSError):
                return None  # the gateway is being started again
        return find(self.mesh, role, app=place.agent, run_id=task)

    def _about(self, pair: Pair, place: Place) -> Event:
        about = super()._about(pair, place)
        if not pair.split:
            return about
        side = "crew" if pair.victim in CREW else "agent" if pair.victim in AGENT else ""
        return {**about, "app": place.app, "agent": place.agent, "number": place.number, "side": side}


def _last_task(place: Place) -> tuple[str, str]:
    """Where the crew stands after the task before this one."""
    return "between", f"{place.run}:{place.number - 1}"


def _through(event: Event, place: Place) -> bool:
    return bool(event["e"] == "passed" and (event["run"], event["task"]) == (place.run, place.number - 1))


_PHASES: dict[str, Callable[[SplitStage, Pair, Place, ExitStack], Event]] = {
    "before_delegation": SplitStage._before_delegation,
    "after_delegation": SplitStage._after_delegation,
    "during_reply": SplitStage._during_reply,
    "during_tool": SplitStage._during_tool,
    "while_pending": SplitStage._while_pending,
    "after_answer": SplitStage._after_answer,
    "during_replay": SplitStage._during_replay,
}
