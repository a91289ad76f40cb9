"""Places of a program that may have another user than we have: its folders, its socket, its input.

We may do to a file what we like, so that we touch none in a folder where a program could put a link: what is
its own lies directly below a folder that is ours and that others may only pass through.
"""

import os
import stat
from pathlib import Path

from meshgate_agents.launcher.errors import LauncherError

PRIVATE, TRAVERSED, SOCKET = 0o700, 0o711, 0o600

User = tuple[int, int]  # uid and gid


def make(folder: Path, user: User | None) -> None:
    """A folder that the program alone uses; one that is there stays.

    Raises:
        LauncherError: it cannot be given to the program's user.
    """
    if user is None:
        folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        return
    if folder.is_symlink() or not _ours(folder.parent):
        raise LauncherError(f"{folder} cannot be given to uid {user[0]}: {folder.parent} is not ours alone")
    folder.mkdir(mode=PRIVATE, exist_ok=True)
    found = folder.lstat()  # it stays what it is: nobody else can put another thing there
    if not stat.S_ISDIR(found.st_mode):
        raise LauncherError(f"{folder} cannot be given to uid {user[0]}: it is no folder")
    if found.st_uid not in (os.getuid(), user[0]):
        raise LauncherError(
            f"{folder} is of uid {found.st_uid}, and is to be of {user[0]}: remove or chown it"
        )
    if (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) != (*user, PRIVATE):
        os.chown(folder, os.getuid(), -1, follow_symlinks=False)  # without CAP_FOWNER: a mode of our own
        folder.chmod(PRIVATE)
        os.chown(folder, *user, follow_symlinks=False)


def give(socket_path: Path, user: User) -> None:
    """A socket that the user alone may connect to; its folder is ours."""
    socket_path.chmod(SOCKET)
    os.chown(socket_path, *user, follow_symlinks=False)


def _ours(folder: Path) -> bool:
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
