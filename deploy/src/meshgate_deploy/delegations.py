"""What an agent's app is in the gateway's catalogue: `agent:APP`, to which its colleagues give tasks."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from meshgate_deploy.manifest import Manifest
from meshgate_deploy.manifest_agents import Colleague

PREFIX = "agent:"
EFFECT = "external"  # whatever the agent's own tools do; each of these is decided on for itself
DEADLINE_SECONDS = 86_400.0  # the longest a rule may say; what bounds a delegation is the bounds of its run
MAX_CHARACTERS = 262_144  # of one text: the gateway takes no larger arguments in all
MAX_NAME_CHARACTERS = 4096
MAX_EXPECTED = 1000  # a callback, and types of events that are listened to; CrewAI has some 150
MAX_EXPECTED_CHARACTERS = 256
MAX_TOOLS = 100  # names; of more a digest is told
MAX_TOOL_CHARACTERS = 64
MAX_TASKS = 10_000  # the index of a task in its crew


def tool_id(app: str) -> str:
    """As policies write it."""
    return f"{PREFIX}{app}"


def entries(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """The catalogue's entry of every app that is an agent, by tool id."""
    by_app: dict[str, list[Colleague]] = {}
    for one in manifest.isolated:
        by_app.setdefault(one.app, []).append(one)
    return {tool_id(app): _entry(manifest, app, agents) for app, agents in sorted(by_app.items())}


def arguments_schema(agents: Sequence[Colleague], isolated: Sequence[Colleague]) -> dict[str, Any]:
    """What a delegation carries: which agent of which crew, with the texts that its task has this time.

    Args:
        agents: of the app.
        isolated: all that are apps; of whom a delegation may tell are those of the same crew.
    """
    schema = _object(
        crew={"enum": sorted({one.crew for one in agents})},
        agent={"enum": sorted({one.agent for one in agents})},
        persona=_persona(),
        task=_object(
            index={"type": ["integer", "null"], "minimum": 0, "maximum": MAX_TASKS},
            name=_text(MAX_NAME_CHARACTERS),
            description=_text(),
            expected_output=_text(),
        ),
        context={"type": ["string", "null"], "maxLength": MAX_CHARACTERS},
    )
    schema["properties"] |= {"expects": _expects(), "tools": _tools()}
    others = [_others(one, isolated) for one in agents]
    if any(others):  # what is not required, and of the crew's other agents alone
        schema["properties"]["colleagues"] = _personas({key for keys in others for key in keys})
    if len(agents) > 1:
        schema["anyOf"] = [
            {
                "properties": {
                    "crew": {"const": one.crew},
                    "agent": {"const": one.agent},
                    "colleagues": {"propertyNames": {"enum": keys}} if keys else False,
                }
            }
            for one, keys in zip(agents, others, strict=True)
        ]
    return schema


def _others(agent: Colleague, isolated: Sequence[Colleague]) -> list[str]:
    """The keys of its colleagues."""
    return sorted(one.agent for one in isolated if one.crew == agent.crew and one.agent != agent.agent)


def _expects() -> dict[str, Any]:
    """What is set in the asking process and must be in the agent's: not required, left out when empty."""
    names = {"type": "string", "maxLength": MAX_EXPECTED_CHARACTERS}
    return {"type": "array", "maxItems": MAX_EXPECTED, "uniqueItems": True, "items": names}


def _tools() -> dict[str, Any]:
    """What the agent holds for the task in the asking process: not required, left out when it is nothing."""
    names = {"type": "string", "maxLength": MAX_TOOL_CHARACTERS}
    listed = {"type": "array", "maxItems": MAX_TOOLS, "uniqueItems": True, "items": names}
    return {"anyOf": [listed, {"type": "string", "pattern": "^[0-9a-f]{64}$"}]}


def _personas(keys: set[str]) -> dict[str, Any]:
    names = {"enum": sorted(keys)}
    return {"type": "object", "propertyNames": names, "additionalProperties": _persona()}


def _entry(manifest: Manifest, app: str, agents: Sequence[Colleague]) -> dict[str, Any]:
    schema = arguments_schema(agents, manifest.isolated)
    defined = {
        "schema": schema,
        "agents": [[one.crew, one.agent, one.role, manifest.crews[one.crew].crew] for one in agents],
    }
    roles = " / ".join(dict.fromkeys(one.role for one in agents))
    return {
        "host": app,
        "kind": "delegate",
        "execute": "toolhost",
        "description": f"Gives a task to the agent {roles}.",
        "schema": schema,
        "effect": EFFECT,
        "idempotent": False,  # a delegation is a run: it is never made again by itself
        "repeat": "allow",
        "deadline_seconds": DEADLINE_SECONDS,
        "definition_sha256": hashlib.sha256(json.dumps(defined, sort_keys=True).encode()).hexdigest(),
        "reconcile": False,
    }


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _persona() -> dict[str, Any]:
    return _object(role=_text(MAX_NAME_CHARACTERS), goal=_text(), backstory=_text())


def _text(characters: int = MAX_CHARACTERS) -> dict[str, Any]:
    return {"type": "string", "maxLength": characters}
