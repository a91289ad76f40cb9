"""A save into CrewAI's memory, done once: what it inserts has ids that are the same in every attempt.

A process may die after a save and before the journal knows of it. The next attempt finds the first
record under its id, and does not save again.

What this does not cover: a save that inserts nothing, because it changes or deletes other records, is
done again; so is every save into a store that cannot look a record up. What others wrote into
the same store in between is taken as it is.
"""

import contextvars
import functools
import uuid
from collections.abc import Callable
from typing import Any

from . import attempt
from .step_keys import digest

_saving: "contextvars.ContextVar[str]" = contextvars.ContextVar("meshgate_saving", default="")


class _Keyed:
    """A store as one save sees it. All but the ids of new records is the store's own."""

    def __init__(self, store: Any, step_key: str) -> None:
        self._store, self._step_key, self._saved = store, step_key, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def save(self, records: Any) -> Any:
        for record in records:
            record.id = _record_id(self._step_key, self._saved)
            self._saved += 1
        return self._store.save(records)


def key_records(flow_class: Any) -> None:
    """Wraps the making of CrewAI's flow that saves."""
    original = flow_class.__init__

    @functools.wraps(original)
    def made(self: Any, /, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if _saving.get():
            self._storage = _Keyed(self._storage, _saving.get())

    flow_class.__init__ = made


def save_once(store: Any, *, step_key: str, save: Callable[[], Any]) -> Any:
    """Saves, or gives the records that an earlier attempt of this run saved under the same step."""
    if attempt.number() > 1 and (found := _found(store, step_key)):
        return found
    token = _saving.set(step_key)
    try:
        return save()
    finally:
        _saving.reset(token)


def _found(store: Any, step_key: str) -> list[Any]:
    look_up = getattr(store, "get_record", None)
    found: list[Any] = []
    while look_up is not None and (record := look_up(_record_id(step_key, len(found)))) is not None:
        found.append(record)
    return found


def _record_id(step_key: str, nth: int) -> str:
    """Another run of the same program has the same steps, and records of its own."""
    parts = [b"meshgate.memory.v1", attempt.run().encode(), step_key.encode(), str(nth).encode()]
    return str(uuid.UUID(hex=digest(parts)[:32]))
