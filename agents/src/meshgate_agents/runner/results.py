"""CrewAI's result objects as JSON, and back. Imports CrewAI; never pickle, no class by a stored name."""

from collections.abc import Iterable
from typing import Any

MAX_RESULT_BYTES = 2_097_152  # below the journal's limit for a step, and what an operator is shown

OUTPUTS = ("CrewOutput", "LiteAgentOutput")


class NoForm(Exception):
    """A result that cannot be handed to another process."""


def encode(result: Any, *, messages: bool = True) -> dict[str, Any]:
    """A result's JSON form. Without `messages` what the models were told stays out.

    Raises:
        NoForm: neither JSON nor a result of CrewAI's nor a pydantic object.
    """
    name = type(result).__name__
    if name in OUTPUTS and type(result).__module__.startswith("crewai."):
        return {"type": name, "value": _output(result, messages)}
    if hasattr(result, "model_dump"):
        return {"type": "pydantic", **_pydantic(result)}
    if _plain(result):
        return {"type": "json", "value": result}
    raise NoForm(
        f"a result of type {type(result).__module__}.{type(result).__qualname__}; return JSON instead"
    )


def rebuild(form: dict[str, Any], *, classes: Iterable[Any]) -> Any:
    """The result again.

    Args:
        form: from `encode`.
        classes: the pydantic classes that the program names; others are not looked up.
    """
    known = {_name(found): found for found in classes}
    if form["type"] in OUTPUTS:
        return _rebuilt(form["type"], form["value"], known)
    if form["type"] == "pydantic" and form["class"] in known:
        return known[form["class"]].model_validate(form["value"])
    return form["value"]


def _output(result: Any, messages: bool) -> dict[str, Any]:  # noqa: FBT001 - passed on
    """Field by field: a dump of the whole would cut a pydantic result down to its base class."""
    from pydantic_core import to_jsonable_python

    fields: dict[str, Any] = {}
    for name in type(result).model_fields:
        value = getattr(result, name)
        if name == "pydantic":
            fields[name] = None if value is None else _pydantic(value)
        elif name == "tasks_output":
            fields[name] = [_output(task, messages) for task in value]
        elif name != "messages" or messages:
            fields[name] = to_jsonable_python(value, fallback=str)
    return fields


def _pydantic(value: Any) -> dict[str, Any]:
    return {"class": _name(type(value)), "value": value.model_dump(mode="json")}


def _rebuilt(name: str, fields: dict[str, Any], known: dict[str, Any]) -> Any:
    from crewai.crews.crew_output import CrewOutput
    from crewai.lite_agent_output import LiteAgentOutput
    from crewai.tasks.task_output import TaskOutput

    kind = {"CrewOutput": CrewOutput, "LiteAgentOutput": LiteAgentOutput, "TaskOutput": TaskOutput}[name]
    given = dict(fields)
    held = given.pop("pydantic", None)
    if "tasks_output" in given:
        given["tasks_output"] = [_rebuilt("TaskOutput", task, known) for task in given["tasks_output"]]
    if held is not None and held["class"] not in known and "json_dict" in kind.model_fields:
        given["json_dict"] = given.get("json_dict") or held["value"]
    result = kind.model_validate({key: value for key, value in given.items() if key in kind.model_fields})
    if held is not None and held["class"] in known:
        result.pydantic = known[held["class"]].model_validate(held["value"])
    return result


def _name(kind: type) -> str:
    """A class's name, the same in a process where its script is played again."""
    return f"{kind.__module__}:{kind.__qualname__}"


def _plain(value: Any) -> bool:
    if value is None or type(value) in (bool, int, float, str):
        return True
    if type(value) is list:
        return all(_plain(item) for item in value)
    return type(value) is dict and all(type(key) is str and _plain(item) for key, item in value.items())
