"""Which tools an app may call with some arguments: the decision, evaluated with the arguments unknown.

OPA's Compile API answers with what is left of a question when part of the input is not known. A tool is
left out when nothing is left of `granted` (no arguments grant it), or when `refused` holds unconditionally.
A condition that can be met by no arguments, but only a person or a solver would see it, keeps a tool
listed: the listing is advice to an agent, the decision alone allows.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from meshgate_policies import policy_input
from meshgate_policies.engine import HTTP_OK, request_head
from meshgate_policies.errors import PolicyUnavailable
from meshgate_policies.policy_input import CallerInput
from meshgate_policies.wire import Closed, Connection, MalformedAnswer

COMPILE_TARGET: Final = "/v1/compile"
GRANTED: Final = "data.meshgate.granted"
REFUSED: Final = "data.meshgate.refused"
QUESTION_SECONDS = 10.0  # one takes 1 ms; a package of 1000 rules 50 ms
MAX_ANSWER_BYTES = 67_108_864  # what is left is a syntax tree, 1 kB per rule


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownTool:
    """The part of `input.call` that is the same for every call of a tool."""

    tool: str
    host: str
    effect: str
    kind: str
    definition_sha256: str


def unknowns() -> list[str]:
    """Every part of the input that caller and tool do not settle."""
    return [f"input.{path}" for path in policy_input.changing()]


def listing(
    *, socket_path: str, token: str, callers: Iterable[CallerInput], tools: Sequence[KnownTool]
) -> dict[str, list[str]]:
    """For each caller's app the tools it may call with some arguments, sorted.

    Args:
        socket_path: of an OPA on the policy.
        token: the supervisor's; the gateway's does not reach this.
        callers: the apps that call tools.
        tools: the whole catalogue.

    Raises:
        PolicyUnavailable: OPA gave no usable answer; there is no listing.
    """
    try:
        with _Compiler(socket_path, token) as compiler:
            return {
                caller.app: sorted(tool.tool for tool in tools if _possible(compiler, caller, tool))
                for caller in callers
            }
    except (OSError, Closed, MalformedAnswer, ValueError) as error:
        raise PolicyUnavailable(f"OPA did not compile the listing: {error!r}") from error


def document(*, revision: str, digest: str, apps: Mapping[str, Sequence[str]]) -> bytes:
    """The file that the gateway reads: a listing that names its policy."""
    return json.dumps({"revision": revision, "digest": digest, "apps": apps}, indent=2).encode()


class _Compiler:
    """One kept-alive connection to one OPA."""

    def __init__(self, socket_path: str, token: str) -> None:
        deadline = time.monotonic() + QUESTION_SECONDS
        self._connection = Connection(socket_path, deadline, max_body_bytes=MAX_ANSWER_BYTES)
        self._head = request_head(COMPILE_TARGET, token)
        self._unknowns = unknowns()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def residue(self, query: str, known: Mapping[str, object]) -> list[list[dict[str, Any]]]:
        """What is left of a query: alternatives, each a list of expressions; none: it cannot hold."""
        body = json.dumps({"query": query, "input": known, "unknowns": self._unknowns}).encode()
        answer = self._connection.ask(
            b"%b%d\r\n\r\n%b" % (self._head, len(body), body), time.monotonic() + QUESTION_SECONDS
        )
        if answer.status != HTTP_OK:
            raise PolicyUnavailable(f"OPA answered {query} with status {answer.status}")
        return _alternatives(json.loads(answer.body))


def _possible(compiler: _Compiler, caller: CallerInput, tool: KnownTool) -> bool:
    known = {"caller": asdict(caller), "call": asdict(tool)}
    if not compiler.residue(GRANTED, known):
        return False
    return all(compiler.residue(REFUSED, known))  # an alternative without a condition always holds


def _alternatives(answer: object) -> list[list[dict[str, Any]]]:
    result = answer.get("result") if isinstance(answer, dict) else None
    if not isinstance(result, dict):
        raise MalformedAnswer("no result")
    queries = result.get("queries") or []
    return [left for query in queries if (left := _left(query)) is not None]


def _left(query: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """A query without its constant parts, which OPA may leave as `not true`; None when it cannot hold."""
    left = []
    for expression in query:
        terms = expression["terms"]
        if not isinstance(terms, dict) or terms.get("type") != "boolean":
            left.append(expression)
        elif terms["value"] is bool(expression.get("negated")):
            return None
    return left
