"""`meshgate policy check` and `test`: OPA's own strict checks and a few of ours."""

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meshgate_policies import opa as opa_command
from meshgate_policies.bundle import library, user_sources


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend: where, what, and what to write instead."""

    file: str
    line: int
    message: str
    fix: str


_RULES = (
    (
        re.compile(r"^\s*default\s+allow\s*:?=\s*true"),
        "`default allow := true` grants every tool",
        'remove it: grants are `allow contains "host.tool"`',
    ),
    (
        re.compile(r"input\.untrusted|input\[\"untrusted\"\]"),
        "identity and facts must not come from what the caller says of itself",
        "use input.caller, which comes from the certificate",
    ),
)


def check_policies(opa: Sequence[str], folder: Path) -> list[Problem]:
    """Compiles strictly, checks the format, and looks for rules that open the door."""
    problems = [problem for source in user_sources(folder) for problem in _own_rules(source)]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(opa_command.capabilities(opa))
        file.flush()
        done = opa_command.run(
            opa, "check", "--strict", "--format", "json", "--capabilities", file.name,
            str(library()), str(folder),
        )  # fmt: skip
    if done.returncode != 0:
        problems += _compiler_problems(done.stderr or done.stdout)
    formatted = opa_command.run(opa, "fmt", "--list", str(folder))
    problems += [
        Problem(name, 1, "not in the standard format", f"opa fmt --write {name}")
        for name in formatted.stdout.split()
    ]
    return problems


def run_policy_tests(opa: Sequence[str], folder: Path) -> tuple[bool, str]:
    """Runs the Rego tests of the library and the project; returns whether all passed, and the report."""
    done = opa_command.run(opa, "test", "--verbose", str(library()), str(folder))
    return done.returncode == 0, done.stdout + done.stderr


def _own_rules(source: Path) -> list[Problem]:
    lines = source.read_text().splitlines()
    return [
        Problem(str(source), number, message, fix)
        for number, line in enumerate(lines, 1)
        for pattern, message, fix in _RULES
        if pattern.search(line.partition("#")[0])
    ]


def _compiler_problems(text: str) -> list[Problem]:
    try:
        errors = json.loads(text)["errors"]
    except (ValueError, KeyError, TypeError):
        return [Problem("", 0, text.strip(), "see the message")]
    rows = []
    for error in errors:
        place = error.get("location") or {}
        message = error.get("message", "")
        fix = "Rego v1 needs `if` before a body and `contains` for sets"
        if "undefined function" in message:
            fix = "this built-in does not exist or is forbidden in policies"
        rows.append(Problem(place.get("file", ""), place.get("row", 0), message, fix))
    return rows
