"""A fork server of programs as the supervisor has it, for launchers that a test starts."""

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from meshgate_agents.launcher.environment import OFF, ON, SITE_FOLDER
from meshgate_agents.launcher.peers import PR_SET_CHILD_SUBREAPER, become_subreaper
from meshgate_deploy import program_servers
from meshgate_deploy.program_servers import ProgramServer
from meshgate_identities import attestation

READY_SECONDS = 60.0
PR_GET_CHILD_SUBREAPER = 37


@contextlib.contextmanager
def program_server(
    folder: Path,
    *,
    python: str = sys.executable,
    site: Path = SITE_FOLDER,
    front: Sequence[str] = (),
    **env: str,
) -> Iterator[ProgramServer]:
    """One that is ready; `env` is what its programs have too, `front` what it is started by."""
    given = {
        "PATH": os.environ["PATH"], **ON, **OFF, **env,
        "PYTHONPATH": str(site), "CREWAI_STORAGE_DIR": str(folder / "no-storage"),
    }  # fmt: skip

    def start(control: int, listener: int) -> Callable[[], None]:
        command = (*front, *program_servers.argv(python, control, listener, folder))
        return _started(command, given, folder, (control, listener))

    server = ProgramServer(folder / "f", start)
    server.open()
    try:
        assert server.ready.wait(READY_SECONDS), (folder / "server.log").read_text()
        yield server
    finally:
        server.close()


# A child of nobody: tests play launchers in this process, which kill what they do not know below it. Without
# what an interpreter adds in the C locale.
APART = """
import os, sys
if os.fork():
    os._exit(0)
os.setsid()
os.environ.pop("LC_CTYPE", None)
os.execv(sys.argv[1], sys.argv[1:])
"""


def _started(
    command: tuple[str, ...], env: Mapping[str, str], folder: Path, descriptors: tuple[int, int]
) -> Callable[[], None]:
    with (folder / "server.log").open("ab") as log, _no_subreaper():
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", APART, *command], env=dict(env), cwd=folder, check=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=descriptors,
        )  # fmt: skip
    return lambda: None  # it ends when its control is closed


@contextlib.contextmanager
def _no_subreaper() -> Iterator[None]:
    """An orphan of this process is nobody's meanwhile, also where an earlier test made it a subreaper."""
    libc, was = ctypes.CDLL(None), ctypes.c_int()
    libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(was), 0, 0, 0)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    try:
        yield
    finally:
        if was.value:
            become_subreaper()


def admitted(server: ProgramServer | None, argv: Sequence[str], *, cwd: Path) -> subprocess.Popen[str]:
    """A launcher that begins when it has been named to the server, as a supervisor's does."""
    gate = ("/bin/sh", "-c", 'read _; exec "$@" </dev/null', "sh")
    popen = subprocess.Popen(
        [*gate, *argv],
        cwd=cwd,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if server is not None:
        server.admit(attestation.process(popen.pid))
    assert popen.stdin is not None
    popen.stdin.write("\n")
    popen.stdin.close()
    popen.stdin = None
    return popen
