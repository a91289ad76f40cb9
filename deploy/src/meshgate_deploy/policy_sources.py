"""The project's policies, read once: what is checked and tested is what is packed and put in force."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from meshgate_policies.errors import PolicyInvalid, PolicyUnavailable

from meshgate_deploy.errors import DependencyUnavailable, PolicyProblems, Problem, UsageError


@dataclass(frozen=True, slots=True)
class Sources:
    """A private copy of the folder; an edit of the project's files changes nothing in it.

    Attributes:
        written: the project's folder, which messages name.
    """

    folder: Path
    written: Path

    def named(self, text: str) -> str:
        """A message about the copy, as one about the project's files."""
        return text.replace(str(self.folder), str(self.written))


@contextmanager
def read(written: Path, *, private: Path) -> Iterator[Sources]:
    """Copies the folder for as long as the block lasts.

    Args:
        written: the project's policies.
        private: a folder of ours, outside of them.

    Raises:
        UsageError: one of the two lies inside the other.
        PolicyProblems: in the block: the policies are wrong, with the project's file and line.
        DependencyUnavailable: in the block: OPA cannot be run.
    """
    if private.resolve().is_relative_to(written.resolve()):
        raise UsageError(
            f"the policies in {written} would contain our own files", next_step="name a subfolder"
        )
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=private, prefix=".read-") as folder:
        sources = Sources(Path(folder) / "policies", written)
        if written.is_dir():
            shutil.copytree(written, sources.folder)
        with told(sources):
            yield sources


@contextmanager
def told(sources: Sources | None = None) -> Iterator[None]:
    """The policy layer's failures in the command line's form."""
    named = sources.named if sources else str
    try:
        yield
    except PolicyUnavailable as error:
        raise DependencyUnavailable("OPA did not take the policies", why=named(str(error))) from error
    except PolicyInvalid as error:
        if not error.problems:
            raise UsageError(
                "the policies cannot be activated", why=named(str(error)), next_step="meshgate policy check"
            ) from error
        problems = [Problem(named(p.file), p.line, named(p.message), p.fix) for p in error.problems]
        raise PolicyProblems(problems) from error
