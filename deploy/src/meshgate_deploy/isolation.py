"""What each app's programs may do on their host: rules from the manifest, and what is in force here.

What a crew runs by itself gets what it needs and nothing else. A program of the manifest, and any other
command that is run as an app, is of a kind that we know nothing of: it may do what its user may, but for what
is the mesh's.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from meshgate_agents.child import confine
from meshgate_agents.child.confine import Rules
from meshgate_agents.launcher.environment import SITE_FOLDER

from meshgate_deploy import users
from meshgate_deploy.errors import DependencyUnavailable, UsageError
from meshgate_deploy.interpreter_paths import Interpreter
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.probes import Check
from meshgate_deploy.state import State

SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/nix/store", "/gnu/store",
    "/proc", "/sys", "/run/systemd/resolve", "/run/resolvconf", "/run/current-system",
)  # fmt: skip
# Root alone reads these, and an agent of root's is root without its capabilities.
OF_ROOT = (
    "/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/ssh", "/etc/ssl/private",
    "/etc/sudoers", "/etc/sudoers.d",
)  # fmt: skip
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
ADDRESSES = ("_BASE_URL", "_API_BASE", "_ENDPOINT", "_PROXY")
SCHEMES = {"http": 80, "https": 443}
HTTPS = 443
SAMPLES = (".example", ".sample", ".template")  # of an `.env`: without values
STORAGE = "CREWAI_STORAGE_DIR"
NEXT = (
    "Linux 6.7 or later with Landlock enabled (lsm=landlock,…), or write in meshgate.yaml `user:` for each "
    "of these apps, or `isolation: none`"
)


def config(  # noqa: PLR0913 - keyword-only, what the rules come from
    manifest: Manifest,
    state: State,
    app: str,
    *,
    env: Mapping[str, str],
    own: tuple[str, ...],
    python: Interpreter,
) -> dict[str, Any] | None:
    """Of an app's launchers and workers; None where the manifest says that there is to be none.

    `own` is what the app runs by itself, without the interpreter, and `python` that interpreter.
    """
    if manifest.isolation == "none":
        return None
    own_user = users.of(manifest, app)
    storage = _storage(manifest, state, app, env)
    work = _work(manifest, state, app)
    folders = (*([] if own_user and env.get(STORAGE) else [storage]), *work.values())
    places = {name: str(path) for name, path in work.items()}
    strict = None
    if app not in manifest.programs:
        strict = _strict(manifest, state, app, env=env, python=python)._asdict()
    return {
        "command": list(own),
        "own": strict,
        "other": _other(manifest, state, app, keep=(storage, *work.values()))._asdict(),
        "env": places | _kept_places(env) | ({STORAGE: str(storage)} if own_user else {}),
        "folders": [str(folder) for folder in folders],
    }


def require(manifest: Manifest, state: State) -> None:
    """Refuses a mesh whose agents cannot be kept apart here.

    Raises:
        DependencyUnavailable: the kernel cannot, and `isolation: none` is not written.
        UsageError: a path of `writable` is not there, or is the mesh's own.
    """
    if manifest.isolation == "none":
        return
    _require_landlock(manifest, confine.abi())
    for app in manifest.runners.keys() - manifest.programs.keys():
        for written, path in _writable(state, manifest.kept_part(app).writable):
            if why := _unfit(manifest, state, path):
                raise UsageError(
                    f"{'.'.join(manifest.place(app, of='writable'))}.writable: {written!r} {why}",
                    next_step="name folders and files of the project that are there",
                )


def _require_landlock(manifest: Manifest, version: int) -> None:
    """Or a user for each app; and where ports are written, nothing but it will do."""
    if version >= confine.ABI_NET:
        return
    has = f"has Landlock of ABI {version}, which knows no TCP ports" if version else "has no Landlock"
    runners = {app: manifest.runner(app) for app in manifest.runners}
    if without := [app for app, runner in runners.items() if runner.user is None]:
        raise DependencyUnavailable(
            "agents on this machine cannot be kept apart",
            why=f"this kernel {has}, and no user of their own have: {', '.join(without)}",
            next_step=NEXT,
        )
    for app, runner in runners.items():
        if runner.ports is not None:
            raise DependencyUnavailable(
                f"{'.'.join(manifest.place(app, of='ports'))}.ports cannot be kept to on this machine",
                why=f"this kernel {has}, and a user of its own keeps app {app!r} from no port",
                next_step="Linux 6.7 or later with Landlock enabled (lsm=landlock,…), or leave out `ports:`",
            )


def examine(manifest: Manifest, state: State, envs: Mapping[str, Mapping[str, str]]) -> list[Check]:
    """What is in force for each app, for `meshgate doctor`."""
    if manifest.isolation == "none":
        return [Check(f"isolation of {app}", ok=True, detail="none, as written") for app in manifest.runners]
    try:
        require(manifest, state)
        found = users.every(manifest)
    except (DependencyUnavailable, UsageError) as error:
        return [Check("isolation", ok=False, detail=f"{error.what} {error.why}".strip(), fix=error.next_step)]
    covers = {apart: confine.can_cover(another_user=apart) for apart in (False, True)}
    told = {
        app: _told(manifest, state, app, envs[app], covers=covers[app in found]) for app in manifest.runners
    }
    return [Check(f"isolation of {app}", ok=True, detail=detail) for app, detail in told.items()]


def ports(manifest: Manifest, app: str, env: Mapping[str, str]) -> tuple[int, ...] | None:
    """TCP ports that an app may connect to; None for any."""
    written = manifest.runner(app).ports
    if not _keeps_ports(manifest, app):
        return None
    if app in manifest.programs:
        return None if written is None else tuple(sorted(set(written)))
    found = {HTTPS, *(written or ())}
    for name, value in env.items():
        if name.upper().endswith(ADDRESSES):
            found.update(_port(value))
    return tuple(sorted(found))


def _keeps_ports(manifest: Manifest, app: str) -> bool:
    """False where no kernel would and nobody has asked for it: a user of its own is all there is.

    An app whose ports are written keeps its rules, by which its programs are refused to start here.
    """
    runner = manifest.runner(app)
    return confine.abi() >= confine.ABI_NET or runner.user is None or runner.ports is not None


def _port(value: str) -> Iterator[int]:
    try:
        parts = urlsplit(value if "//" in value else f"//{value}")
        port = parts.port or SCHEMES.get(parts.scheme)
    except ValueError:  # no address at all
        return
    if port:
        yield port


def _strict(
    manifest: Manifest, state: State, app: str, *, env: Mapping[str, str], python: Interpreter
) -> Rules:
    """What a crew's own program needs, or an agent's."""
    written = [str(path) for _, path in _writable(state, manifest.kept_part(app).writable)]
    user = users.of(manifest, app)
    hide = hidden(manifest, state) + (OF_ROOT if os.getuid() == 0 and user is None else ())
    certificates = [env[name] for name in CERTIFICATES if name in env]
    read = (*SYSTEM, *python.paths, str(SITE_FOLDER.parent), str(state.project), *certificates)
    work = map(str, _work(manifest, state, app).values())
    write = (*DEVICES, str(_storage(manifest, state, app, env)), *work, *written)
    above = any(path.startswith(f"{place.rstrip('/')}/") for path in hide for place in written)
    return Rules(
        read=_real(read), write=_real(write), hide=_real(hide),
        cover=confine.INSTEAD if above else confine.ALSO,
        connect=ports(manifest, app, env), listen=not _keeps_ports(manifest, app), user=user,
    )  # fmt: skip


def _other(manifest: Manifest, state: State, app: str, *, keep: tuple[Path, ...]) -> Rules:
    """What any program may: all that its user may, but for what is the mesh's."""
    written = manifest.programs[app].ports if app in manifest.programs else None
    return Rules(
        write=_real(("/", *map(str, keep))), hide=_real(hidden(manifest, state)), cover=confine.INSTEAD,
        connect=None if written is None else tuple(sorted(set(written))), user=users.of(manifest, app),
    )  # fmt: skip


def hidden(manifest: Manifest, state: State) -> tuple[str, ...]:
    """What no agent gets: the mesh's folders, and the variables of others."""
    variants = (path for path in state.project.glob(".env.*") if path.suffix not in SAMPLES)
    apart = any(manifest.runner(app).user is not None for app in manifest.runners)
    of_apps = (state.apps, state.app_sockets) if apart else ()
    return tuple(sorted(map(str, {state.root, state.sockets, state.project / ".env", *variants, *of_apps})))


def _work(manifest: Manifest, state: State, app: str) -> dict[str, Path]:
    """The app's own folder, by the variable that says so."""
    if manifest.runner(app).user is not None:
        return users.work(state, app)
    work = state.root / "work" / app
    return {"HOME": work / "home", "TMPDIR": work / "tmp", "XDG_CACHE_HOME": work / "home" / ".cache"}


def _kept_places(env: Mapping[str, str]) -> dict[str, str]:
    """Where packages of the user's own lie, though home is elsewhere now."""
    if "PYTHONUSERBASE" in env or "HOME" not in env:
        return {}
    return {"PYTHONUSERBASE": f"{env['HOME']}/.local"}


def _storage(manifest: Manifest, state: State, app: str, env: Mapping[str, str]) -> Path:
    """CrewAI's own, as `launcher.environment` names it."""
    own = state.data / f"crewai-{app}" if manifest.runner(app).user is None else users.storage(state, app)
    return Path(env.get(STORAGE) or own)


def _writable(state: State, written: tuple[str, ...]) -> list[tuple[str, Path]]:
    return [(text, state.project / text) for text in written]


def _unfit(manifest: Manifest, state: State, path: Path) -> str:
    """Why a path cannot be given to a program; empty when it can."""
    if not path.exists():
        return "does not exist"
    real = path.resolve()
    if any(real == Path(one) or real.is_relative_to(one) for one in _real(hidden(manifest, state))):
        return "is the mesh's own"
    return ""


def _real(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(os.path.realpath(path) for path in paths if os.path.isabs(path)))  # noqa: PTH117


def _told(manifest: Manifest, state: State, app: str, env: Mapping[str, str], *, covers: bool) -> str:
    how = "covered" if covers else "left out entry by entry; nothing new can be made beside them"
    user, landlock = users.of(manifest, app), confine.abi() > 0
    if app in manifest.programs or not landlock:
        rules = _other(manifest, state, app, keep=())._replace(connect=ports(manifest, app, env))
        kept = how if covers or landlock else "which its user may not read"
        return f"{confine.described(rules)}; all files of its user but .meshgate/ and .env ({kept})"
    rules = Rules(connect=ports(manifest, app, env), listen=False, user=user)
    written = ", ".join(("its work folder", *manifest.kept_part(app).writable))
    return f"{confine.described(rules)}; reads the project but .meshgate/ and .env; writes {written}"
