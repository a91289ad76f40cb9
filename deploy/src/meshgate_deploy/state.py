"""Where the supervisor keeps things: `.meshgate/` of the project, owner only."""

import hashlib
import os
import secrets
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from meshgate_deploy.errors import IntegrityFailed, NotFound

MANIFEST = "meshgate.yaml"
FOLDER = ".meshgate"
APPS = ".meshgate-apps"
SOCKETS = "socket_dir"  # record of a socket folder elsewhere, and of the project that it belongs to
LONGEST_SOCKET_NAME = 40  # of what is put below the socket folder
MAX_SOCKET_PATH = 107  # sun_path of Linux holds 108 bytes with the final zero


@dataclass(frozen=True, slots=True)
class State:
    """The layout below one project's `.meshgate/`."""

    project: Path
    sockets: Path

    @property
    def root(self) -> Path:
        """`.meshgate/` itself."""
        return self.project / FOLDER

    @property
    def manifest(self) -> Path:
        """The file people write."""
        return self.project / MANIFEST

    @property
    def dapr_ca(self) -> Path:
        """Sentry's root and issuer, kept across starts."""
        return self.root / "ca" / "dapr"

    @property
    def spiffe_ca(self) -> Path:
        """The development SPIFFE root."""
        return self.root / "ca" / "spiffe"

    @property
    def generated(self) -> Path:
        """Everything made from the manifest; may be deleted."""
        return self.root / "generated"

    @property
    def run(self) -> Path:
        """Tokens and records of what runs now."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        """One file per process."""
        return self.root / "logs"

    @property
    def data(self) -> Path:
        """What must outlive a start: stores and their keys."""
        return self.root / "data"

    @property
    def apps(self) -> Path:
        """What belongs to apps with a user of their own: others pass through, nobody but root lists it."""
        return self.project / APPS

    @property
    def app_sockets(self) -> Path:
        """Sockets and inputs of their runs; a path short enough for sockets, which root alone could make."""
        digest = hashlib.sha256(os.fsencode(self.project.resolve())).hexdigest()
        return Path(f"/run/meshgate-{digest[:16]}")

    @property
    def control(self) -> Path:
        """The supervisor's socket."""
        return self.sockets / "control.sock"

    @property
    def workload_api(self) -> Path:
        """The SPIFFE Workload API's socket."""
        return self.sockets / "workload.sock"

    @property
    def terminals(self) -> Path:
        """The supervisor's socket for workers."""
        return self.sockets / "terminals.sock"

    def log(self, name: str) -> Path:
        """A process's log file."""
        return self.logs / f"{name}.log"


def find_project(start: Path) -> Path:
    """The nearest folder at or above `start` that holds a manifest.

    Raises:
        NotFound: there is none.
    """
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / MANIFEST).is_file():
            return folder
    raise NotFound(
        f"no {MANIFEST} here or in any folder above",
        why=f"searched from {start.resolve()}",
        next_step="meshgate init, or meshgate scan MODULE in your project's folder",
    )


def open_state(project: Path) -> State:
    """The layout without making anything; for commands that only look."""
    return State(project, _recorded(project.resolve()) or project / FOLDER / "run")


def prepare_state(project: Path) -> State:
    """Makes the folders, 0700 each."""
    base = project.resolve()
    state = State(base, _socket_folder(base))
    folders = (state.root, state.root / "ca", state.dapr_ca, state.generated, state.run, state.logs)
    for folder in (*folders, state.data, state.data / "hosts"):
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    if state.sockets != state.run:
        write_private(state.run / SOCKETS, f"{state.sockets}\n{base}\n".encode())
    ignore = state.root / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    return state


def prepare_apps(state: State) -> None:
    """Makes the folders of apps with a user of their own: root's, and others pass through.

    Raises:
        IntegrityFailed: one of them is something else already.
    """
    for folder in (state.apps, state.app_sockets):
        folder.mkdir(mode=0o711, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise IntegrityFailed(
                f"{folder} is not ours",
                why="the files of apps with a user of their own lie there",
                next_step=f"look at what it is, and remove it: rm -r {folder}",
            )
        folder.chmod(0o711)
    ignore = state.apps / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")


def prepare_app(state: State, app: str) -> None:
    """Makes the folder of one of them, in which its own ones lie."""
    folder = state.apps / app
    folder.mkdir(mode=0o711, exist_ok=True)
    folder.chmod(0o711)


def _socket_folder(project: Path) -> Path:
    """Below the project when paths stay short enough for sockets, else a private folder elsewhere."""
    usual = project / FOLDER / "run"
    if len(os.fsencode(usual)) + LONGEST_SOCKET_NAME <= MAX_SOCKET_PATH:
        return usual
    known = _recorded(project)
    if known and known.is_dir() and known.stat().st_uid == os.getuid() and known.stat().st_mode & 0o077 == 0:
        return known
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(tempfile.mkdtemp(prefix="meshgate-", dir=base if base and Path(base).is_dir() else "/tmp"))  # noqa: S108 - mkdtemp makes it 0700 and unguessable


def _recorded(project: Path) -> Path | None:
    """The private socket folder of just this project: a copy of it has the record, and is another mesh."""
    record = project / FOLDER / "run" / SOCKETS
    sockets, _, owner = record.read_text().strip().partition("\n") if record.is_file() else ("", "", "")
    return Path(sockets) if owner == str(project) else None


def write_private(path: Path, content: bytes) -> None:
    """Writes a file that only its owner reads, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)


def new_token(path: Path) -> str:
    """Makes a token for this start and keeps it in a private file."""
    token = secrets.token_hex(32)
    write_private(path, token.encode())
    return token
