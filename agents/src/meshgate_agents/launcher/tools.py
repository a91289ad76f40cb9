"""Maps a live tool object, as the child describes it, to exactly one entry of the manifest."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshgate_agents.launcher.settings import ToolEntry


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a tool object has no canonical id; one line that says what to write."""

    text: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a tool that runs in the child itself."""

    result_bytes: int
    deadline_seconds: float


class ToolMap:
    """The frozen map from (module:qualname, digest of constructor fields) to tool ids."""

    def __init__(self, *, entries: Iterable[ToolEntry]) -> None:
        self._exact: dict[tuple[str, str], list[str]] = {}
        self._by_name: dict[str, list[str]] = {}
        self._own: dict[str, Limits] = {}
        for entry in entries:
            self._exact.setdefault((entry.qualname, entry.fields_sha256), []).append(entry.tool)
            self._by_name.setdefault(entry.qualname, []).append(entry.tool)
            if entry.own_limit_bytes is not None:
                self._own[entry.tool] = Limits(entry.own_limit_bytes, entry.own_deadline_seconds)

    def own_limits(self, tool: str | Refusal) -> Limits | None:
        """The bounds of a tool that runs in the child itself; None for every other."""
        return self._own.get(tool) if isinstance(tool, str) else None

    def find(self, *, identity: Mapping[str, str], name: str) -> str | Refusal:
        """The canonical id of a tool object, or the refusal for none and for several."""
        qualname = identity.get("qualname", "")
        found = self._exact.get((qualname, identity.get("fields_sha256", "")), [])
        if len(found) == 1:
            return found[0]
        shown = _one_line(name)
        if found:
            twins = ", ".join(sorted(found))
            return Refusal(
                f"refused: tool {shown!r} is served by {twins}; "
                f"keep {qualname} under one host in meshgate.yaml"
            )
        if identity.get("kind") == "mcp":
            return Refusal(
                f"refused: tool {shown!r} is of an MCP server that no tool host in meshgate.yaml serves; "
                "add: toolhosts: {<host>: {mcp: {command: [<just as the program starts it>]}}}"
            )
        close = sorted(self._by_name.get(qualname, []))
        line = _line(identity)
        if close:
            return Refusal(
                f"refused: tool {shown!r} is built with other values than {', '.join(close)}; "
                f"add under toolhosts.<host>.tools in meshgate.yaml: {line}"
            )
        return Refusal(
            f"refused: tool {shown!r} is not in meshgate.yaml; add under toolhosts.<host>.tools: {line}"
        )


def _line(identity: Mapping[str, str]) -> str:
    qualname = _one_line(identity.get("qualname", "?"))
    if identity.get("kind") == "function":
        return f"- {qualname}"
    return f'- {{class: "{qualname}", config: {{…}}}}'


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
