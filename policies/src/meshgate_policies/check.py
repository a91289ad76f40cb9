"""`meshgate policy check`: OPA's own strict checks, against our schema, and a few of ours."""

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from meshgate_policies import capabilities, resources
from meshgate_policies.command import Command, run
from meshgate_policies.errors import Problem
from meshgate_policies.lint import Known, lint

__all__ = ["Known", "Problem", "check_policies", "deployed_sources", "find_mistakes", "parse_errors"]

TEST_SUFFIX = "_test.rego"
_MAX_ERRORS = "100"
_LOAD_ERROR = re.compile(r"(\S+\.rego):(\d+): (?:\w+_error: )?(.+)")

# OPA's message, and what to write instead. The first that fits is taken.
_FIXES: tuple[tuple[str, str], ...] = (
    (r"undefined function time\.now_ns", "use input.time, which the record keeps"),
    (
        r"undefined function (http\.send|net\.lookup_ip_addr|opa\.runtime)",
        "a policy reaches nothing outside: put the fact into a data.json below `mesh`",
    ),
    (r"undefined function", "it does not exist or is forbidden; policies/capabilities.json lists all"),
    (r"undefined ref: input", "input has no such part; see policies/schemas/input.json"),
    (r"undefined ref", "nothing defines this; check the spelling"),
    (r"match error", "the two sides can never be equal; for `input.run == null` write `not input.run.id`"),
    (r"`if` keyword is required", 'write: allow contains "host.tool" if { … }'),
    (r"`contains` keyword is required", 'write: allow contains "host.tool"'),
    (r"unused", "remove it, or name it _"),
    (r"is unsafe", "give it a value first, for example with `some x in …`"),
    (r"package expected", "begin the file with: package mesh.agents.<app>"),
    (r"deprecated", "use the function that replaced it"),
    (r"multiple default rules|conflicting rules|conflict", "keep one of the definitions"),
)
_GENERAL_FIX = 'a rule looks like: allow contains "host.tool" if { input.call.args.amount <= 50 }'


def deployed_sources(folder: Path) -> list[Path]:
    """The Rego files without their tests, sorted."""
    return [path for path in _sources(folder) if not path.name.endswith(TEST_SUFFIX)]


def check_policies(opa: Command, folder: Path, *, known: Known | None = None) -> list[Problem]:
    """Everything `find_mistakes` finds, and files that are not in the standard format.

    Args:
        opa: how to call OPA.
        folder: the project's policies.
        known: apps and tools of the manifest, where there is one.

    Raises:
        PolicyUnavailable: OPA cannot be run.
    """
    problems = find_mistakes(opa, folder, known=known)
    broken = {problem.file for problem in problems}
    listed = run(opa, "fmt", "--list", str(folder)).stdout.splitlines()
    return problems + [
        Problem(name, 1, "not in the standard format", f"run: opa fmt --write {name}")
        for name in listed
        if name not in broken
    ]


def find_mistakes(opa: Command, folder: Path, *, known: Known | None = None) -> list[Problem]:
    """Compiles strictly against the input's schema, and looks for rules that open the door.

    Does not know the arguments of each tool: a misspelt `input.call.args.amout` is not found.
    """
    problems = []
    for source in _sources(folder):
        parsed = run(opa, "parse", "--format", "json", "--json-include", "locations", str(source))
        if parsed.returncode == 0:  # what does not parse is reported by the compiler
            is_test = source.name.endswith(TEST_SUFFIX)
            tree = json.loads(parsed.stdout)
            problems += lint(tree, file=str(source), is_test=is_test, known=known or Known())
    compiled = _compile(opa, folder)
    return sorted(set(problems + compiled), key=lambda p: (p.file, p.line, p.message))


def _sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.rego"))


def _compile(opa: Command, folder: Path) -> list[Problem]:
    # Files and not the folder: a data file of another tool in it is none of our business.
    library = deployed_sources(resources.library() / "decision")
    sources = [*library, *_sources(folder)]
    with tempfile.TemporaryDirectory(prefix="meshgate-check-") as work:
        allowed = capabilities.write_effective(opa, Path(work))
        done = run(
            opa, "check", "--strict", "--format", "json", "--max-errors", _MAX_ERRORS,
            "--capabilities", str(allowed), "--schema", str(resources.input_schema()), *map(str, sources),
        )  # fmt: skip
    return [] if done.returncode == 0 else _problems(done.stderr or done.stdout, sources)


def parse_errors(text: str, folder: Path) -> list[Problem]:
    """The problems in what OPA writes when it cannot load its sources: `file:line: code: message`."""
    found = [
        Problem(_file(match[1], _sources(folder)), int(match[2]), match[3], _fix(match[3]))
        for match in _LOAD_ERROR.finditer(text)
    ]
    return found or [Problem("", 0, text.strip(), _fix(text))]


def _problems(text: str, sources: Sequence[Path]) -> list[Problem]:
    start = text.find("{")
    try:
        errors = json.loads(text[max(start, 0) :])["errors"]
    except (ValueError, KeyError, TypeError):
        return [Problem("", 0, text.strip(), _fix(text))]
    return [
        Problem(_file(place.get("file", ""), sources), place.get("row", 0), message, _fix(message, error))
        for error in errors
        for place, message in [(error.get("location") or {}, str(error.get("message", "")))]
    ]


def _file(name: str, sources: Sequence[Path]) -> str:
    """OPA drops the leading slash of some paths."""
    return next((str(path) for path in sources if str(path).lstrip("/") == name.lstrip("/")), name)


def _fix(message: str, error: dict[str, object] | None = None) -> str:
    fix = next((fix for pattern, fix in _FIXES if re.search(pattern, message)), _GENERAL_FIX)
    details = (error or {}).get("details")
    names = details.get("oneOf") if isinstance(details, dict) else None
    return f"{fix}: one of {', '.join(map(str, names))}" if names else fix
