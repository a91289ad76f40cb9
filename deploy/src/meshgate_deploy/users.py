"""Apps whose programs have a user of their own (`user:`): who that is, and where its places are."""

import grp
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from meshgate_deploy.errors import Problem, UsageError
from meshgate_deploy.manifest_lines import Document

if TYPE_CHECKING:
    from meshgate_deploy.manifest import Manifest
    from meshgate_deploy.state import State

User = tuple[int, int]  # uid and gid


def problems(document: Document, manifest: "Manifest") -> Iterator[Problem]:
    """What is wrong with users as they are written; which uid a name has is known on the machine."""
    first: dict[int | str, str] = {}
    for app in manifest.runners:
        user = manifest.runner(app).user
        if user is None:
            continue
        line = document.line((*manifest.place(app, of="user"), "user"))
        if manifest.isolation == "none":
            message = f"app {app!r} has a user of its own, and nothing is to be kept apart: isolation: none"
            yield Problem(document.file, line, message, "keep one of the two")
        if user in first:
            message = (
                f"apps {first[user]!r} and {app!r} have the same user {user!r}: nothing keeps them apart"
            )
            yield Problem(document.file, line, message, "a user for each")
        first.setdefault(user, app)


def of(manifest: "Manifest", app: str) -> User | None:
    """Uid and gid of an app's programs; None where it has no user of its own.

    Raises:
        UsageError: there is no such user, or it is root, or in root's group, or a group has its number.
    """
    written = manifest.runner(app).user
    if written is None or manifest.isolation == "none":
        return None
    place = f"{'.'.join(manifest.place(app, of='user'))}.user"
    try:
        known = pwd.getpwuid(written) if isinstance(written, int) else pwd.getpwnam(written)
    except KeyError as error:
        if isinstance(written, int):  # no name is needed, and its group is its own
            _require_free(place, written)
            return written, written
        raise UsageError(
            f"{place}: this machine has no user {written!r}",
            next_step=f"useradd --system --user-group --no-create-home --shell /usr/sbin/nologin {written}",
        ) from error
    if not known.pw_uid or not known.pw_gid:
        raise UsageError(
            f"{place}: {written!r} has uid {known.pw_uid} and gid {known.pw_gid}",
            why="root and its group are the supervisor's",
            next_step="a user and a group for this app alone",
        )
    return known.pw_uid, known.pw_gid


def _require_free(place: str, gid: int) -> None:
    """What is that group's, such as the hashes of passwords or a socket of root's, would be the app's too."""
    try:
        known = grp.getgrgid(gid).gr_name
    except KeyError:
        return
    raise UsageError(
        f"{place}: uid {gid} has no name, and gid {gid} is the group {known!r}",
        why="a uid without a name gets the gid of the same number, and what that group may is its",
        next_step="a uid whose number no group of this machine has, or the name of a user",
    )


def every(manifest: "Manifest") -> dict[str, User]:
    """Each app that has one.

    Raises:
        UsageError: as `of` has it, or two names are one uid.
    """
    found: dict[str, User] = {}
    for app in manifest.runners:
        if (user := of(manifest, app)) is None:
            continue
        for other, (uid, _) in found.items():
            if uid == user[0]:
                raise UsageError(
                    f"apps {other!r} and {app!r} have the same user, uid {uid}",
                    why="one could read the other's files and memory",
                    next_step="a user for each, in meshgate.yaml",
                )
        found[app] = user
    return found


def work(state: "State", app: str) -> dict[str, Path]:
    """The folders of an app with a user of its own, by the variable that says so.

    Each lies in a folder that is root's: its user cannot put a link in its place.
    """
    own = state.apps / app
    return {"HOME": own / "home", "TMPDIR": own / "tmp", "XDG_CACHE_HOME": own / "cache"}


def storage(state: "State", app: str) -> Path:
    """CrewAI's, of such an app."""
    return state.apps / app / "crewai"
