"""A fork server of programs as the supervisor has it, for launchers that a test starts."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from meshgate_agents.launcher.environment import OFF, ON, SITE_FOLDER
from meshgate_deploy.program_servers import ProgramServer, argv

READY_SECONDS = 60.0


@contextlib.contextmanager
def program_server(folder: Path, *, python: str = sys.executable, **env: str) -> Iterator[ProgramServer]:
    """One that is ready; `env` is what its programs have too."""
    given = {
        "PATH": os.environ["PATH"], **ON, **OFF, **env,
        "PYTHONPATH": str(SITE_FOLDER), "CREWAI_STORAGE_DIR": str(folder / "no-storage"),
    }  # fmt: skip

    def start(control: int, listener: int) -> Callable[[], None]:
        return _started(argv(python, control, listener, folder), given, folder, (control, listener))

    server = ProgramServer(folder / "f", start)
    server.open()
    try:
        assert server.ready.wait(READY_SECONDS), (folder / "server.log").read_text()
        yield server
    finally:
        server.close()


def _started(
    command: tuple[str, ...], env: Mapping[str, str], folder: Path, descriptors: tuple[int, int]
) -> Callable[[], None]:
    with (folder / "server.log").open("ab") as log:
        popen = subprocess.Popen(
            command, env=dict(env), cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            pass_fds=descriptors, start_new_session=True,
        )  # fmt: skip

    def end() -> None:
        popen.terminate()
        popen.wait(10)

    return end
