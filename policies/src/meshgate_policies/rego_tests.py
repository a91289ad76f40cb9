"""`meshgate policy test`: the Rego tests of the library and the project, with what a red one found."""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from meshgate_policies import resources
from meshgate_policies.check import parse_errors
from meshgate_policies.command import Command, run
from meshgate_policies.errors import Problem

_FIX = "mend the rule, or what the test expects of it"
_FAILURES = re.compile(r"^-{10,}\nFAILURES\n-{10,}\n", re.MULTILINE)
_VERDICT = re.compile(r"^(data\.\S+): (?:FAIL|ERROR)\b.*$", re.MULTILINE)
_PLACE = re.compile(r"^\s*(\S+\.rego):(\d+):\n(.*)", re.MULTILINE | re.DOTALL)
_MARKS = re.compile(r"^[\s|]*$")


@dataclass(frozen=True, slots=True)
class TestResult:
    """One Rego test.

    Attributes:
        line: of the expression that failed, where OPA tells, else of the test.
        ours: it belongs to the library, not to the project.
        detail: why it is red: the expression, and under it what its parts were.
    """

    __test__ = False  # not a test of pytest's

    name: str
    file: str
    line: int
    passed: bool
    ours: bool
    detail: str = ""

    def problem(self) -> Problem:
        """The same as something to mend."""
        return Problem(self.file, self.line, f"{self.name} is red: {self.detail or 'it does not hold'}", _FIX)


@dataclass(frozen=True, slots=True)
class TestReport:
    """What came of all tests.

    Attributes:
        problems: why the tests could not be run at all.
    """

    __test__ = False

    results: tuple[TestResult, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def project(self) -> tuple[TestResult, ...]:
        """The project's own."""
        return tuple(result for result in self.results if not result.ours)

    @property
    def red(self) -> tuple[Problem, ...]:
        """Everything that keeps the tests from being green. A project without tests is no problem here."""
        return self.problems + tuple(result.problem() for result in self.results if not result.passed)


def run_tests(opa: Command, folder: Path, *, data: Mapping[str, object] | None = None) -> TestReport:
    """Runs the Rego tests of the library and the project.

    Args:
        opa: how to call OPA.
        folder: the project's policies.
        data: what is `data.mesh.manifest` when the policies are in force.

    Raises:
        PolicyUnavailable: OPA cannot be run.
    """
    with tempfile.TemporaryDirectory(prefix="meshgate-test-") as work:
        manifest = Path(work) / "manifest.json"
        manifest.write_text(json.dumps({"mesh": {"manifest": dict(data or {})}}))
        paths = [str(resources.library()), str(folder), str(manifest)]
        done = run(opa, "test", "--format", "json", *paths)
        try:
            rows = json.loads(done.stdout or "null")
        except ValueError:
            rows = None
        if rows is None:
            return TestReport(problems=tuple(parse_errors(done.stderr or done.stdout, folder)))
        results = tuple(_result(row) for row in rows if not row.get("skip"))
        if any(not result.passed for result in results):
            told = run(opa, "test", "--var-values", *paths).stdout
            results = _with_details(results, told)
    return TestReport(results)


def _result(row: Mapping[str, object]) -> TestResult:
    place = row["location"]
    if not isinstance(place, dict):
        raise TypeError("a test without a place")
    file = str(place.get("file", ""))
    passed = not row.get("fail") and "error" not in row
    ours = Path(file).is_relative_to(resources.library())
    return TestResult(f"{row['package']}.{row['name']}", file, int(place.get("row", 0)), passed, ours)


def _with_details(results: tuple[TestResult, ...], told: str) -> tuple[TestResult, ...]:
    """Adds what OPA's report for people says of each red test; without it the test's own line stands."""
    parts = _FAILURES.split(told, maxsplit=1)
    found = list(_VERDICT.finditer(parts[1])) if len(parts) > 1 else []
    ends = [match.start() for match in found[1:]] + [len(parts[-1])]
    texts = {match[1]: parts[1][match.end() : end] for match, end in zip(found, ends, strict=True)}
    return tuple(_detailed(result, texts.get(result.name, "")) for result in results)


def _detailed(result: TestResult, text: str) -> TestResult:
    place = _PLACE.search(text)
    if result.passed or place is None:
        return result
    told = place[3].partition("\n-----")[0]
    lines = [line.strip(" \t|") for line in told.splitlines() if not _MARKS.match(line)]
    return replace(result, line=int(place[2]), detail="\n".join(dict.fromkeys(lines)))
