"""What an agent gave for a task, from the process where it worked to the one where its crew runs.

No class is looked up by a name that comes with a result: it is one that the task at hand names.
"""

import threading
from typing import Any

from .framing import Message

CLASSES = ("response_model", "output_pydantic", "output_json")
MAX_DEPTH = 200
MAX_TOKENS = 2**53 - 1  # of one task; a number of thousands of digits is nothing that a program can print

_lock = threading.Lock()


class NoForm(Exception):
    """Neither text nor JSON nor an object of the task's class; or no form of ours."""


def encode(output: Any, task: Any, *, of_crew: bool) -> Message:
    """The form of an output.

    Args:
        output: what `execute_task` gave.
        task: for which.
        of_crew: the task is one of its crew's. CrewAI takes text or an object for such a one; what is neither
            would end the crew as an error that names nobody.

    Raises:
        NoForm: it has none.
    """
    if isinstance(output, str):
        return {"type": "text", "value": str(output)}
    for kind in classes(task):
        if type(output) is kind:
            return {"type": "pydantic", "class": name(kind), "value": output.model_dump(mode="json")}
    if _plain(output, MAX_DEPTH) and not of_crew:
        return {"type": "json", "value": output}
    raise NoForm(f"an output of class {name(type(output))}")


def rebuild(form: Any, task: Any, *, of_crew: bool) -> Any:
    """The output again. What the other side says of the task counts for nothing here.

    Raises:
        NoForm: see there.
    """
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "text" and isinstance(form.get("value"), str):
        return form["value"]
    if kind == "json" and "value" in form:
        if of_crew:
            raise NoForm("JSON, where a task of a crew takes text or an object of a class that it names")
        return form["value"]
    if kind == "pydantic":
        wanted = str(form.get("class", "")).partition(":")[2]
        for known in classes(task):
            if known.__qualname__ == wanted:  # its module may have another name where the script is played
                return _validated(known, form.get("value"))
    raise NoForm("an output of a kind, or of a class, that the task does not name")


def _validated(kind: Any, value: Any) -> Any:
    try:
        return kind.model_validate(value)
    except ValueError as error:  # pydantic's own is one
        raise NoForm(f"an output that is no {kind.__qualname__}") from error


def classes(task: Any) -> "list[Any]":
    """The pydantic classes that a task names."""
    found = [getattr(task, attribute, None) for attribute in CLASSES]
    return [kind for kind in found if isinstance(kind, type)]


def name(kind: type) -> str:
    """A class's name."""
    return f"{kind.__module__}:{kind.__qualname__}"


def _plain(value: Any, depth: int) -> bool:
    if value is None or type(value) in (bool, int, float, str):
        return True
    if depth and type(value) is list:
        return all(_plain(item, depth - 1) for item in value)
    if depth and type(value) is dict:
        return all(type(key) is str and _plain(item, depth - 1) for key, item in value.items())
    return False


def spent(agents: "list[Any]") -> "dict[str, int]":
    """What the models of these agents have used so far, each model counted once."""
    total: dict[str, int] = {}
    seen: set[int] = set()
    for agent in agents:
        counter = _counter(agent)
        if id(counter) not in seen:
            seen.add(id(counter))
            for what, count in _counts(counter).items():
                total[what] = total.get(what, 0) + count
    return total


def since(before: "dict[str, int]", after: "dict[str, int]") -> "dict[str, int]":
    """What was used between two looks."""
    return {what: max(0, count - before.get(what, 0)) for what, count in after.items()}


def account(agent: Any, usage: Any) -> None:
    """Adds to an agent's model, or to its own count, what was used for it elsewhere."""
    counter = _counter(agent)
    given = usage if isinstance(usage, dict) else {}
    with _lock:
        for what, count in _counts(counter).items():
            more = given.get(what, 0)
            if type(more) is int and 0 < more <= MAX_TOKENS:
                if isinstance(counter, dict):
                    counter[what] = count + more
                else:
                    setattr(counter, what, count + more)


def _counter(agent: Any) -> Any:
    """CrewAI's own count: of the model, or of the agent where its model keeps none."""
    counts = getattr(getattr(agent, "llm", None), "_token_usage", None)
    return counts if isinstance(counts, dict) else getattr(agent, "_token_process", None)


def _counts(counter: Any) -> "dict[str, int]":
    if isinstance(counter, dict):
        return {what: count for what, count in counter.items() if type(count) is int}
    return {what: getattr(counter, what) for what in getattr(type(counter), "model_fields", {})}
