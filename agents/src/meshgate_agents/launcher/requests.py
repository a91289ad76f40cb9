"""What a child asks and is answered, as the launcher reads and writes it: nothing of it is taken on trust."""

from collections.abc import Mapping
from typing import Any

from meshgate_agents.child.framing import BadFrame, Message
from meshgate_agents.launcher.gateway import Answer, Step

MAX_ROLE_CHARACTERS = 200
MAX_SHOWN_CHARACTERS = 200
MAX_TURN = 2**31 - 1
HEX_DIGITS = 64


def message(answer: Answer) -> Message:
    """An answer of the gateway, for a child."""
    if answer.state == "done":
        return {"state": "done", "call_id": answer.call_id, "kind": answer.kind, "result": answer.result}
    said = {"said": answer.said} if answer.said else {}
    return {"state": answer.state, "call_id": answer.call_id, "text": answer.text, **said}


def described(operation: str, request: Message, step: Step) -> str:
    """A step that the journal does not hold, for a person."""
    place = f"at turn {step.turn} of scope {step.scope[:12]}"
    if operation == "call":
        return f"a call of {word(request, 'name')!r} with {_cut(request.get('arguments'))} {place}"
    if operation == "delegate":
        return f"a delegation to {word(request, 'app')!r} with {_cut(request.get('arguments'))} {place}"
    about = _cut(request.get("about"))
    return f"a model call {place}" + (f" ({about})" if about else "")


def _cut(text: object) -> str:
    """The beginning of a text, on one line."""
    return " ".join(str(text or "").split())[:MAX_SHOWN_CHARACTERS]


def step_of(request: Message) -> Step:
    """Where in the run a request stands.

    Raises:
        BadFrame: it does not say so.
    """
    step = request.get("step")
    if not isinstance(step, dict):
        raise BadFrame("a request without its step")
    turn = step.get("turn")
    if not isinstance(turn, int) or not 0 <= turn <= MAX_TURN:
        raise BadFrame("a turn is a small number")
    task = _digest(step, "task") if step.get("task") else ""
    return Step(key=_digest(step, "key"), scope=_digest(step, "scope"), turn=turn, task=task)


def _digest(step: Mapping[str, Any], name: str) -> str:
    value = step.get(name)
    if not isinstance(value, str) or len(value) != HEX_DIGITS or set(value) - set("0123456789abcdef"):
        raise BadFrame(f"a step's {name} is 64 lower-case hex digits")
    return value


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Those values that are texts."""
    return {str(key): value for key, value in values.items() if isinstance(value, str)}


def untrusted(claims: object) -> dict[str, str]:
    """What a child says of itself, cut to size."""
    role = claims.get("role") if isinstance(claims, dict) else None
    return {"role": role[:MAX_ROLE_CHARACTERS]} if isinstance(role, str) and role else {}


def word(request: Message, key: str) -> str:
    """A short text of one line."""
    return " ".join(str(request.get(key, "?")).split())[:40]
