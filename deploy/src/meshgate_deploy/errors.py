"""What goes wrong on this side, in one form: what happened, why, the next command.

MeshError
├── UsageError            exit 2
│   ├── ManifestError     one or more problems, each with file, line and what to write instead
│   └── PolicyProblems    the same of the Rego policies and their tests
├── Denied                exit 3
├── NotFound              exit 4
├── DependencyUnavailable exit 5: a binary, a process or the mesh itself is not there
├── IntegrityFailed       exit 6: a log or a resource is not what it must be
└── Cancelled             exit 130, as a shell has it: Ctrl-C or SIGTERM came first
"""

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_OURS = 125  # `run --`: a failure of ours, where any other status is the program's own


class MeshError(Exception):
    """A failure told to a person.

    Attributes:
        what: what happened, one line.
        why: the reason, may span lines.
        next_step: the command or edit that helps.
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", next_step: str = "") -> None:
        super().__init__(what)
        self.what, self.why, self.next_step = what, why, next_step

    def as_dict(self) -> dict[str, str | int]:
        """The form that travels over the control socket."""
        return {"what": self.what, "why": self.why, "next": self.next_step, "exit_code": self.exit_code}


class UsageError(MeshError):
    """The command or the manifest is not valid."""

    exit_code = 2


class Denied(MeshError):
    """Policy or the control socket said no."""

    exit_code = 3


class NotFound(MeshError):
    """The named app, run or file does not exist."""

    exit_code = 4


class DependencyUnavailable(MeshError):
    """A part that is needed is not there or not healthy."""

    exit_code = 5


class IntegrityFailed(MeshError):
    """Something is there, but is not what it must be."""

    exit_code = 6


class Cancelled(MeshError):
    """Somebody asked for an end before it was done."""

    exit_code = 130


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend in a file. `line` counts from 1; 0 means the whole file."""

    file: str
    line: int
    message: str
    fix: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message}\n  write instead: {self.fix.removeprefix('write: ')}"


class ManifestError(UsageError):
    """The manifest, or what it names, has problems; all that were found are listed."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        super().__init__(
            f"the manifest has {count}",
            why="\n".join(str(problem) for problem in problems),
            next_step="mend the lines above, then: meshgate doctor",
        )


class PolicyProblems(UsageError):
    """The policies have problems; all that were found are listed."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        super().__init__(
            f"the policies have {count}",
            why="\n".join(str(problem) for problem in problems),
            next_step="mend the lines above, then: meshgate policy check",
        )


_BY_EXIT_CODE: dict[int, type[MeshError]] = {
    kind.exit_code: kind for kind in (UsageError, Denied, NotFound, DependencyUnavailable, IntegrityFailed)
}


def from_dict(value: dict[str, object]) -> MeshError:
    """The error that the supervisor sent, of the kind that its exit code names."""
    kind = _BY_EXIT_CODE.get(int(str(value.get("exit_code", 1))), MeshError)
    return kind(
        str(value.get("what", "")), why=str(value.get("why", "")), next_step=str(value.get("next", ""))
    )
