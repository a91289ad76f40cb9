"""Failures of the policy layer. A denial is a value, never one of these.

PolicyError
├── PolicyInvalid       policies that cannot be activated; carries the problems
└── PolicyUnavailable   no verdict: engine away, slow, or refusing our token
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend.

    Attributes:
        file: path of the source, or "" where OPA names none.
        line: from 1; 0 where there is none.
        message: what is wrong.
        fix: what to write instead.
    """

    file: str
    line: int
    message: str
    fix: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file else ""
        return f"{place}{self.message}; {self.fix}"


class PolicyError(Exception):
    """Root of the tree."""


class PolicyInvalid(PolicyError):
    """The policies cannot be activated.

    Attributes:
        problems: what to mend, where the sources are at fault.
    """

    def __init__(self, message: str, *, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__("\n".join([message, *map(str, problems)]))
        self.problems = problems


class PolicyUnavailable(PolicyError):
    """The engine gave no answer. Never a denial: nothing was evaluated."""
