"""Which files a Python program needs to be there: its interpreter, its packages, what those point to.

The interpreter is asked where it is, without its packages: nothing that lies in an environment is run here.
"""

import ast
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SECONDS = 20.0
OF_A_PREFIX = ("bin", "lib", "lib64", "libexec", "include", "share", "etc", "pyvenv.cfg")
_ASK = "import json, sys; print(json.dumps([sys.executable, sys.base_prefix, *sys.path]))"


@dataclass(frozen=True, slots=True)
class Interpreter:
    """An interpreter, and what it reads.

    Attributes:
        executable: itself, where what was found on the PATH only leads to it.
    """

    executable: str
    paths: tuple[str, ...]


def look(python: str, env: Mapping[str, str]) -> Interpreter:
    """What a program of this interpreter reads, with this environment."""
    executable, base, *library = _asked(python, env.get("PATH", os.defpath))
    venv = Path(executable).parent.parent
    prefixes = [base, *([str(venv)] if (venv / "pyvenv.cfg").is_file() else [])]
    found = [os.path.join(prefix, name) for prefix in prefixes for name in OF_A_PREFIX]  # noqa: PTH118
    sites = [*venv.glob("lib*/python*/site-packages"), *_user_sites(env)]
    listed = [entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(entry)]  # noqa: PTH117
    pointed = [path for site in (*sites, *map(Path, listed)) for path in _pointed(site)]
    return Interpreter(executable, (*found, *library, *map(str, sites), *listed, *pointed))


@functools.cache
def _asked(python: str, path: str) -> tuple[str, ...]:
    """Executable, prefix and library; guessed from its place where it gives no answer."""
    try:
        done = subprocess.run(
            [python, "-I", "-S", "-c", _ASK], env={"PATH": path}, cwd="/", stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        return tuple(map(str, json.loads(done.stdout)))
    except (OSError, ValueError, subprocess.TimeoutExpired):
        found = shutil.which(python, path=path) or python
        return (found, str(Path(found).resolve().parent.parent))


def _user_sites(env: Mapping[str, str]) -> Iterator[Path]:
    base = env.get("PYTHONUSERBASE") or os.path.join(env.get("HOME", "/nonexistent"), ".local")  # noqa: PTH118
    yield from Path(base).glob("lib/python*/site-packages")


def _pointed(site: Path) -> Iterator[str]:
    """Folders that packages of an editable install lie in, elsewhere."""
    for file in site.glob("*.pth"):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if os.path.isabs(line.strip()):  # noqa: PTH117 - as text
                yield line.strip()
    for file in site.glob("__editable__*_finder.py"):
        yield from _mapping(file)


def _mapping(file: Path) -> Iterator[str]:
    """Of setuptools: a module that has them in one dict."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "MAPPING":
            value = getattr(node, "value", None)
            if isinstance(value, ast.Dict):
                yield from (str(item.value) for item in value.values if isinstance(item, ast.Constant))
