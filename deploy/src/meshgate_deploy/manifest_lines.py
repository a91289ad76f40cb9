"""YAML with line numbers: where each key of a document is written."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from meshgate_deploy.errors import ManifestError, Problem

Key = str | int


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file, its value and its nodes."""

    file: str
    value: Any
    root: yaml.Node

    def follow(self, location: Sequence[Any]) -> tuple[Key, ...]:
        """As much of a validator's location as exists in the file.

        Names of union members are no part of the file and are left out.
        """
        node: yaml.Node | None = self.root
        path: list[Key] = []
        for part in location:
            below = _child(node, part)
            if below is not None:
                path.append(part)
                node = below
        return tuple(path)

    def line(self, path: Sequence[Key]) -> int:
        """The line of the deepest key of the path that exists, from 1."""
        node: yaml.Node = self.root
        line = node.start_mark.line + 1
        for part in path:
            below = _child(node, part)
            if below is None:
                break
            line = _key_line(node, part, below)
            node = below
        return line

    def keys(self, section: str) -> list[str]:
        """The keys of a top-level mapping, doubled ones once."""
        node = _child(self.root, section)
        if not isinstance(node, yaml.MappingNode):
            return []
        return list(dict.fromkeys(str(key.value) for key, _ in node.value))

    def duplicates(self, message: str, fix: str) -> list[Problem]:
        """Keys that are written twice in one mapping, which YAML readers pass over in silence."""
        return [
            Problem(
                self.file, key.start_mark.line + 1, f"{message}: {key.value!r}, first in line {first}", fix
            )
            for key, first in _doubled(self.root)
        ]


def parse(path: Path, text: str) -> Document:
    """Reads one YAML document whose top is a mapping.

    Raises:
        ManifestError: it is no YAML, or no mapping.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else 0
        fix = "valid YAML: check indentation, quotes and colons here"
        raise ManifestError([Problem(str(path), line, str(error.problem), fix)]) from error
    if not isinstance(root, yaml.MappingNode):
        fix = "apiVersion: meshgate/v1"
        raise ManifestError([Problem(str(path), 1, "the manifest is no mapping", fix)])
    return Document(str(path), value, root)


def suggest(name: str, allowed: Sequence[str]) -> str:
    """The key that was probably meant, or all keys that exist there."""
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    return close[0] if close else "one of: " + ", ".join(allowed)


def _child(node: yaml.Node | None, part: object) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        # The last of doubled keys is the one whose value counts.
        return next((value for key, value in reversed(node.value) if key.value == str(part)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        below: yaml.Node = node.value[part]
        return below
    return None


def _key_line(node: yaml.Node, part: Key, below: yaml.Node) -> int:
    if isinstance(node, yaml.MappingNode):
        return next(int(key.start_mark.line) for key, _ in reversed(node.value) if key.value == str(part)) + 1
    return int(below.start_mark.line) + 1


def _doubled(node: yaml.Node) -> Iterator[tuple[yaml.Node, int]]:
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            if key.value in first:
                yield key, first[key.value]
            first.setdefault(key.value, key.start_mark.line + 1)
            yield from _doubled(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _doubled(value)
