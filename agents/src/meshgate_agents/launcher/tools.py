"""From what a live tool object is to the one manifest entry it matches. Pure."""

from collections.abc import Mapping, Sequence


class ToolUnknown(Exception):
    """No entry, or two, match; the message says which line to add."""


def match(tools: Sequence[Mapping[str, object]], identity: Mapping[str, object]) -> str:
    """The canonical id of the tool.

    Args:
        tools: rows of `{tool, identity: {qualname, fields_sha256, ...}}`.
        identity: what the child says the object is.

    Raises:
        ToolUnknown: none or two match.
    """
    keys = ("qualname", "fields_sha256")
    found = [str(row["tool"]) for row in tools if _same(row["identity"], identity, keys)]
    if len(found) == 1:
        return found[0]
    qualname = str(identity.get("qualname"))[:200]
    if found:
        raise ToolUnknown(f"{qualname} matches {' and '.join(found)}; keep one of them in meshgate.yaml")
    near = [str(row["tool"]) for row in tools if _same(row["identity"], identity, ("qualname",))]
    if near:
        raise ToolUnknown(
            f"{qualname} is configured otherwise than {near[0]};"
            " give that entry in meshgate.yaml the same `config:`"
        )
    entry = qualname if identity.get("kind") == "function" else f"{{class: '{qualname}'}}"
    raise ToolUnknown(
        f"{qualname} is not in meshgate.yaml; add `- {entry}` to `tools:` of a tool host,"
        " or run `meshgate scan`"
    )


def _same(entry: object, identity: Mapping[str, object], keys: Sequence[str]) -> bool:
    return isinstance(entry, Mapping) and all(entry.get(key) == identity.get(key) for key in keys)
