"""Keeps binaries in the user cache, each in a folder named by what it was made from.

A folder is filled elsewhere and renamed into place, so it is whole or absent, and it holds the
binary's digest, so a damaged one is told from a good one. Digests guard against accidents, not
against whoever may write to the cache: that person is the user.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meshgate_deploy.runtime.errors import RuntimeUnavailable
from meshgate_deploy.runtime.progress import REPORT_SECONDS, Progress

_POLL_SECONDS = 0.2


def folder() -> Path:
    """`$XDG_CACHE_HOME/meshgate/runtime`; a relative one is ignored, as its specification asks."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "meshgate" / "runtime"


def is_intact(binary: Path) -> bool:
    """Whether the file is the one whose digest was written when it was made (60 ms for 70 MB)."""
    try:
        return _note(binary).read_bytes().strip() == _digest(binary).encode() and os.access(binary, os.X_OK)
    except OSError:  # not there, or not ours to read: made anew, or explained when that fails
        return False


@contextmanager
def locked(name: str, *, progress: Progress) -> Iterator[None]:
    """Lets one process at a time make `name`; the kernel frees the lock of one that dies.

    Raises:
        RuntimeUnavailable: the cache cannot be written.
    """
    with _writable():
        folder().mkdir(parents=True, exist_ok=True)
        file = (folder() / f"{name}.lock").open("w")
    with file:
        told = None
        while not _try_lock(file.fileno()):
            now = time.monotonic()
            if told is None or now - told >= 3 * REPORT_SECONDS:
                progress(f"{name}: another process is making it; waiting")
                told = now
            time.sleep(_POLL_SECONDS)
        yield


@contextmanager
def workspace(name: str) -> Iterator[Path]:
    """A folder to fill for `publish`, gone afterwards. Call with `name` locked.

    Whatever a killed maker left is removed first: the lock says that nobody works there.
    """
    with _writable():
        for left in folder().glob(f"{name}.*.part"):
            # A killed maker's compiler may still write there; what stays goes next time.
            shutil.rmtree(left, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix=f"{name}.", suffix=".part", dir=folder()))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def publish(work: Path, name: str, *, binary: str) -> Path:
    """Moves a filled folder to its place, on disk before it is seen. Call with `name` locked.

    Args:
        work: the folder, from `workspace`.
        name: the name it gets in the cache.
        binary: path of the binary in it.

    Returns:
        The binary's path.
    """
    with _writable():
        made, target = work / binary, folder() / name
        made.chmod(0o755)
        _note(made).write_text(_digest(made) + "\n")
        for path in (made, _note(made), made.parent, work):
            _sync(path)
        if target.exists():  # a damaged one: who runs it keeps its open file
            shutil.rmtree(target)
        work.rename(target)
        _sync(target.parent)
    return target / binary


def _note(binary: Path) -> Path:
    return binary.with_name(f"{binary.name}.sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _writable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RuntimeUnavailable(
            f"the cache {folder()} cannot be written",
            why=str(error),
            next_step="free some space there, or set XDG_CACHE_HOME to a folder that can be written",
        ) from error
