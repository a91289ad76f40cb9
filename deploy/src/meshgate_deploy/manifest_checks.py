"""Checks of what the manifest names, without importing the user's code."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from meshgate_deploy import manifest_lines
from meshgate_deploy.errors import Problem
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.manifest_lines import Document, suggest
from meshgate_deploy.state import MANIFEST


def check_modules(manifest: Manifest, project: Path) -> list[Problem]:
    """Every module and name that the manifest refers to, when it cannot be found."""
    path = project / MANIFEST
    document = manifest_lines.parse(path, path.read_text(encoding="utf-8"))
    problems = []
    for location, reference in _references(manifest):
        problem = _look_up(document, location, reference, project)
        if problem is not None:
            problems.append(problem)
    policies = project / manifest.policies
    if not policies.is_dir():
        fix = f"policies: <folder>, or make {manifest.policies}/ with `meshgate scan`"
        problems.append(Problem(document.file, document.line(("policies",)), f"no folder {policies}", fix))
    return problems


def _references(manifest: Manifest) -> Iterator[tuple[tuple[str | int, ...], str]]:
    for name, crew in manifest.crews.items():
        yield ("crews", name, "crew"), crew.crew
    for name, host in manifest.toolhosts.items():
        for index, entry in enumerate(host.tools):
            yield ("toolhosts", name, "tools", index), entry if isinstance(entry, str) else entry.reference
    for app, own in manifest.own_tools.items():
        for index, entry in enumerate(own):
            yield (*manifest.place(app), "tools", index), entry if isinstance(entry, str) else entry.reference
    for name, rule in manifest.tools.items():
        if rule.reconcile:
            yield ("tools", name, "reconcile"), rule.reconcile


def _look_up(
    document: Document, location: tuple[str | int, ...], reference: str, project: Path
) -> Problem | None:
    module, _, name = reference.partition(":")
    line = document.line(location)
    if not name:
        fix = f"a file below {project}, as path/to/crew.jsonc"
        missing = not (project / reference).is_file()
        return Problem(document.file, line, f"no crew file {reference!r}", fix) if missing else None
    source = find_module(module, project)
    if source is None:
        fix = f"a module below {project} or an installed one, as package.module:{name}"
        return Problem(document.file, line, f"no module {module!r}", fix)
    names = _top_level_names(source) if source.is_relative_to(project) else None
    first = name.partition(".")[0]
    if names is not None and first not in names:
        near = suggest(first, sorted(names))
        fix = near if near.startswith("one of") else f"{module}:{near}"
        return Problem(document.file, line, f"{source} defines no {first!r}", fix)
    return None


def find_module(module: str, project: Path) -> Path | None:
    """The file or folder of a module, looked for where Python would, without running any of it."""
    if module.endswith(".py"):
        file = project / module
        return file if file.is_file() else None
    parts = module.split(".")
    for root in (project, project / "src", *map(Path, sys.path)):
        base = root.joinpath(*parts)
        file = base.with_name(f"{base.name}.py")
        if file.is_file():
            return file
        if (base / "__init__.py").is_file():
            return base / "__init__.py"
        compiled = sorted(base.parent.glob(f"{base.name}.*.so")) if base.parent.is_dir() else []
        if base.is_dir() or compiled:
            return base
    return None


def _top_level_names(source: Path) -> set[str] | None:
    """Names a module defines at its top; None when that cannot be told from its text."""
    if source.suffix != ".py":
        return None
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return None
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            if any(alias.name == "*" for alias in node.names):
                return None
            names.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
    return names
