"""Asks an OPA on a Unix socket for a decision. The target is constant; no input can choose it."""

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from meshgate_policies.errors import PolicyUnavailable
from meshgate_policies.wire import Answer, Closed, Connection, MalformedAnswer

# With strict errors a built-in that fails makes the whole question fail. Without, its rule is
# undefined, and a deny rule that is undefined denies nothing.
DECISION_TARGET: Final = "/v1/data/meshgate/decision?strict-builtin-errors=true"
TIMEOUT_SECONDS = 1.0  # OPA answers in 0.1 ms; a second means it hangs
HTTP_OK = 200
HTTP_ERROR = 500


class Undefined:
    """The rule had no value: not the same as null, and never an allow."""

    def __repr__(self) -> str:
        return "UNDEFINED"


UNDEFINED: Final = Undefined()


@dataclass(frozen=True, slots=True)
class _Target:
    """Which OPA is asked. Replaced whole, so no question meets a socket with another's token."""

    socket_path: str
    head: bytes


class OpaEngine:
    """One OPA at a time. Safe for threads: each has a kept-alive connection of its own.

    A question is sent again only where the server had closed an idle connection and not one byte
    of an answer came; the question changes nothing, so asking twice is harmless. Never after a
    timeout: a hung engine costs one timeout.
    """

    def __init__(self, *, socket_path: str, token: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._timeout = timeout_seconds
        self._target = _target(socket_path, token)
        self._local = threading.local()

    def switch(self, *, socket_path: str, token: str) -> None:
        """Asks another OPA from the next question on; questions under way end where they began."""
        self._target = _target(socket_path, token)

    def close(self) -> None:
        """Closes the calling thread's connection; other threads' go with their threads."""
        held = self._held()
        if held is not None:
            held[1].close()

    def evaluate(self, policy_input: Mapping[str, object]) -> object:
        """The raw value of the decision, or UNDEFINED.

        UNDEFINED also where OPA evaluated and the policy itself failed on this input (two rules
        contradict, a built-in got a wrong value): that is the policy's answer to it, and no
        repetition would change it.

        Raises:
            PolicyUnavailable: no whole answer in time, or none that OPA gives to us.
        """
        target = self._target
        body = json.dumps({"input": policy_input}, separators=(",", ":"), allow_nan=False).encode()
        request = b"%b%d\r\n\r\n%b" % (target.head, len(body), body)
        try:
            return _read(self._exchange(target, request))
        except (OSError, Closed, MalformedAnswer) as error:
            raise PolicyUnavailable(f"OPA gave no answer: {error!r}") from error

    def _exchange(self, target: _Target, request: bytes) -> Answer:
        deadline = time.monotonic() + self._timeout
        held = self._held()
        if held is not None and held[0] is target:
            try:
                return self._ask(target, held[1], request, deadline)
            except Closed as closed:
                if closed.after_bytes:
                    raise
        elif held is not None:
            held[1].close()
        return self._ask(target, Connection(target.socket_path, deadline), request, deadline)

    def _ask(self, target: _Target, connection: Connection, request: bytes, deadline: float) -> Answer:
        """Asks once; a connection is kept only after a whole answer, so no answer meets another question."""
        whole = False
        try:
            answer = connection.ask(request, deadline)
            whole = answer.keep_alive
        finally:
            if not whole:
                connection.close()
        if whole:
            self._local.held = (target, connection)
        return answer

    def _held(self) -> tuple[_Target, Connection] | None:
        held: tuple[_Target, Connection] | None = getattr(self._local, "held", None)
        self._local.held = None
        return held


def _target(socket_path: str, token: str) -> _Target:
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token must be printable ASCII")
    head = (
        f"POST {DECISION_TARGET} HTTP/1.1\r\nHost: opa\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nContent-Length: "
    )
    return _Target(socket_path, head.encode())


def _read(answer: Answer) -> object:
    """What OPA said.

    Raises:
        MalformedAnswer: the answer is not one of OPA's.
        PolicyUnavailable: OPA refused to answer.
    """
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise MalformedAnswer(f"status {answer.status}, not JSON") from error
    if not isinstance(value, dict):
        raise MalformedAnswer(f"status {answer.status}, not an object")
    if answer.status == HTTP_OK:
        return value.get("result", UNDEFINED)
    if answer.status == HTTP_ERROR and _policy_failed(value):
        return UNDEFINED
    raise PolicyUnavailable(f"OPA answered with status {answer.status}")


def _policy_failed(value: Mapping[str, object]) -> bool:
    """Whether a 500 tells of an evaluation that ended in a contradiction or a failing built-in."""
    errors = value.get("errors")
    if not isinstance(errors, list) or not errors:
        return False
    codes = {error.get("code") if isinstance(error, dict) else None for error in errors}
    return codes <= {"eval_builtin_error", "eval_conflict_error", "eval_type_error"}
