"""What a program does with CrewAI's memory, as steps of its run: recalling, saving, finding what to save.

A later attempt recalls what the first one did, though there is more in memory by then: else its prompts
would differ. What was saved is not saved again. Each has a scope of its own, so that the models that memory
asks, in threads that go on beside the agent, are no turns of the agent's. Embedders are asked as ever.
"""

import functools
import json
import time
from collections.abc import Callable
from typing import Any

from . import progress
from .channel import Channel, end_process
from .framing import Message
from .memory_saves import save_once
from .model_journal import milliseconds_since
from .scopes import memory_step, opened
from .step_keys import digest

Function = Callable[..., Any]


def journal(memory_module: Any, channel: Channel) -> None:
    """Wraps the methods of `Memory` in which every way of recalling and saving ends.

    Raises:
        AttributeError: this CrewAI's memory is not what we know.
    """
    steps = _Steps(channel)
    memory, match, record = memory_module.Memory, memory_module.MemoryMatch, memory_module.MemoryRecord
    memory.recall = _own_scope(_recalling(memory.recall, steps, match), "recall")
    memory.extract_memories = _own_scope(_extracting(memory.extract_memories, steps), "extract")
    memory._encode_batch = _saving(memory._encode_batch, steps, record)  # noqa: SLF001 - where both saves end
    # The scope is opened where the program saves, not in the thread that does it.
    memory.remember = _own_scope(memory.remember, "save")
    memory.remember_many = _own_scope(memory.remember_many, "save")


class _Steps:
    """Asks the launcher for what an earlier attempt did, and tells it what this one has done."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def once(
        self, step: Message, asked: Any, *, make: Callable[[], Any], dump: Function, load: Function
    ) -> Any:
        """Makes a value and records it, or gives the recorded one. An error is recorded like a value."""
        kind = str(step["kind"])
        answer = self._channel.ask({"op": "seek", "step": step})
        if answer.get("state") == "recorded":
            progress.step(kind=kind, what="memory", replayed=True)
            return _recorded(answer, load)
        begun = time.monotonic()
        try:
            value = make()
        except Exception as error:
            form: Message = {"failed": str(error), "aborted": type(error).__name__ == "HookAborted"}
            self._record(step, asked, form, milliseconds_since(begun))
            raise
        try:
            form = {"value": dump(value)}
        except (TypeError, ValueError, AttributeError) as error:
            end_process(f"what memory gave cannot be journaled, so the run could not be resumed: {error}")
        self._record(step, asked, form, milliseconds_since(begun))
        return value

    def _record(self, step: Message, asked: Any, form: Message, milliseconds: int) -> None:
        """Durable when this returns. Only now the step is under way: models were asked within it."""
        told = {"op": "reply", "step": step, "milliseconds": milliseconds}
        request = _text({"memory": step["kind"], "asked": asked})
        reply = json.dumps(form, ensure_ascii=False)  # unsorted: the order of metadata shows in prompts
        if self._channel.ask({"op": "model", "step": step}).get("state") == "live":
            self._channel.ask({**told, "request": request, "reply": reply})
        progress.step(kind=str(step["kind"]), what="memory", replayed=False)


def _recorded(answer: Message, load: Function) -> Any:
    try:
        form = json.loads(answer["reply"])
        if "failed" not in form:
            return load(form["value"])
        text, aborted = str(form["failed"]), bool(form["aborted"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        end_process(f"the journal has no usable entry for this use of memory: {error}")
    if aborted:
        from crewai.hooks.dispatch import HookAborted

        raise HookAborted(text)
    raise RuntimeError(text)  # CrewAI goes by the text of it


def _recalling(original: Function, steps: _Steps, match: Any) -> Function:
    @functools.wraps(original)
    def recall(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        asked = {"args": list(args), **kwargs}
        return steps.once(
            memory_step(kind="recall", content=_digest(asked)),
            asked,
            make=lambda: original(self, *args, **kwargs),
            dump=_dumped,
            load=lambda value: [match.model_validate(one) for one in value],
        )

    return recall


def _extracting(original: Function, steps: _Steps) -> Function:
    @functools.wraps(original)
    def extract_memories(self: Any, /, content: str) -> Any:
        return steps.once(
            memory_step(kind="extract", content=_digest(content)),
            content,
            make=lambda: original(self, content),
            dump=list,
            load=list,
        )

    return extract_memories


def _saving(original: Function, steps: _Steps, record: Any) -> Function:
    @functools.wraps(original)
    def encode_batch(self: Any, contents: Any, /, *args: Any, **kwargs: Any) -> Any:
        step = memory_step(kind="save", content=_digest([list(contents), list(args), kwargs]))
        save = functools.partial(original, self, contents, *args, **kwargs)
        store = self._storage  # a private attribute of CrewAI's
        return steps.once(
            step,
            list(contents),
            make=lambda: save_once(store, step_key=str(step["key"]), save=save),
            dump=_dumped,
            load=lambda value: [record.model_validate(one) for one in value],
        )

    return encode_batch


def _own_scope(original: Function, kind: str) -> Function:
    @functools.wraps(original)
    def scoped(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        with opened(kind=kind, key=_digest([list(args), kwargs]), ordered=False):
            return original(self, *args, **kwargs)

    return scoped


def _dumped(values: Any) -> list[Any]:
    return [value.model_dump(mode="json") for value in values]


def _digest(value: Any) -> str:
    return digest([_text(value).encode("utf-8", "surrogatepass")])


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=lambda odd: type(odd).__qualname__)
