"""What Dapr may ask of this app: workflow `run` with its one activity `execute`, and `start_run`.

Ids travel, nothing else. What they are about is asked of the gateway, so a forged, stale or foreign id
ends here without an effect.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol

from meshgate_agents.launcher.errors import StartsSpent
from meshgate_agents.worker.plays import UNKNOWN, Plays

WORKFLOW = "run"
EXECUTE = "execute"
START = "start_run"
IGNORED = "ignored"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Activity = Callable[[object, object], Awaitable[dict[str, str]]]


class Starter(Protocol):
    """Starts workflows in this app."""

    def start(self, run_id: str, attempt: int) -> bool:
        """Starts `run` for the id, unless an instance of it is under way; True when it did.

        Raises:
            StartsSpent: it was begun so often in vain that it is not begun again.
        """


def run(context: Any, given: dict[str, str]) -> Generator[Any, Any, dict[str, str]]:
    """One long activity, handed out again by Dapr when whoever plays it is lost."""
    ended = yield context.call_activity(EXECUTE, input={"run_id": given["run_id"]})
    return {"state": str((ended or {}).get("state", UNKNOWN))}


def parse(given: object) -> str | None:
    """The id; None for any other shape, which is then ignored."""
    if not isinstance(given, dict) or len(given) != 1:
        return None
    (name, value), *_ = given.items()
    if name not in ("run_id", "call_id") or not isinstance(value, str):
        return None
    return value if _ID.fullmatch(value) else None


def execute(plays: Plays) -> Activity:
    """Plays a run to its end, or joins who plays it here. Async: any number at once."""

    async def activity(_context: object, given: object) -> dict[str, str]:
        run_id = parse(given)
        if run_id is None:
            return {"state": IGNORED}
        # Shielded: the SDK cancels its tasks when the stream to the sidecar breaks, the run goes on.
        return {"state": await asyncio.shield(asyncio.wrap_future(plays.play(run_id)))}

    return activity


def start_run(plays: Plays, starter: Starter) -> Activity:
    """Starts the run's own workflow, or joins it; returns at once."""

    def begin(run_id: str) -> str:
        if run_id in plays:
            return "joined"
        known = plays.known(run_id)
        if known is None:
            return UNKNOWN
        if known.state != "pending" and not known.forsaken:
            return known.state
        try:
            return "started" if starter.start(run_id, known.attempt) else "joined"
        except StartsSpent as error:
            plays.give_up(run_id, str(error), after=known.attempt)
            return "failed"

    async def activity(_context: object, given: object) -> dict[str, str]:
        run_id = parse(given)
        if run_id is None:
            return {"state": IGNORED}
        return {"state": await asyncio.to_thread(begin, run_id)}

    return activity
