"""A real mesh in a folder of its own: brought up by the command, looked at from outside."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

MESHGATE = str(Path(sys.executable).with_name("meshgate"))
PATIENCE_SECONDS = 90.0


def eventually(check: Callable[[], T], what: str) -> T:
    """Polls until `check` gives something true, and returns it."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (found := check()):
        assert time.monotonic() < end, f"not within {PATIENCE_SECONDS:g} s: {what}"
        time.sleep(0.05)
    return found


class LiveMesh:
    """One project folder and the mesh that runs from it.

    Args:
        front: what brings it up is started by.
        meshgate: the command, of another installation than the tests' own.
        env: in which all commands are given; ours when None.
    """

    def __init__(
        self,
        root: Path,
        files: Mapping[str, str],
        *,
        front: Sequence[str] = (),
        meshgate: Sequence[str] = (MESHGATE,),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.root = root
        self.front, self._meshgate, self.env = front, meshgate, env
        self._up: subprocess.Popen[bytes] | None = None
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(text).lstrip())

    def up(self) -> None:
        """Starts the mesh and waits until it says that it is up."""
        log = self.root / "up.log"
        with log.open("w") as out:
            argv = [*self.front, *self._meshgate, "up"]
            up = self._up = subprocess.Popen(argv, cwd=self.root, stdout=out, stderr=out, env=self.env)
        eventually(lambda: up.poll() is not None or "the mesh is up" in log.read_text(), "mesh up")
        assert up.poll() is None, log.read_text()

    def down(self) -> None:
        """Takes it down; without effect when it is not up."""
        if self._up is not None:
            self._up.send_signal(signal.SIGTERM)
            self._up.wait(60)
            self._up = None

    def remove(self) -> None:
        """Takes it down and removes what it kept."""
        self.down()
        shutil.rmtree(self.root / ".meshgate", ignore_errors=True)

    def without_policy(self, app: str) -> subprocess.CompletedProcess[str]:
        """An `up` that loses an app's access policy; returns when it gave up."""
        script = Path(__file__).with_name("up_without_policy.py")
        return subprocess.run(
            [sys.executable, str(script), app, "up"],
            cwd=self.root, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
        )  # fmt: skip

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A `meshgate` command in the project's folder."""
        return subprocess.run(
            [*self._meshgate, *arguments], cwd=self.root, capture_output=True, text=True, check=False,
            env=self.env,
        )  # fmt: skip

    def asked(self, *arguments: str) -> Any:
        """What a command prints as JSON."""
        done = self.command(*arguments, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @property
    def pid(self) -> int:
        """The supervisor's."""
        assert self._up is not None
        return self._up.pid

    @property
    def pids(self) -> dict[str, int]:
        """The pids of what it keeps running, by name."""
        shown = self.asked("ps")
        return {row["name"]: row["pid"] for row in shown["processes"]}

    def flag(self, process: str, name: str) -> str:
        """A command-line value of a process of the mesh, as anybody on the machine sees it."""
        words = Path(f"/proc/{self.pids[process]}/cmdline").read_bytes().decode().split("\0")
        return words[words.index(f"--{name}") + 1]

    def secret(self, name: str) -> str:
        """A token under `.meshgate/run/`."""
        return (self.root / ".meshgate" / "run" / name).read_text().strip()

    def records(self, **wanted: str) -> list[dict[str, Any]]:
        """The audit records that have these values."""
        rows = self.asked("audit", "query", "--limit", "100000")
        return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]

    def effects(self) -> list[str]:
        """What tools and workflows did: one line each."""
        path = self.root / "effects"
        return path.read_text().splitlines() if path.exists() else []

    @contextmanager
    def running(self, app: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A run of an app's program, killed at the end if it still runs."""
        python = sys.executable if self.env is None else "python"
        command = [*self._meshgate, "run", "--app", app, "--", python, *arguments]
        run = subprocess.Popen(
            command, cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=self.env,
        )  # fmt: skip
        try:
            yield run
        finally:
            run.kill()
            run.wait()


def started_in(parent: int) -> list[int]:
    """A process and everything it started that still runs."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, waiting = [], [parent]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def listeners(pids: list[int]) -> set[tuple[str, int]]:
    """Address (hex, as the kernel writes it) and port of every TCP socket they listen on."""
    held = _sockets(pids)
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            address, port = words[1].split(":")
            if words[3] == "0A" and f"socket:[{words[9]}]" in held:
                found.add((address, int(port, 16)))
    return found


def abstract_listeners(pid: int) -> list[str]:
    """Names, without the leading `@`, of the abstract sockets that a process listens on."""
    held, accepts = _sockets([pid]), 0x10000  # __SO_ACCEPTCON of the kernel's unix table
    rows = [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
    return [
        row[7][1:]
        for row in rows
        if row[7:] and row[7][0] == "@" and int(row[3], 16) & accepts and f"socket:[{row[6]}]" in held
    ]


def _sockets(pids: list[int]) -> set[str]:
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):  # closed while we look
                inodes.add(str(descriptor.readlink()))
    return inodes
