"""Where in the program a step happens: openings from the program down, and the turn within."""

import contextlib
import contextvars
import threading
from collections.abc import Iterator

from .step_keys import content_digest, digest, step_key


class Scope:
    """One opening (program, kickoff, task, agent). Shared by the threads that work in it."""

    def __init__(self, *, path: tuple[str, ...], role: str = "") -> None:
        self.path = path
        self.digest = digest(opening.encode("utf-8", "surrogatepass") for opening in path)
        self.role = role
        self.shown: list[str] = []  # digests of the messages that the last journaled request held
        self._turn = 0
        self._counts: dict[tuple[str, ...], int] = {}
        self._lock = threading.Lock()

    @property
    def turn(self) -> int:
        """Model replies so far."""
        return self._turn

    def replied(self) -> None:
        """Counts one model reply."""
        with self._lock:
            self._turn += 1

    def position(self, *what: str) -> int:
        """How many equal things were counted here before this one."""
        with self._lock:
            seen = self._counts.get(what, 0)
            self._counts[what] = seen + 1
        return seen

    def uncount(self, *what: str) -> None:
        """Takes back the newest count of something that came to nothing and may be tried again."""
        with self._lock:
            self._counts[what] -= 1


_root = Scope(path=("program",))
_current: "contextvars.ContextVar[Scope | None]" = contextvars.ContextVar("meshgate_scope", default=None)
_tool_call_id: "contextvars.ContextVar[str]" = contextvars.ContextVar("meshgate_tool_call_id", default="")


def set_program(name: str) -> None:
    """Names the outermost scope, once per process."""
    global _root  # noqa: PLW0603 - one per process, set before any step
    _root = Scope(path=(f"program {name}",))


def current() -> Scope:
    """The innermost open scope of this context."""
    return _current.get() or _root


@contextlib.contextmanager
def opened(*, kind: str, key: str, role: str = "") -> Iterator[Scope]:
    """Opens a scope below the current one; the n-th equal one is told apart by n."""
    parent = current()
    # A scope opened inside a tool call (a delegation) belongs to that call of the model's reply.
    step = f"{parent.turn}/{_tool_call_id.get()}"
    nth = parent.position("open", kind, key, step)
    scope = Scope(path=(*parent.path, f"{kind} {key} {step} {nth}"), role=role or parent.role)
    scope_token, call_token = _current.set(scope), _tool_call_id.set("")
    try:
        yield scope
    finally:
        _current.reset(scope_token)
        _tool_call_id.reset(call_token)


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
    return {"key": key, "scope": scope.digest, "turn": turn, "kind": "model"}


def tool_step(*, subject: str, arguments: bytes) -> dict[str, object]:
    """The step of a tool call made here and now, with its key."""
    scope = current()
    turn = scope.turn
    content = content_digest(subject=subject, content=arguments)
    call_id = _tool_call_id.get()
    nth = scope.position("step", str(turn), content, call_id)
    occurrence = f"id {call_id} {nth}" if call_id else f"nth {nth}"
    key = step_key(scope=scope.path, turn=turn, kind="tool", content=content, occurrence=occurrence)
    return {
        "key": key,
        "scope": scope.digest,
        "turn": turn,
        "kind": "tool",
        "occurrence": occurrence,
    }
