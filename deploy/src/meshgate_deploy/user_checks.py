"""What the user of an app must be able to read, and what it must not: looked at as that user, by a child.

The kernel then answers as it will answer the app's programs.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from meshgate_agents.launcher.environment import SITE_FOLDER

from meshgate_deploy import configs, interpreter_paths, isolation, users
from meshgate_deploy.errors import DependencyUnavailable, MeshError, UsageError
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.manifest_checks import find_module
from meshgate_deploy.probes import Check
from meshgate_deploy.program_servers import PYTHON
from meshgate_deploy.state import State
from meshgate_deploy.user_look import CHANGEABLE, READ, READABLE, WRITE, Places, Wrong
from meshgate_deploy.users import User

SECONDS = 60.0
ROOT = "start meshgate as root, with CAP_SETUID, CAP_SETGID, CAP_CHOWN, CAP_KILL; or leave out `user:`"


def require(manifest: Manifest, state: State, envs: Mapping[str, Mapping[str, str]]) -> None:
    """Refuses a mesh whose apps have users that keep nobody apart, or that cannot run.

    Raises:
        UsageError: a user is none, or has other rights than it needs.
        DependencyUnavailable: we cannot become another user.
    """
    for app, user in users.every(manifest).items():
        _require(manifest, state, app, user, envs[app])


def examine(manifest: Manifest, state: State, envs: Mapping[str, Mapping[str, str]]) -> list[Check]:
    """The same per app, for `meshgate doctor`."""
    try:
        found = users.every(manifest)
    except UsageError as error:
        return [_failed("users", error)]
    checks = []
    for app, user in found.items():
        try:
            _require(manifest, state, app, user, envs[app])
        except MeshError as error:
            checks.append(_failed(f"user of {app}", error))
        else:
            told = "reads the project and its interpreter, not .env or .meshgate/"
            checks.append(Check(f"user of {app}", ok=True, detail=f"uid {user[0]}, gid {user[1]}: {told}"))
    return checks


def _failed(name: str, error: MeshError) -> Check:
    return Check(name, ok=False, detail=f"{error.what}; {error.why}".strip("; "), fix=error.next_step)


def _require(manifest: Manifest, state: State, app: str, user: User, env: Mapping[str, str]) -> None:
    place = f"{'.'.join(manifest.place(app, of='user'))}.user"
    if os.geteuid() != 0:
        raise DependencyUnavailable(
            f"{place}: programs of app {app!r} cannot be given a user of their own",
            why=f"meshgate runs as uid {os.geteuid()}, and only root may become another user",
            next_step=ROOT,
        )
    wrong = _looked(user, _places(manifest, state, app, env))
    if isinstance(wrong, Wrong):
        raise UsageError(
            f"{place}: uid {user[0]} {wrong.how} {wrong.path}",
            why=_REASONS[wrong.how],
            next_step=_fix(wrong, user, state),
        )
    if wrong:
        raise DependencyUnavailable(
            f"{place}: programs of app {app!r} cannot be given a user of their own",
            why=wrong,
            next_step=ROOT,
        )


_REASONS = {
    READ: "the app's programs are this user's, and need it",
    WRITE: "the manifest or a variable says that the app's programs write there",
    READABLE: "it holds what is another's: secrets, keys, tokens",
    CHANGEABLE: "the mesh, and what else root runs here, is made of it",
}


def _fix(wrong: Wrong, user: User, state: State) -> str:
    if wrong.how == READ:
        where = "a folder below /root is closed to others: put the project and its Python elsewhere, or "
        how = "x" if Path(wrong.path).is_dir() else "r"
        return f"{where}chmod o+{how} {wrong.path}"
    if wrong.how == WRITE:
        return f"chown {user[0]}:{user[1]} {wrong.path}"
    if wrong.how == READABLE:
        return f"chown root {wrong.path}; chmod {700 if Path(wrong.path).is_dir() else 600} {wrong.path}"
    kept = " A folder for it to write: `writable:`" if Path(wrong.path) == state.project else ""
    return f"chown root {wrong.path}; chmod go-w {wrong.path}{kept}"


def _places(manifest: Manifest, state: State, app: str, env: Mapping[str, str]) -> Places:
    writable = () if app in manifest.programs else manifest.kept_part(app).writable
    storage = (env[isolation.STORAGE],) if env.get(isolation.STORAGE) else ()
    hosts = (manifest.toolhosts[host].tools for host in manifest.toolhosts)
    references = (one if isinstance(one, str) else one.reference for tools in hosts for one in tools)
    modules = (find_module(reference.partition(":")[0], state.project) for reference in references)
    policies = state.project / manifest.policies
    certificates = (env[name] for name in isolation.CERTIFICATES if env.get(name))
    hidden = (path for path in isolation.hidden(manifest, state) if path not in _passed(state))
    return Places(
        read=_there(
            (
                str(state.project), str(SITE_FOLDER / "sitecustomize.py"), *certificates,
                *_interpreter(manifest, app, env), *_own(manifest, state, app),
            )
        ),
        write=(*(str(state.project / one) for one in writable), *storage),
        hidden=tuple(hidden),
        kept=_there(
            (
                str(state.manifest), str(policies), *map(str, policies.rglob("*")), sys.prefix,
                str(SITE_FOLDER.parent), *map(str, filter(None, modules)), *map(str, _passed(state)),
            )
        ),
    )  # fmt: skip


def _passed(state: State) -> tuple[str, ...]:
    """Of the mesh, and passed through by its apps' users."""
    return str(state.apps), str(state.app_sockets)


def _own(manifest: Manifest, state: State, app: str) -> Iterator[str]:
    """Of the project, what the app begins with."""
    if app in manifest.programs:
        yield from (str(state.project / word) for word in manifest.programs[app].run[1:])
        return
    own = [manifest.crews[app].crew] if app in manifest.crews else configs.crews_of(manifest, app).values()
    for reference in own:
        module, _, name = reference.partition(":")
        found = find_module(module, state.project) if name else state.project / reference
        if found is not None:
            yield str(found)


def _there(paths: Iterable[str]) -> tuple[str, ...]:
    """Those that are there, each after where it leads to."""
    both = (one for path in paths for one in (os.path.realpath(path), path))
    return tuple(path for path in dict.fromkeys(both) if Path(path).exists())


def _interpreter(manifest: Manifest, app: str, env: Mapping[str, str]) -> Iterator[str]:
    """What runs the app; of Python also its library and packages, but for those of a user who is not its."""
    word = configs.resolved_command(manifest, app, env)[0]
    found = shutil.which(word, path=env.get("PATH", os.defpath))
    if found is None:
        return
    yield found
    if PYTHON.match(Path(found).name):
        known = interpreter_paths.look(found, env)
        of_home = f"{env.get('HOME', '/nonexistent')}/.local/"
        yield known.executable
        yield from (path for path in known.paths if not path.startswith(of_home))


def _looked(user: User, places: Places) -> Wrong | str | None:
    """The first thing that is wrong; a sentence where we cannot become the user; None when all is well."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-m", "meshgate_deploy.user_look"], cwd="/",
            input=json.dumps({"user": user, "places": asdict(places)}), capture_output=True, text=True,
            timeout=SECONDS, check=True,
        )  # fmt: skip
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", "") or "").strip().splitlines()
        return f"the look as uid {user[0]} failed: {said[-1] if said else error}"
    return Wrong(**found) if isinstance(found, dict) else found
