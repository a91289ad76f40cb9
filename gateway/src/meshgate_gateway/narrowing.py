"""What a delegation's `narrow` obligation allows below it. Pure.

`{"tools": {ID: {ARGUMENT: {"max": 50, "min": 1, "in": ["EUR"]}}}}`: below the delegation only these tools
may be called, and each bounded argument must be there and within all of its bounds. Only whole arguments can
be bounded, not what lies within one. What cannot be read is no obligation that anybody could keep: it denies.
"""

import json
import math
from collections.abc import Mapping, Sequence

import rfc8785

from meshgate_gateway import calls

NAME = "narrow"  # of the obligation
MAX_NARROW_BYTES = 16_384  # of one, and a run keeps one for each caller above it
_BOUNDS = frozenset({"max", "min", "in"})


class NarrowInvalid(Exception):
    """The obligation is not well-formed."""


def parse(obligation: object) -> Mapping[str, object]:
    """The obligation, once every part of it is known to be understood.

    Raises:
        NarrowInvalid: it has another shape, or is too large.
    """
    if not isinstance(obligation, Mapping) or set(obligation) != {"tools"}:
        raise NarrowInvalid("an object with `tools` and nothing else")
    tools = obligation["tools"]
    if not isinstance(tools, Mapping):
        raise NarrowInvalid("`tools` is an object")
    for tool, arguments in tools.items():
        if not calls.is_tool_id(tool) or not isinstance(arguments, Mapping):
            raise NarrowInvalid("tool ids with an object each")
        for argument, bound in arguments.items():
            if not argument or "." in argument or not _is_bound(bound):
                raise NarrowInvalid("names of arguments, with max, min or in each")
    try:
        size = len(rfc8785.dumps(dict(obligation)))
    except (ValueError, TypeError, RecursionError) as error:
        raise NarrowInvalid("a value that not every reader reads alike") from error
    if size > MAX_NARROW_BYTES:
        raise NarrowInvalid("too large")
    return obligation


def read(text: str) -> tuple[Mapping[str, object], ...]:
    """What a run keeps: one for each caller above that narrowed, the outermost first."""
    return tuple(json.loads(text)) if text else ()


def written(narrows: Sequence[Mapping[str, object]]) -> str:
    """As a run keeps it."""
    return rfc8785.dumps([dict(each) for each in narrows]).decode() if narrows else ""  # type: ignore[arg-type]


def added(text: str, obligations: Mapping[str, object]) -> str:
    """What a run keeps, with the `narrow` of one more verdict: each holds, and equal ones are kept once.

    Args:
        text: as `written` gives it.
        obligations: of a decision, whose `narrow`, if it has one, was found to be well-formed.
    """
    if NAME not in obligations:
        return text
    kept, further = read(text), parse(obligations[NAME])
    new = all(written([each]) != written([further]) for each in kept)
    return written([*kept, further]) if new else text


def holds(narrows: Sequence[Mapping[str, object]], tool: str, arguments: Mapping[str, object]) -> bool:
    """Whether every one of them allows this call."""
    return all(_allows(narrow, tool, arguments) for narrow in narrows)


def _allows(narrow: Mapping[str, object], tool: str, arguments: Mapping[str, object]) -> bool:
    tools = parse(narrow)["tools"]  # out of the store: one that is not well-formed there is no answer at all
    bounds = tools.get(tool) if isinstance(tools, Mapping) else None
    if bounds is None:
        return False
    return all(name in arguments and _within(arguments[name], bound) for name, bound in bounds.items())


def _within(value: object, bound: Mapping[str, object]) -> bool:
    if "in" in bound:
        options = bound["in"]
        if not isinstance(options, list) or _written(value) not in map(_written, options):
            return False
    if "max" in bound and not (_is_number(value) and value <= bound["max"]):  # type: ignore[operator]
        return False
    return "min" not in bound or (_is_number(value) and value >= bound["min"])  # type: ignore[operator]


def _is_bound(bound: object) -> bool:
    if not isinstance(bound, Mapping) or not bound or not _BOUNDS.issuperset(bound):
        return False
    numbers = [bound[name] for name in ("max", "min") if name in bound]
    return all(map(_is_number, numbers)) and isinstance(bound.get("in", []), list)


def _is_number(value: object) -> bool:
    """Of JSON; Python's True is none."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _written(value: object) -> bytes:
    """The same of equal JSON values, and of no others: 1 is 1.0, and neither is true. Slow for large ones."""
    return rfc8785.dumps(value)  # type: ignore[arg-type]
