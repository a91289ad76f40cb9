"""CrewAI's `max_rpm`, for the models that are really asked.

An agent waits for its turn, up to a minute, before it calls its model. A recorded reply asks nobody, so the
wait is put off until the call turns out to be a live one. Else a later attempt would take as long as the
first, and a thread that rests would look like one that has left its recorded steps out.
"""

import contextvars
import functools
from collections.abc import Callable
from typing import Any

Wait = Callable[[], Any]

_owed: "contextvars.ContextVar[tuple[Wait, ...]]" = contextvars.ContextVar("meshgate_rates", default=())


def put_off(controller_class: Any) -> None:
    """Wraps the one method by which an agent asks for its turn; nobody reads what it gives."""
    original = controller_class.check_or_wait

    @functools.wraps(original)
    def check_or_wait(controller: Any) -> bool:
        _owed.set((*_owed.get(), functools.partial(original, controller)))
        return True

    controller_class.check_or_wait = check_or_wait


def owed() -> Wait:
    """What is to be waited for before this call, if it is a live one. Told once."""
    waits = _owed.get()
    _owed.set(())

    def wait() -> None:
        for one in waits:
            one()

    return wait
