"""meshgate and all that it needs, installed where every user of this machine may read it.

The tests' own environment may lie below a folder that is closed to others, such as root's home, and so may
the clone. Files are linked where that makes no difference, and copied where it would.
"""

import os
import shutil
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
LEFT_OUT = ("test", "tests", "idlelib", "tkinter", "site-packages", "dist-packages", "turtledemo", "config-*")
OPEN = 0o755


@contextmanager
def folder() -> Iterator[Path]:
    """A new one that others may read: pytest's own are closed."""
    made = Path(tempfile.mkdtemp(prefix="meshgate-users-", dir="/tmp"))
    made.chmod(OPEN)
    try:
        yield made.resolve()
    finally:
        shutil.rmtree(made, ignore_errors=True)


def python(place: Path) -> Path:
    """An interpreter of this version with its library and no packages: a copy of the one that runs here."""
    base = place / "base"
    library, shared = Path(sysconfig.get_paths()["stdlib"]), Path(sysconfig.get_config_var("LIBDIR") or "/")
    _tree(library, base / "lib" / VERSION, LEFT_OUT)
    for one in shared.glob(f"lib{VERSION}*.so*"):
        shutil.copy2(one, base / "lib" / one.name)
    (base / "bin").mkdir()
    made = base / "bin" / VERSION
    made.write_bytes(_relocated(Path(sys.executable).resolve().read_bytes(), shared))
    made.chmod(OPEN)
    return made


def environment(place: Path) -> Path:
    """The interpreter of an environment with all packages of this one, and meshgate as a wheel has it."""
    base, venv = python(place), place / "venv"
    site = venv / "lib" / VERSION / "site-packages"
    _tree(Path(sysconfig.get_paths()["purelib"]), site, ("_editable_impl_*",))
    hatch = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    for package in hatch["wheel"]["packages"]:
        _tree(REPOSITORY / package, site / Path(package).name)
    for source, target in hatch["wheel"]["force-include"].items():
        _tree(REPOSITORY / source, site / target)
    (venv / "bin").mkdir()
    (venv / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    for name in ("python", "python3", VERSION):
        (venv / "bin" / name).symlink_to(base)
    return venv / "bin" / "python"


def _relocated(program: bytes, shared: Path) -> bytes:
    """It finds its shared library beside itself; the string that says so may only become shorter."""
    old, new = os.fsencode(shared) + b"\0", b"$ORIGIN/../lib\0"
    return program.replace(old, new.ljust(len(old), b"\0")) if len(new) <= len(old) else program


def _tree(source: Path, target: Path, left_out: tuple[str, ...] = ()) -> None:
    """A file, or a folder with what is in it, readable for all."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        _file(str(source), str(target))
        return
    shutil.copytree(
        source, target, copy_function=_file, ignore=shutil.ignore_patterns(*left_out), dirs_exist_ok=True
    )
    for path in (target, *(one for one in target.rglob("*") if one.is_dir())):
        path.chmod(OPEN)


def _file(source: str, target: str) -> None:
    """A link has the mode of what it links to, so that only what all may read is linked."""
    mode = Path(source).stat().st_mode
    if mode & 0o004:
        try:
            os.link(os.path.realpath(source), target)
        except OSError:  # another file system
            shutil.copy2(source, target)
        return
    shutil.copy2(source, target)
    Path(target).chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))
