"""A model call as a step of a durable run: answered from the journal, or made and recorded.

What a replayed call restores besides its reply: token usage, and the events that CrewAI's bus got.
"""

import contextlib
import contextvars
import functools
import json
import time
from collections.abc import Iterator
from typing import Any

from . import progress
from .call_ids import without_addresses
from .channel import Begun, Channel, end_process
from .framing import Message
from .replies import NoForm, decode, encode
from .scopes import Scope, model_step
from .step_keys import digest

# In the order in which `call` and `acall` take them.
PARAMETERS = (
    "messages",
    "tools",
    "callbacks",
    "available_functions",
    "from_task",
    "from_agent",
    "response_model",
)
MAX_ABOUT_CHARACTERS = 160
SETTINGS = ("model", "temperature", "top_p", "max_tokens", "seed", "stop", "n")

_traces: "contextvars.ContextVar[Trace | None]" = contextvars.ContextVar("meshgate_trace", default=None)


class Trace:
    """What a live call left behind besides its reply."""

    def __init__(self) -> None:
        self.usage: list[dict[str, Any]] = []
        self.started = False
        self.chunks = False
        self.completed: list[dict[str, Any]] = []

    def form(self) -> Message:
        """For the journal."""
        return {
            "usage": self.usage,
            "started": self.started,
            "chunks": self.chunks,
            "completed": self.completed,
        }


class ModelCall:
    """One call, with what tells it from others."""

    def __init__(self, model: Any, scope: Scope, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model, self.scope = model, scope
        self.given = {**dict(zip(PARAMETERS, args, strict=False)), **kwargs}
        expected = self.given.get("response_model") or getattr(model, "response_format", None)
        self.expected: Any = expected if isinstance(expected, type) else None
        messages = self.given.get("messages")
        listed = messages if isinstance(messages, list) else [messages]
        self._last: Any = listed[-1] if listed else ""
        self.messages = without_addresses([_json(message) for message in listed])
        self._digest = self._content()
        self.begun: Begun | None = None  # where its reply is told, when it was begun without a question
        self.step = model_step(scope=scope, content=self._digest)

    def _content(self) -> str:
        settings = {name: getattr(self.model, name, None) for name in SETTINGS}
        schema = self.expected.model_json_schema() if hasattr(self.expected, "model_json_schema") else None
        kind = f"{type(self.model).__module__}.{type(self.model).__qualname__}"
        head = [kind, _json(settings), _json(self.given.get("tools")), _json(schema)]
        return digest(part.encode("utf-8", "surrogatepass") for part in [*head, *self.messages])

    @property
    def name(self) -> str:
        """Of the model."""
        return str(getattr(self.model, "model", ""))

    @property
    def about(self) -> str:
        """Whose prompt it is and how its last message begins, for a person who looks for a difference."""
        text = self._last.get("content") if isinstance(self._last, dict) else self._last
        shown = text[:MAX_ABOUT_CHARACTERS] if isinstance(text, str) else ""
        return f"{self.scope.role or 'a program'}: {shown}"

    def raised(self) -> None:
        """The model gave no reply: trying again is the same step."""
        self.scope.uncount("model", str(self.step["turn"]), self._digest)

    def request(self) -> Message:
        """What a person is shown of the prompt: what is new since the scope's last call."""
        digests = [digest([message.encode("utf-8", "surrogatepass")]) for message in self.messages]
        shown = self.scope.shown
        same = 0
        while same < min(len(shown), len(digests)) and shown[same] == digests[same]:
            same += 1
        self.scope.shown = digests
        return {
            "model": self.name,
            "messages_before": same,
            "messages": [json.loads(message) for message in self.messages[same:]],
        }


class ModelJournal:
    """Asks the launcher before a call and tells it afterwards."""

    def __init__(self, *, channel: Channel) -> None:
        self._channel = channel
        self._fresh = False  # whether the launcher says that nothing is recorded of what comes now

    def recorded(self, call: ModelCall) -> "tuple[Any] | None":
        """The reply that an earlier attempt got, in a tuple of one; None when the call goes live."""
        begin = {"op": "model", "step": call.step, "about": call.about}
        if self._fresh:
            call.begun = self._channel.begin({**begin, "wait": False})
            if call.begun is not None:
                return None
        answer = self._channel.ask(begin)
        if answer.get("state") == "live":
            self._fresh = answer.get("fresh") is True
            return None
        try:
            entry = json.loads(answer["reply"])
            reply = decode(entry["reply"], expected=call.expected)
        except (KeyError, ValueError, NoForm) as error:
            end_process(f"the journal has no usable reply for this step: {error}")
        call.request()  # what is new in the next prompt is counted from here
        _restore(call, entry["trace"], reply)
        progress.step(kind="model", what=call.name, replayed=True)
        return (reply,)

    def gave_up(self, call: ModelCall) -> None:
        """The model gave no reply; the step is not under way any more."""
        (call.begun or self._channel).ask({"op": "gave_up", "step": call.step})

    def record(self, call: ModelCall, reply: Any, trace: Trace, milliseconds: int) -> None:
        """Records a reply; durable when this returns."""
        try:
            form = {"reply": encode(reply, expected=call.expected), "trace": trace.form()}
            text = json.dumps(form, ensure_ascii=False, allow_nan=False)
        except (NoForm, TypeError, ValueError) as error:
            self._channel.ask({"op": "unfit", "reply": type(reply).__qualname__})
            end_process(f"a reply cannot be journaled, so the run could not be resumed: {error}")
        request = json.dumps(call.request(), ensure_ascii=False)
        told = {"op": "reply", "step": call.step, "request": request, "reply": text}
        answer = (call.begun or self._channel).ask({**told, "milliseconds": milliseconds})
        self._fresh = answer.get("fresh") is True
        progress.step(kind="model", what=call.name, replayed=False)


@contextlib.contextmanager
def live(journal: ModelJournal, call: ModelCall) -> Iterator[Trace]:
    """Around a live call: collects what it leaves behind besides its reply."""
    trace = Trace()
    token = _traces.set(trace)
    try:
        yield trace
    except BaseException:
        call.raised()
        journal.gave_up(call)
        raise
    finally:
        _traces.reset(token)


def milliseconds_since(begun: float) -> int:
    """Whole milliseconds since a `time.monotonic()`."""
    return int((time.monotonic() - begun) * 1000)


def watch(base_llm: Any) -> None:
    """Wraps the methods of BaseLLM by which a call accounts for itself."""
    for name, note in (
        ("_track_token_usage_internal", _note_usage),
        ("_emit_call_started_event", _note_started),
        ("_emit_stream_chunk_event", _note_chunk),
        ("_emit_call_completed_event", _note_completed),
    ):
        setattr(base_llm, name, _noting(base_llm.__dict__[name], note))


def _noting(original: Any, note: Any) -> Any:
    @functools.wraps(original)
    def noting(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        trace = _traces.get()
        if trace is not None:
            note(trace, args, kwargs)
        return original(self, *args, **kwargs)

    return noting


def _note_usage(trace: Trace, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    usage = args[0] if args else kwargs.get("usage_data")
    trace.usage.append(json.loads(_json(usage)))


def _note_started(trace: Trace, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
    trace.started = True


def _note_chunk(trace: Trace, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
    trace.chunks = True


def _note_completed(trace: Trace, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    kind = args[1] if len(args) > 1 else kwargs.get("call_type")
    kept = {name: kwargs.get(name) for name in ("usage", "finish_reason", "response_id")}
    trace.completed.append({"call_type": str(getattr(kind, "value", kind)), **json.loads(_json(kept))})


def _restore(call: ModelCall, trace: Message, reply: Any) -> None:
    """Token usage and events, as the live call left them."""
    from crewai.events.types.llm_events import LLMCallType
    from crewai.llms.base_llm import llm_call_context

    model, given = call.model, call.given
    about = {"from_task": given.get("from_task"), "from_agent": given.get("from_agent")}
    for usage in trace["usage"]:
        model._track_token_usage_internal(usage)  # noqa: SLF001 - as the provider's own code does
    with llm_call_context():
        if trace["started"]:
            asked = {name: given.get(name) for name in ("messages", "tools", "callbacks")}
            model._emit_call_started_event(**asked, **about)  # noqa: SLF001
        if trace["chunks"] and isinstance(reply, str):
            model._emit_stream_chunk_event(chunk=reply, **about)  # noqa: SLF001
        for event in trace["completed"]:
            kept = {name: event.get(name) for name in ("usage", "finish_reason", "response_id")}
            kind = LLMCallType(event["call_type"])
            messages = given.get("messages")
            model._emit_call_completed_event(reply, kind, messages=messages, **kept, **about)  # noqa: SLF001


def _json(value: Any) -> str:
    """Canonical text of a value; what is no JSON appears by its own dump, else by its type alone."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_odd)


def _odd(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return dump(mode="json")
    return f"{type(value).__module__}.{type(value).__qualname__}"
