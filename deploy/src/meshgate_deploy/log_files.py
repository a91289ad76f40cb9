"""Bounds the log files of a mesh: each has at most LIMIT_BYTES, and one older file beside it as large.

What writes a log holds it open for appending, so it goes on at the new end when the file is cut: nobody has
to be told. What is written between the copy and the cut, a moment, is lost.
"""

import contextlib
import os
from pathlib import Path

LIMIT_BYTES = 16_777_216
OLDER = ".1"


def bound(folder: Path, *, limit_bytes: int = LIMIT_BYTES) -> list[str]:
    """Cuts every log that is too long; returns their names."""
    cut = []
    for path in folder.glob("*.log"):
        with contextlib.suppress(OSError):  # it went away, or it cannot be cut now: the next look tries again
            if path.stat().st_size > limit_bytes:
                _cut(path, limit_bytes)
                cut.append(path.name)
    return cut


def _cut(path: Path, limit_bytes: int) -> None:
    """Keeps the end of it in the older file. A full disk loses the older file, never the bound."""
    older = path.with_name(path.name + OLDER)
    with contextlib.suppress(OSError), path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - limit_bytes))
        with os.fdopen(os.open(older, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as kept:
            kept.write(log.read(limit_bytes))  # what comes meanwhile is not waited for
    os.truncate(path, 0)
