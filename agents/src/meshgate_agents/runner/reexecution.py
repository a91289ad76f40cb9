"""How this very program is started once more, and where it belongs: the command, the project, our CLI."""

import builtins
import multiprocessing
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from meshgate_agents.runner.errors import CannotRun

MANIFEST = "meshgate.yaml"
WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")  # interpreter options that take the next word
CUT_OFF = frozenset("IES")  # these keep an interpreter from loading what brokers its tools
SCRIPT_NEXT = "put the code into a file and run that"


def command(argv: Sequence[str]) -> list[str]:
    """This program's command line, with the interpreter that runs it.

    Args:
        argv: `sys.orig_argv`.

    Raises:
        CannotRun: interactive, from standard input, a notebook, a worker process, or cut off.
    """
    if hasattr(sys, "ps1") or hasattr(builtins, "__IPYTHON__"):
        raise CannotRun(
            "a session or notebook cannot be started once more as a program", next_step=SCRIPT_NEXT
        )
    if multiprocessing.parent_process() is not None:
        raise CannotRun(
            "this is a worker process, not the program", next_step="call run() in the main process"
        )
    _check_options(argv[1:])
    return [sys.executable, *argv[1:]]


def _check_options(words: Sequence[str]) -> None:
    rest = iter(words)
    for word in rest:
        if word == "-":
            break
        if not word.startswith("-"):
            return
        if word in WITH_VALUE:
            next(rest, None)
            continue
        letters = "" if word.startswith("--") or word[:2] in WITH_VALUE else word[1:]
        for letter in letters:
            if letter in "cm":
                return
            if letter == "i":
                raise CannotRun("python -i goes on after the program's end", next_step="leave out -i")
            if letter in CUT_OFF:
                raise CannotRun(f"python -{letter} cannot be brokered", next_step=f"leave out -{letter}")
    raise CannotRun("there is no file to start once more", next_step=SCRIPT_NEXT)


def project(starts: Sequence[Path]) -> Path:
    """The nearest folder at or above one of these that holds a manifest.

    Raises:
        CannotRun: there is none.
    """
    for start in starts:
        for folder in (start.resolve(), *start.resolve().parents):
            if (folder / MANIFEST).is_file():
                return folder
    raise CannotRun(
        f"no {MANIFEST} in {starts[0]} or in any folder above",
        next_step="meshgate scan, in your project's folder",
    )


def check_app(folder: Path, name: str) -> None:
    """Whether the manifest knows the app.

    Raises:
        CannotRun: it does not, or it cannot be read.
    """
    import yaml

    try:
        raw = yaml.safe_load((folder / MANIFEST).read_text(encoding="utf-8"))
        apps = [*(raw.get("crews") or {}), *(raw.get("programs") or {})]
    except (OSError, yaml.YAMLError, AttributeError, TypeError) as error:
        raise CannotRun(
            f"{folder / MANIFEST} cannot be read: {error}", next_step="meshgate doctor"
        ) from error
    if name not in apps:
        known = ", ".join(map(str, apps)) or "none"
        raise CannotRun(
            f"no crew or program {name!r} in {folder / MANIFEST}",
            next_step=f"add it under crews or programs, or use one of: {known}",
        )


def meshgate() -> str:
    """Our command line: beside the interpreter, else on PATH.

    Raises:
        CannotRun: it is in neither place.
    """
    beside = Path(sys.executable).with_name("meshgate")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("meshgate")
    if found is None:
        raise CannotRun("the command meshgate is not installed", next_step="install meshgate here")
    return found
