"""Looks for a Dapr and an OPA on this host that are new enough to be used as they are."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from meshgate_deploy.runtime.errors import RuntimeUnavailable
from meshgate_deploy.runtime.versions import Version, ask

MIN_DAPR = Version(1, 18, 2)
MIN_OPA = Version(1, 21, 3)  # earlier ones accept an unsigned bundle (GHSA-g2pf-6v5v-qcc8)
DAPR_PROGRAMS = ("daprd", "sentry", "placement", "scheduler")


@dataclass(frozen=True, slots=True)
class Found:
    """What lies on this host: a program (OPA) or the folder of several (Dapr)."""

    path: Path
    version: Version


def find_dapr() -> Found | None:
    """The folder of a whole Dapr: `MESHGATE_DAPR`, `~/.dapr/bin`, or where PATH has daprd.

    Only daprd can say its version (`sentry --version` does not exist); the other three are taken
    to be of the same release, because they lie in the same folder. A folder without a control
    plane, as a container-based `dapr init` leaves it, is not used.

    Raises:
        RuntimeUnavailable: MESHGATE_DAPR names a folder that does not serve.
    """
    named = os.environ.get("MESHGATE_DAPR")
    if named:
        return _demanded_dapr(Path(named).expanduser().absolute())
    on_path = shutil.which("daprd")
    folders = [Path.home() / ".dapr" / "bin", *([Path(on_path).absolute().parent] if on_path else [])]
    for folder in folders:
        version = _dapr_version(folder)
        if version is not None and version >= MIN_DAPR:
            return Found(folder, version)
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
    path = Path(candidate).expanduser().absolute()
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


def _demanded_dapr(folder: Path) -> Found:
    version = _dapr_version(folder)
    if version is not None and version >= MIN_DAPR:
        return Found(folder, version)
    absent = [name for name in DAPR_PROGRAMS if not os.access(folder / name, os.X_OK)]
    raise RuntimeUnavailable(
        f"MESHGATE_DAPR={folder} cannot be used",
        why=f"it does not hold {', '.join(absent)}"
        if absent
        else f"its daprd calls itself {version or 'nothing readable'}; {MIN_DAPR} or newer is needed",
        next_step="name a folder with all of Dapr, or unset MESHGATE_DAPR to have it built",
    )


def _dapr_version(folder: Path) -> Version | None:
    """The version of a folder that holds all four programs, else None."""
    if not all(os.access(folder / name, os.X_OK) for name in DAPR_PROGRAMS):
        return None
    return ask([str(folder / "daprd"), "--version"])
