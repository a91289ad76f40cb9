"""Programs that are forked from a process with CrewAI imported, against the same ones executed.

Each program imports CrewAI, does one task on a model that answers at once, and is killed; another follows.
No mesh: the row is the supervisor, `servers.asker` the launcher. Not pinned.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from measure import Goal, Measured, Row, interleave
from meshgate_agents.launcher.environment import OFF, ON, SITE_FOLDER
from meshgate_deploy.program_servers import ProgramServer, argv
from meshgate_identities import attestation

from rows import Bench

BENCHMARKS = Path(__file__).resolve().parents[1]
IMPORT_SECONDS = 120.0
READY, MEMORY, AGAIN = Goal(most=150.0), Goal(most=70.0), Goal(most=500.0)


def measure(bench: Bench) -> Sequence[Row]:
    """From the request to a served program; private memory after a task; from SIGKILL to the next one."""
    bench.cores.free()
    with _server(bench.folder) as server, _asker(bench.folder, server) as ask:
        ask("forked")  # the first one writes bytecode
        bench.say("forks: the server is up")
        taken = interleave(bench.repeats, {way: partial(ask, way) for way in ("forked", "executed")})
    rows = (
        ("ready", "ms", 1000.0, READY, "from the request until the program has imported CrewAI"),
        ("private", "MB", 1.0, MEMORY, "of program and keeper after its first task, without its launcher"),
        ("again", "ms", 1000.0, AGAIN, "from SIGKILL to the next one, without the rest between attempts"),
    )
    return [
        Row(
            name=f"forks.{name}", unit=unit, subject=taken.series("forked", name).times(factor),
            baseline=taken.series("executed", name).times(factor), goal=goal, notes=notes,
        )
        for name, unit, factor, goal, notes in rows
    ]  # fmt: skip


@contextmanager
def _server(folder: Path) -> Iterator[ProgramServer]:
    env = {
        **ON, **OFF, "PATH": os.environ["PATH"], "HOME": str(folder),
        "PYTHONPATH": str(SITE_FOLDER), "CREWAI_STORAGE_DIR": str(folder / "none"),
    }  # fmt: skip

    def start(control: int, listener: int) -> Callable[[], None]:
        popen = subprocess.Popen(
            argv(sys.executable, control, listener, folder), env=env, cwd=folder, stdin=subprocess.DEVNULL,
            pass_fds=(control, listener), start_new_session=True,
        )  # fmt: skip

        def end() -> None:
            popen.terminate()
            popen.wait()

        return end

    server = ProgramServer(folder / "f", start)
    server.open()
    try:
        if not server.ready.wait(IMPORT_SECONDS):
            raise RuntimeError("the fork server did not start")
        yield server
    finally:
        server.close()


@contextmanager
def _asker(folder: Path, server: ProgramServer) -> Iterator[Callable[[str], Measured]]:
    command = [sys.executable, "-m", "servers.asker", "--folder", str(folder), "--server", str(server.path)]
    with (folder / "asker.log").open("wb") as log, subprocess.Popen(
        command, cwd=BENCHMARKS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
    ) as popen:  # fmt: skip
        server.admit(attestation.process(popen.pid))
        try:
            yield partial(_asked, popen.stdin, popen.stdout, folder / "asker.log")
        finally:
            popen.terminate()


def _asked(to: IO[str] | None, back: IO[str] | None, log: Path, way: str) -> Measured:
    if to is None or back is None:
        raise RuntimeError("the asker has no pipes")
    to.write(f"{way}\n")
    to.flush()
    while line := back.readline():
        if line.startswith("{"):  # the programs print there too
            return dict(json.loads(line))
    raise RuntimeError(f"the asker ended:\n{log.read_text()[-2000:]}")
