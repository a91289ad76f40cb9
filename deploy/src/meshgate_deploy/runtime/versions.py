"""Reads what a program calls itself, and puts versions in order."""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

ASK_SECONDS = 20  # a cold binary of 80 MB on a busy disk answers within 2 s


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A version; compares by number, and a pre-release comes before its release.

    Two pre-releases of one release compare equal: only minimums are asked here.
    """

    major: int
    minor: int
    patch: int
    released: bool = True
    pre: str = field(default="", compare=False)

    def __str__(self) -> str:
        text = f"{self.major}.{self.minor}.{self.patch}"
        return f"{text}-{self.pre}" if self.pre else text


def read_version(text: str, *, before: str = "") -> Version | None:
    """The version on the first line that is `before` and a version.

    Args:
        text: what the program printed.
        before: what stands before the version on its line, such as `Version: `.

    Returns:
        None where there is none, as for a Dapr that calls itself `edge`.
    """
    pattern = rf"^{re.escape(before)}v?(\d+)\.(\d+)(?:\.(\d+))?(?:-?([A-Za-z][0-9A-Za-z.-]*))?(?=[\s+]|$)"
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        return None
    major, minor, patch, pre = match.groups()
    return Version(int(major), int(minor), int(patch or 0), not pre, pre or "")


def ask(argv: Sequence[str], *, before: str = "") -> Version | None:
    """Runs a program and reads its version; None when it cannot run, hangs, fails or gives none."""
    # Go would otherwise answer for a toolchain that the current folder asks for.
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    try:
        done = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ASK_SECONDS,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return read_version(done.stdout, before=before) if done.returncode == 0 else None
