"""Asks an OPA on a Unix socket for a decision. The target is constant; no input can choose it."""

import json
import threading
import time
from collections.abc import Mapping
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


class OpaEngine:
    """One OPA on one bundle. Safe for threads: each has a kept-alive connection of its own.

    Another bundle is another OPA and another engine, so no decision mixes two.

    A question is sent again only where the server had closed an idle connection and not one byte
    of an answer came; the question changes nothing, so asking twice is harmless. Never after a
    timeout: a hung engine costs one timeout.
    """

    def __init__(self, *, socket_path: str, token: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._timeout = timeout_seconds
        self._socket_path = socket_path
        self._head = request_head(DECISION_TARGET, token)
        self._local = threading.local()

    def close(self) -> None:
        """Closes the calling thread's connection; other threads' go with their threads."""
        held = self._held()
        if held is not None:
            held.close()

    def evaluate(self, policy_input: Mapping[str, object]) -> object:
        """The raw value of the decision, or UNDEFINED.

        UNDEFINED also where OPA evaluated and the policy itself failed on this input (two rules
        contradict, a built-in got a wrong value): that is the policy's answer to it, and no
        repetition would change it.

        Raises:
            PolicyUnavailable: no whole answer in time, or none that OPA gives to us.
        """
        body = json.dumps({"input": policy_input}, separators=(",", ":"), allow_nan=False).encode()
        request = b"%b%d\r\n\r\n%b" % (self._head, len(body), body)
        try:
            return _read(self._exchange(request))
        except (OSError, Closed, MalformedAnswer) as error:
            raise PolicyUnavailable(f"OPA gave no answer: {error!r}") from error

    def _exchange(self, request: bytes) -> Answer:
        deadline = time.monotonic() + self._timeout
        held = self._held()
        if held is not None:
            try:
                return self._ask(held, request, deadline)
            except Closed as closed:
                if closed.after_bytes:
                    raise
        return self._ask(Connection(self._socket_path, deadline), request, deadline)

    def _ask(self, connection: Connection, request: bytes, deadline: float) -> Answer:
        """Asks once; a connection is kept only after a whole answer, so no answer meets another question."""
        whole = False
        try:
            answer = connection.ask(request, deadline)
            whole = answer.keep_alive
        finally:
            if not whole:
                connection.close()
        if whole:
            self._local.held = connection
        return answer

    def _held(self) -> Connection | None:
        held: Connection | None = getattr(self._local, "held", None)
        self._local.held = None
        return held


def request_head(target: str, token: str) -> bytes:
    """The start of every question to one target, up to the number of its length."""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token must be printable ASCII")
    return (
        f"POST {target} HTTP/1.1\r\nHost: opa\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nContent-Length: "
    ).encode()


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
