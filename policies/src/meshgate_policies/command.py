"""One-shot OPA commands."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from meshgate_policies.errors import PolicyUnavailable

COMMAND_SECONDS = 60  # a check of 1000 packages takes 2 s

Command = Path | str | Sequence[str]
"""How OPA is called: its path, or an argument list to which ours are added."""


def argument_list(opa: Command) -> list[str]:
    """The start of every command line."""
    return [str(opa)] if isinstance(opa, Path | str) else list(opa)


def run(opa: Command, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs one OPA command; the caller judges its status.

    Raises:
        PolicyUnavailable: OPA cannot be started, or does not end.
    """
    # OPA reads flags from OPA_* variables; a check must not depend on the shell it runs in.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPA_")}
    try:
        return subprocess.run(
            [*argument_list(opa), *arguments], check=False, capture_output=True, text=True,
            timeout=COMMAND_SECONDS, cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PolicyUnavailable(f"opa {arguments[0]} did not run: {error}") from error
