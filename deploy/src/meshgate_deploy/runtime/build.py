"""Builds one of our Go modules into the cache, once."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from meshgate_deploy.runtime import cache
from meshgate_deploy.runtime.errors import RuntimeUnavailable
from meshgate_deploy.runtime.modules import GO_FLAGS, Module, key, source
from meshgate_deploy.runtime.progress import REPORT_SECONDS, Progress
from meshgate_deploy.runtime.toolchain import find_go
from meshgate_deploy.runtime.versions import ask

_SHOWN_LINES = 20  # of what Go said, in an error
# Of the user's settings these would give another binary than the key says, or none.
_NOT_PASSED = ("GOOS", "GOARCH", "GOROOT", "GOEXPERIMENT", "GOBIN")


def cached_path(module: Module) -> Path:
    """Where the module's binary lies once it is built."""
    return cache.folder() / key(module) / module.binary


def built(module: Module, *, progress: Progress) -> Path:
    """The module's binary: from the cache, else built. Two callers at once build it once.

    Raises:
        RuntimeUnavailable: it cannot be built, or the result calls itself something else.
    """
    target = cached_path(module)
    if cache.is_intact(target):
        return target
    with cache.locked(key(module), progress=progress):
        # The other builder may have made it meanwhile.
        return target if cache.is_intact(target) else _build(module, progress)


def _build(module: Module, progress: Progress) -> Path:
    go = str(find_go(progress=progress))
    began = time.monotonic()
    progress(f"{module.label}: building from Go modules (once; some minutes)")
    with cache.workspace(key(module)) as work:
        made, listing = work / module.binary, work / "packages"
        _run([go, "list", "-deps", "."], module, _Fetching(module, progress), output=listing)
        packages = len(listing.read_text().splitlines())
        listing.unlink()
        command = [go, "build", "-v", "-ldflags", module.linker_flags, "-o", str(made), "."]
        _run(command, module, _Compiling(module, progress, packages))
        _check_stamp(module, made)
        target = cache.publish(work, key(module), binary=module.binary)
    progress(f"{module.label}: built in {time.monotonic() - began:.0f} s")
    return target


def _check_stamp(module: Module, made: Path) -> None:
    version = ask([str(made), module.version_argument], before=module.version_before)
    if version != module.version:
        raise RuntimeUnavailable(
            f"{module.binary} was built, but it calls itself {version or 'nothing readable'}",
            why=f"{module.version} was expected; the stamp or a pinned module is wrong",
            next_step="report this as a fault of meshgate",
        )


def _environment() -> dict[str, str]:
    """The user's environment with the settings that decide what is built made ours."""
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED}
    ours = {"GOFLAGS": GO_FLAGS, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOWORK": "off"}
    return kept | ours | {"GO111MODULE": "on"}


class _Fetching:
    """Tells how many modules were downloaded."""

    def __init__(self, module: Module, progress: Progress) -> None:
        self._label, self._progress = module.label, progress

    def __call__(self, lines: Sequence[str], seconds: float) -> None:
        count = sum(line.startswith("go: downloading ") for line in lines)
        self._progress(f"{self._label}: {count} Go modules fetched, {seconds:.0f} s")


class _Compiling:
    """Tells how many packages were compiled; Go's own build cache may have many already."""

    def __init__(self, module: Module, progress: Progress, packages: int) -> None:
        self._label, self._progress, self._packages = module.label, progress, packages

    def __call__(self, lines: Sequence[str], seconds: float) -> None:
        count = sum(not line.startswith(("go: ", "#")) for line in lines)
        of = f"{count} of at most {self._packages} packages"
        self._progress(f"{self._label}: compiling and linking, {of}, {seconds:.0f} s")


def _run(
    command: Sequence[str],
    module: Module,
    tell: Callable[[Sequence[str], float], None],
    *,
    output: Path = Path(os.devnull),
) -> None:
    """Runs Go in the module's folder, telling about it from time to time.

    It gets a process group of its own, which ends with this call, also when that is interrupted.
    """
    lines: list[str] = []
    began = time.monotonic()
    with (
        output.open("wb") as file,
        subprocess.Popen(
            command,
            cwd=source(module),
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,
        ) as process,
    ):
        reader = threading.Thread(target=_read, args=(process.stderr, lines), daemon=True)
        reader.start()
        try:
            while not _ended(process):
                tell(tuple(lines), time.monotonic() - began)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            reader.join()
    if process.returncode != 0:
        raise RuntimeUnavailable(
            f"building {module.label} failed (go {command[1]} ended with {process.returncode})",
            why="\n".join(lines[-_SHOWN_LINES:]),
            next_step=(
                "with network access try again, "
                "or copy the cache of a machine of the same kind where it worked"
            ),
        )


def _ended(process: subprocess.Popen[str]) -> bool:
    try:
        process.wait(timeout=REPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _read(stream: IO[str] | None, lines: list[str]) -> None:
    for line in stream or ():
        lines.append(line.rstrip("\n"))  # noqa: PERF401 - the teller counts them while it grows
