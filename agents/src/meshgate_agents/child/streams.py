"""The standard streams of a process that was forked: as Python makes them at its start."""

import io
import logging
import os
import sys


def renew() -> None:
    """Makes them anew over the descriptors that the process has now."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, name)
        made = _made(number, f"<{name}>", before)
        setattr(sys, name, made)
        setattr(sys, f"__{name}__", made)
        for reference in logging._handlerList:  # type: ignore[attr-defined]  # noqa: SLF001 - no other way
            handler = reference()
            if getattr(handler, "stream", None) is before:
                handler.stream = made
        if number:
            before.reconfigure(write_through=True)  # whoever kept it writes to the same descriptor


def _made(number: int, name: str, before: io.TextIOWrapper) -> io.TextIOWrapper:
    raw = io.FileIO(number, "r" if number == 0 else "w", closefd=False)
    raw.name = name
    buffer = io.BufferedReader(raw) if number == 0 else io.BufferedWriter(raw)
    made = io.TextIOWrapper(
        buffer,
        encoding=before.encoding,
        errors=before.errors,
        newline="\n",
        line_buffering=number == 2 or os.isatty(number),  # noqa: PLR2004 - stderr
    )
    made.mode = "r" if number == 0 else "w"  # type: ignore[misc]
    return made
