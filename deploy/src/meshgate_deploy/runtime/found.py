"""Looks for a daprd and an OPA on this host that are new enough to be used as they are."""

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from meshgate_deploy.runtime.errors import RuntimeUnavailable
from meshgate_deploy.runtime.versions import Version, ask

MIN_DAPR = Version(1, 18, 2)
MIN_OPA = Version(1, 21, 3)  # earlier ones accept an unsigned bundle (GHSA-g2pf-6v5v-qcc8)


@dataclass(frozen=True, slots=True)
class Found:
    """A program that lies on this host."""

    path: Path
    version: Version


def find_daprd() -> Found | None:
    """The sidecar: `MESHGATE_DAPR`'s, `~/.dapr/bin`'s, or the one on PATH.

    The control plane is never taken from there: the stores and health ports of Dapr's own are open to
    whoever may connect (docs/adr/0003-runtime-binaries.md).

    Raises:
        RuntimeUnavailable: MESHGATE_DAPR names a folder that does not serve.
    """
    named = os.environ.get("MESHGATE_DAPR")
    if named:
        return _demanded_daprd(_absolute(named))
    on_path = shutil.which("daprd")
    for path in (Path.home() / ".dapr" / "bin" / "daprd", *([Path(on_path).absolute()] if on_path else [])):
        version = _daprd_version(path)
        if version is not None and version >= MIN_DAPR:
            return Found(path, version)
    return None


def find_opa() -> Found | None:
    """OPA: `MESHGATE_OPA`, or the one on PATH.

    Raises:
        RuntimeUnavailable: MESHGATE_OPA names a program that does not serve.
    """
    named = os.environ.get("MESHGATE_OPA")
    candidate = named or shutil.which("opa")
    if not candidate:
        return None
    path = _absolute(candidate)
    version = ask([str(path), "version"], before="Version: ")
    if version is not None and version >= MIN_OPA:
        return Found(path, version)
    if named:
        raise RuntimeUnavailable(
            f"MESHGATE_OPA={named} cannot be used",
            why=f"it calls itself {version or 'nothing readable'}; {MIN_OPA} or newer is needed",
            next_step="name a newer opa, or unset MESHGATE_OPA to have one built",
        )
    return None


def _demanded_daprd(folder: Path) -> Found:
    version = _daprd_version(folder / "daprd")
    if version is not None and version >= MIN_DAPR:
        return Found(folder / "daprd", version)
    raise RuntimeUnavailable(
        f"MESHGATE_DAPR={folder} cannot be used",
        why=f"its daprd calls itself {version or 'nothing readable'}; {MIN_DAPR} or newer is needed"
        if _is_program(folder / "daprd")
        else "it does not hold daprd",
        next_step="name a folder with a newer daprd, or unset MESHGATE_DAPR to have it built",
    )


def _daprd_version(path: Path) -> Version | None:
    return ask([str(path), "--version"]) if _is_program(path) else None


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _absolute(named: str) -> Path:
    path = Path(named)
    with contextlib.suppress(RuntimeError):  # `~name` of a user who does not exist: a path like any other
        path = path.expanduser()
    return path.absolute()
