"""Where in the program a step happens: openings from the program down, and the turn within."""

import contextlib
import contextvars
import threading
from collections.abc import Iterator

from . import attempt
from .step_keys import content_digest, digest, step_key


class Scope:
    """One opening (program, kickoff, task, agent). Shared by the threads that work in it.

    In a scope that is not `ordered` (of a save, say) models are asked side by side, in any order: they
    have no turns there.
    """

    def __init__(
        self, *, path: tuple[str, ...], role: str = "", task: str = "", ordered: bool = True
    ) -> None:
        self.path = path
        self.ordered = ordered
        self.task = task  # digest of the task that this is a part of; the same in every retry of it
        self.digest = _digest(path)
        self.role = role
        self.shown: list[str] = []  # digests of the messages that the last journaled request held
        self._turn = 0
        self._counts: dict[tuple[str, ...], int] = {}
        self._objects: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    @property
    def turn(self) -> int:
        """Model replies so far."""
        return self._turn

    def replied(self) -> None:
        """Counts one model reply."""
        if self.ordered:
            with self._lock:
                self._turn += 1

    def position(self, *what: str) -> int:
        """How many equal things were counted here before this one."""
        with self._lock:
            seen = self._counts.get(what, 0)
            self._counts[what] = seen + 1
        return seen

    def ordinal(self, key: str, thing: str) -> int:
        """Which of the things with an equal key this is, by order of first arrival."""
        with self._lock:
            known = self._objects.setdefault(key, [])
            if thing not in known:
                known.append(thing)
            return known.index(thing)

    def uncount(self, *what: str) -> None:
        """Takes back the newest count of something that came to nothing and may be tried again."""
        with self._lock:
            self._counts[what] -= 1


def _digest(path: tuple[str, ...]) -> str:
    return digest(opening.encode("utf-8", "surrogatepass") for opening in path)


_root = Scope(path=("program",))
_current: "contextvars.ContextVar[Scope | None]" = contextvars.ContextVar("meshgate_scope", default=None)
_tool_call_id: "contextvars.ContextVar[str]" = contextvars.ContextVar("meshgate_tool_call_id", default="")


def set_program(name: str) -> None:
    """Names the outermost scope, once per process; the same name again changes nothing."""
    global _root  # noqa: PLW0603 - one per process, set before any step
    path = (f"program {name}",)
    if _root.path != path:
        _root = Scope(path=path)


def current() -> Scope:
    """The innermost open scope of this context."""
    return _current.get() or _root


@contextlib.contextmanager
def opened(*, kind: str, key: str, role: str = "", thing: str = "", ordered: bool = True) -> Iterator[Scope]:
    """Opens a scope below the current one; the n-th equal one is told apart by n.

    Args:
        kind: kickoff, task, agent, or what is done with memory.
        key: the same in every attempt.
        role: of the agent.
        thing: tells objects with equal keys apart in this process; itself it enters no digest.
        ordered: whether the order of model calls in it is the same in every attempt.
    """
    parent = current()
    # A scope opened inside a tool call (a delegation) belongs to that call of the model's reply.
    step = f"{parent.turn}/{_tool_call_id.get()}"
    nth = parent.position("open", kind, key, step)
    path = (*parent.path, f"{kind} {key} {step} {nth}")
    task = _task(parent, path, kind=kind, which=f"{key} {parent.ordinal(key, thing) if thing else nth}")
    scope = Scope(path=path, role=role or parent.role, task=task, ordered=ordered)
    scope_token, call_token = _current.set(scope), _tool_call_id.set("")
    try:
        yield scope
    finally:
        _current.reset(scope_token)
        _tool_call_id.reset(call_token)


def _task(parent: Scope, path: tuple[str, ...], *, kind: str, which: str) -> str:
    """The task of a new scope. How often it was opened does not enter: a retry is the same task."""
    if kind == "kickoff":
        return ""
    if kind == "task":
        return _digest((*parent.path, f"task {which}"))
    if kind == "agent" and not parent.task:
        return _digest(path)  # kicked off alone: all that it does now is one task
    return parent.task


@contextlib.contextmanager
def tool_call(call_id: str) -> Iterator[None]:
    """Remembers the model's id of the tool call that is being carried out."""
    token = _tool_call_id.set(call_id)
    try:
        yield
    finally:
        _tool_call_id.reset(token)


def model_step(*, scope: Scope, content: str) -> dict[str, object]:
    """The step of a model call made here and now, with its key."""
    turn = scope.turn
    nth = scope.position("model", str(turn), content)  # a call that raises takes its count back
    key = step_key(scope=scope.path, turn=turn, kind="model", content=content, occurrence=f"nth {nth}")
    return {"key": key, "scope": scope.digest, "turn": _told_turn(scope), "kind": "model"}


def memory_step(*, kind: str, content: str) -> dict[str, object]:
    """The step of something that is done with memory, in the scope that was opened for it."""
    scope = current()
    nth = scope.position("memory", kind, content)
    key = step_key(scope=scope.path, turn=0, kind=kind, content=content, occurrence=f"nth {nth}")
    return {"key": key, "scope": scope.digest, "turn": _told_turn(scope), "kind": kind}


def _told_turn(scope: Scope) -> int:
    """The turn by which the gateway looks for divergences: what went further earlier, and now is not asked.

    Without an order nothing can be said to be further: an attempt's steps come after all earlier attempts'.
    """
    return scope.turn if scope.ordered else attempt.number()


def tool_step(*, subject: str, arguments: bytes) -> dict[str, object]:
    """The step of a tool call made here and now, with its key."""
    return _call_step("tool", subject, arguments)


def delegation_step(*, app: str, arguments: bytes) -> dict[str, object]:
    """The step of asking an agent that is an app of its own, here and now, with its key."""
    return _call_step("delegate", app, arguments)


def _call_step(kind: str, subject: str, arguments: bytes) -> dict[str, object]:
    scope = current()
    turn = scope.turn
    content = content_digest(subject=subject, content=arguments)
    call_id = _tool_call_id.get()
    counted = "step" if kind == "tool" else kind
    nth = scope.position(counted, str(turn), content, call_id)
    occurrence = f"id {call_id} {nth}" if call_id else f"nth {nth}"
    key = step_key(scope=scope.path, turn=turn, kind=kind, content=content, occurrence=occurrence)
    return {
        "key": key,
        "scope": scope.digest,
        "task": scope.task,
        "turn": turn,
        "kind": kind,
        "occurrence": occurrence,
    }
