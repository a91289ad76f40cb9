"""Tools that run in the child itself (`execute: agent`): permits that are out, and what came of them.

A call that an earlier attempt finished is run again too, because what it made lived in that attempt's
memory; its outcome must be the recorded one.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from meshgate_agents.child.framing import BadFrame, Message
from meshgate_agents.launcher.errors import AttemptEnded, Differs
from meshgate_agents.launcher.gateway import Answer, Gateway, Told
from meshgate_agents.launcher.tools import Limits

TIMED_OUT = Told(state="failed", data="no answer before its deadline", error_class="timeout")
MAX_SHOWN_CHARACTERS = 200  # of each side, to the person who asked for a replay
MAX_NAME_CHARACTERS = 128  # of an error class, as the gateway takes it


@dataclass(frozen=True, slots=True)
class _Permitted:
    """A body that the child was told to run."""

    answer: Answer
    recorded: bool
    name: str
    limits: Limits
    begun_at: float


class OwnTools:
    """The permits of one attempt. Each is good for one outcome. Safe for threads.

    Args:
        ask: asks the gateway until it answers.
        live: False for a replay, in which nothing may reach the gateway.
    """

    def __init__(
        self,
        *,
        gateway: Gateway,
        attempt: int,
        ask: Callable[[Callable[[], Answer]], Answer],
        live: bool,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._gateway, self._attempt, self._ask, self._live = gateway, attempt, ask, live
        self._out: dict[str, _Permitted] = {}
        self._lock = threading.Lock()

    def holds(self, step_key: str) -> bool:
        """Whether the body of this step is under way in the child."""
        with self._lock:
            return step_key in self._out

    def busy(self) -> bool:
        """Whether the child is at a body that is on record."""
        with self._lock:
            return any(permitted.recorded for permitted in self._out.values())

    def permit(
        self, step_key: str, answer: Answer, *, recorded: bool, limits: Limits | None, name: str
    ) -> Message:
        """Tells the child to run a body, with exactly the arguments that were decided on.

        Raises:
            AttemptEnded: the manifest does not have this tool run here, or it is being run.
        """
        if limits is None:
            raise AttemptEnded(f"call {answer.call_id} of {name!r} is of no tool that runs in the agent")
        with self._lock:
            if step_key in self._out:
                raise AttemptEnded(f"call {answer.call_id} of {name!r} was asked for twice at once")
            self._out[step_key] = _Permitted(answer, recorded, name, limits, self._now())
        return {
            "state": "run",
            "call_id": answer.call_id,
            "arguments": answer.arguments,
            "max_result_bytes": limits.result_bytes,
        }

    def overdue(self) -> AttemptEnded | None:
        """Looks for a body that has run past its deadline, and records that its call has failed.

        A thread cannot be stopped, and what it has changed by then, or would change later, is not known: so
        its process is ended. A later attempt is answered with the failure, and does not run the body.

        Raises:
            AttemptEnded: the gateway refused, or was away for too long.
        """
        now = self._now()
        with self._lock:
            keys = [key for key, one in self._out.items() if now - one.begun_at > one.limits.deadline_seconds]
            late = [self._out.pop(key) for key in keys]
        for permitted in late:
            if self._live and not permitted.recorded:
                self._settle(permitted, take=permitted.answer.take, told=TIMED_OUT)
        if not late:
            return None
        name, seconds = late[0].name, late[0].limits.deadline_seconds
        return AttemptEnded(f"the body of tool {name!r} ran past its deadline of {seconds:g} s")

    def ran(self, step_key: str, outcome: object) -> tuple[Answer, bool]:
        """The answer for what a body gave, durable; and whether it was on record.

        Raises:
            BadFrame: nobody was told to run this, or it is no outcome.
            Differs: another outcome than the recorded one, in a replay.
            AttemptEnded: the same in a run, which is held up by it; or the gateway refused.
        """
        told = _told(outcome)
        with self._lock:
            permitted = self._out.pop(step_key, None)
        if permitted is None:
            raise BadFrame("the outcome of a tool that nobody was told to run")
        answer = permitted.answer
        if permitted.recorded and told.same(answer):
            return answer, True
        if not self._live:
            raise Differs(_sides(permitted, told))
        settled = self._settle(permitted, take=0 if permitted.recorded else answer.take, told=told)
        return settled, permitted.recorded

    def _settle(self, permitted: _Permitted, *, take: int, told: Told) -> Answer:
        finish, call_id = self._gateway.finish_own, permitted.answer.call_id
        return self._ask(lambda: finish(call_id=call_id, attempt=self._attempt, take=take, told=told))


def _told(outcome: object) -> Told:
    given: Mapping[str, Any] = outcome if isinstance(outcome, dict) else {}
    state, data = given.get("state"), given.get("data")
    kind, error_class = given.get("kind", ""), given.get("error_class", "")
    sound = (state == "done" and kind in ("text", "json")) or (
        state == "failed" and isinstance(error_class, str) and len(error_class) <= MAX_NAME_CHARACTERS
    )
    if not sound or not isinstance(data, str):
        raise BadFrame("an outcome is a result or a failure")
    return Told(state=str(state), kind=str(kind), data=data, error_class=str(error_class))


def _sides(permitted: _Permitted, told: Told) -> str:
    recorded = permitted.answer.result if permitted.answer.state == "done" else permitted.answer.text
    sides = [" ".join(text.split())[:MAX_SHOWN_CHARACTERS] for text in (recorded, told.shown)]
    return f"the result of {permitted.name!r}: recorded {sides[0]!r}, now {sides[1]!r}"
