"""What a command line gives: values, files of values, ids of runs."""

import json
import re
from pathlib import Path

import typer

from meshgate_deploy.errors import NotFound, UsageError

MAX_INPUT_BYTES = 1_048_576  # the gateway takes no more, of an input
MAX_RESULT_BYTES = 3_145_728  # and of a result
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def value(text: str, option: str, *, limit_bytes: int) -> bytes:
    """The value of an option: itself, or what its @FILE holds.

    Raises:
        NotFound: the file cannot be read.
        UsageError: the file is empty, or there is more than the gateway takes.
    """
    data = text.encode("utf-8", "surrogateescape")
    if text.startswith("@"):
        try:
            data = Path(text[1:]).read_bytes()
        except OSError as error:
            raise NotFound(f"the file of {option} cannot be read", why=str(error)) from error
        if not data:
            raise UsageError(f"the file of {option} is empty", why=text[1:], next_step=f"{option} @FILE")
    if len(data) > limit_bytes:
        raise UsageError(
            f"{option} is too large: {len(data)} bytes",
            why=f"the gateway takes {limit_bytes}",
            next_step="give a file's path or an address in place of what it holds",
        )
    return data


def check_json(data: bytes, option: str) -> None:
    """A first look. How strictly it is read is the gateway's affair.

    Raises:
        UsageError: no JSON.
    """
    try:
        json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{option} is no JSON", why=str(error)) from error


def run_id(text: str | None) -> str | None:
    """A callback of `--run-id`: the gateway's form of an id, or none at all.

    Raises:
        typer.BadParameter: another form; an empty one would silently be a new run.
    """
    if text is not None and not _RUN_ID.fullmatch(text):
        raise typer.BadParameter(
            f"{text!r} is no run id: 1 to 64 of A-Z a-z 0-9 . _ -, a letter or digit first"
        )
    return text
