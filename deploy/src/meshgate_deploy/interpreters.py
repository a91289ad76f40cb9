"""What the workers start: is it there, does it run, and does its Python have CrewAI?

Asked is the interpreter itself, in the app's own environment. That of `meshgate doctor` says nothing of it.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from meshgate_deploy import configs
from meshgate_deploy.environment import Environment
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.probes import Check
from meshgate_deploy.state import State

SECONDS = 20.0  # for an interpreter to start, also on a slow disk
TESTED = ((1, 15), (1, 16))  # of CrewAI: from, below
_PYTHON = re.compile(r"python[0-9.]*\Z")
_LOOK = (
    "from importlib import metadata, util\n"
    "print('crewai ' + metadata.version('crewai') if util.find_spec('crewai') else 'no crewai')"
)
_FIX = "activate the environment that has crewai 1.15, then `meshgate up`; or `uv run meshgate up`"


def examine(manifest: Manifest, state: State, *, up: bool) -> list[Check]:
    """A check per app that runs agent code.

    Args:
        manifest: names them.
        state: where a mesh keeps what its workers were started with.
        up: there is a mesh, so that its `PATH` counts and not that of this shell.
    """
    environment = Environment(project=state.project)
    checks = []
    for app in manifest.runners:
        env = environment.for_agent(manifest, app, {})
        command: Sequence[str] = configs.own_command(manifest, app, env)
        if up:
            command, env = _begun_with(state, app) or (command, env)
        secrets = manifest.runner(app).secrets
        shown = {name: value for name, value in env.items() if name not in secrets}
        checks.append(
            _check(app, command[0], shown, state.project, needs_crewai=app not in manifest.programs)
        )
    return checks


def _begun_with(state: State, app: str) -> tuple[list[str], dict[str, str]] | None:
    """What the app's worker starts, from its configuration."""
    path = configs.config_file(state, app)
    if not path.exists():
        return None
    config = json.loads(path.read_bytes())
    return list(config["command"]), dict(config["env"])


def _check(app: str, word: str, env: Mapping[str, str], project: Path, *, needs_crewai: bool) -> Check:
    name = f"what {app} starts"
    found = shutil.which(str(project / word) if "/" in word else word, path=env.get("PATH", ""))
    if found is None:
        return Check(name, ok=False, detail=f"{word!r} is not on the PATH of `meshgate up`", fix=_FIX)
    if not _PYTHON.match(Path(found).name):
        return Check(name, ok=True, detail=f"{found}; which Python it takes is its own affair")
    said, works = _asked(found, env, project)
    if not works:
        return Check(name, ok=False, detail=f"{found} does not run: {said}", fix=_FIX)
    fits = said == "no crewai" or TESTED[0] <= _numbers(said) < TESTED[1]
    return Check(name, fits and (said != "no crewai" or not needs_crewai), f"{found}: {said}", _FIX)


def _asked(python: str, env: Mapping[str, str], project: Path) -> tuple[str, bool]:
    try:
        done = subprocess.run(
            [python, "-c", _LOOK], env=dict(env), cwd=project, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error), False
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return said[-1] if said else f"status {done.returncode}", done.returncode == 0


def _numbers(said: str) -> tuple[int, ...]:
    version = said.removeprefix("crewai ").split(".")
    return tuple(int(part) for part in version[:2] if part.isdigit())
