"""What Dapr may ask of this host: `invoke({"call_id": ...})`, and nothing else.

The activity's result says nothing; only FinishCall makes an outcome.
"""

import asyncio
import logging
import re
import threading
from collections.abc import Awaitable, Callable

from meshgate_toolhost.errors import ToolHostError

NAME = "invoke"
_CALL_ID = re.compile(r"c[0-9a-f]{40}")

_log = logging.getLogger(__name__)


def parse_input(given: object) -> str | None:
    """The call id; None for any other shape, which is then ignored."""
    if not isinstance(given, dict) or set(given) != {"call_id"}:
        return None
    call_id = given["call_id"]
    return call_id if isinstance(call_id, str) and _CALL_ID.fullmatch(call_id) else None


def make_activity(invoke: Callable[[str], None]) -> Callable[[object, object], Awaitable[None]]:
    """The activity around `Invoker.invoke`. Async, because the SDK runs few sync ones at a time."""

    async def activity(_context: object, given: object) -> None:
        call_id = parse_input(given)
        if call_id is None:
            _log.warning("activity.ignored", extra={"shape": type(given).__name__})
            return
        await _on_daemon_thread(lambda: invoke(call_id), name=f"call-{call_id[:12]}")

    return activity


async def _on_daemon_thread(work: Callable[[], None], *, name: str) -> None:
    """Waits for `work` on a thread that does not keep the process alive.

    Raises:
        Exception: what `work` raised; Dapr records the activity as failed.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.done():  # cancelled: the worker is stopping
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def report(error: BaseException | None) -> None:
        try:
            loop.call_soon_threadsafe(settle, error)
        except RuntimeError:
            _log.info("activity.loop_closed")

    def run() -> None:
        try:
            work()
        except ToolHostError as error:
            report(error)
        except BaseException as error:
            report(error)
            raise
        else:
            report(None)

    threading.Thread(target=run, name=name, daemon=True).start()
    await done
