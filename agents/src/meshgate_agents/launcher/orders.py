"""What a run starts, read from the input that the gateway keeps with it."""

import json
from dataclasses import replace
from pathlib import Path

from meshgate_agents.launcher.children import Program
from meshgate_agents.launcher.errors import BadSettings

_NOTHING = object()


def fit(envelope: bytes, *, kind: str) -> None:
    """Checks that an order is of the kind that its app is by now: only an agent is given tasks.

    Raises:
        BadSettings: the manifest has changed since.
    """
    try:
        delegated = "delegation" in json.loads(envelope or b"{}")
    except (ValueError, TypeError) as error:
        raise BadSettings(f"the order of the run cannot be read: {error!r}") from error
    if delegated and kind != "agent":
        raise BadSettings(f"the run is a task for an agent, and its app is a {kind} by now")
    if kind == "agent" and not delegated:
        raise BadSettings("the run is no task, and its app is an agent by now, which acts only when asked")


def has_command(envelope: bytes) -> bool:
    """Whether an order says itself what is started: as `meshgate run` gives it, at a terminal or not."""
    try:
        return "command" in json.loads(envelope or b"{}")
    except (ValueError, TypeError):
        return False


def depth(envelope: bytes) -> int:
    """How many callers stand above a run; 0 for one that nobody delegated, and for what cannot be read."""
    try:
        found = json.loads(envelope or b"{}").get("depth", 0)
    except (ValueError, AttributeError):
        return 0
    return found if isinstance(found, int) else 0


def program(envelope: bytes, own: Program) -> Program:
    """The program of a run. It is handed the run's input, or what an agent's app was asked for.

    Args:
        envelope: the run's kept input; empty for a run that has none.
        own: what is started where the envelope names nothing else.

    Raises:
        BadSettings: the order cannot be read.
    """
    if not envelope:
        return own
    try:
        order = json.loads(envelope)
        handed = next((order[name] for name in ("delegation", "input") if name in order), _NOTHING)
        given = None if handed is _NOTHING else json.dumps(handed, ensure_ascii=False)
        return replace(
            own,
            command=tuple(map(str, order.get("command") or own.command)),
            cwd=Path(order["cwd"]) if order.get("cwd") else own.cwd,
            env={str(name): str(value) for name, value in order.get("env", {}).items()},
            given=None if given is None else given.encode("utf-8", "surrogatepass"),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise BadSettings(f"the order of the run cannot be read: {error!r}") from error
