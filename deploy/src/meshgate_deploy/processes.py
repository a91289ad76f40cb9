"""Starts, watches and ends processes. Every one is named by pid and start time, never by its name."""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from meshgate_identities import attestation

from meshgate_deploy import fork_server
from meshgate_deploy.errors import DependencyUnavailable
from meshgate_deploy.forking import Forked, ForkServer, ForkServerGone
from meshgate_deploy.state import write_private

PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 5.0
TAIL_BYTES = 4096
POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start.

    Attributes:
        env: the whole environment of the process.
        log: file that gets its output; None when `streams` is given.
        streams: descriptors for stdin, stdout and stderr.
        death_signal: what the kernel sends it when the supervisor dies.
        descriptors: what it keeps open besides its streams.
        fork: the fork server that may make it, and the words after `-m` of its `argv`: a module of that
            server's and its arguments. Without one, or when that is gone, it is executed.
        user_code: whether code of the user runs in it.
        told: who is told of the process before anybody else is.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    log: Path | None = None
    streams: tuple[int, int, int] | None = None
    death_signal: signal.Signals = signal.SIGKILL
    grace_seconds: float = GRACE_SECONDS
    descriptors: tuple[int, ...] = ()
    fork: tuple[ForkServer, Sequence[str]] | None = None
    user_code: bool = False
    told: Callable[[attestation.Process], None] | None = None


@dataclass(slots=True)
class Child:
    """A started process; leader of a session of its own."""

    command: Command
    popen: "subprocess.Popen[bytes] | Forked"
    identity: attestation.Process
    pidfd: int
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.popen.pid

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """Its exit status (negative after a signal), or None when it still runs."""
        milliseconds = None if timeout_seconds is None else max(0, int(timeout_seconds * 1000))
        poller = select.poll()
        if self.pidfd >= 0:
            poller.register(self.pidfd, select.POLLIN)
            if not poller.poll(milliseconds):
                return None
        with self._lock:
            status = self.popen.wait()
            if self.pidfd >= 0:
                os.close(self.pidfd)
                self.pidfd = -1
            return status

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.wait(0) is None

    @property
    def stopped(self) -> bool:
        """Whether it was stopped (SIGSTOP), so that it neither works nor ends."""
        row = _fields(self.pid)
        return bool(row) and row[0] == "T"

    def signal(self, number: int) -> None:
        """Sends a signal to the process alone; none when it has ended."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, number)

    def stop(self) -> None:
        """Asks it to end, waits its grace, then kills its whole session."""
        self.signal(signal.SIGTERM)
        if self.wait(self.command.grace_seconds) is None:
            self.signal(signal.SIGKILL)
        self.wait(GRACE_SECONDS)
        kill_session(self.identity)


class Processes:
    """Starts processes and keeps a record of them for the next start to clean up after a crash."""

    def __init__(self, *, record: Path) -> None:
        self._record = record
        self._lock = threading.Lock()
        self._children: dict[int, Child] = {}
        # The kernel's death signal follows the *thread* that forked, so one thread forks for all.
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="spawner")
        self._setpriv = shutil.which("setpriv")

    @property
    def pids(self) -> list[int]:
        """Of everything started and not forgotten."""
        with self._lock:
            return list(self._children)

    def named(self, name: str) -> list[Child]:
        """Those started under a name and not forgotten."""
        with self._lock:
            return [child for child in self._children.values() if child.command.name == name]

    def start(self, command: Command) -> Child:
        """Starts a process in a session of its own.

        Raises:
            DependencyUnavailable: it cannot be executed.
        """
        child = self._forked(command)
        if child is None:
            child = self._spawner.submit(self._spawn, command).result()
            self._know(child)
        return child

    def _know(self, child: Child) -> None:
        """Takes it into the books; one that cannot be written down there does not live."""
        try:
            with self._lock:
                self._children[child.pid] = child
                self._write()
            if child.command.told is not None:
                child.command.told(child.identity)
        except OSError:
            child.signal(signal.SIGKILL)
            child.wait(GRACE_SECONDS)
            self.forget(child)
            raise

    def forget(self, child: Child) -> None:
        """Drops an ended process from the record."""
        with self._lock, contextlib.suppress(OSError):  # one line too many there is harmless: it has ended
            self._children.pop(child.pid, None)
            self._write()

    def close(self) -> None:
        """Kills what is left of every session and removes the record."""
        with self._lock:
            children = list(self._children.values())
            self._children.clear()
        for child in children:
            child.signal(signal.SIGKILL)
            child.wait(GRACE_SECONDS)
            kill_session(child.identity)
        kill_descendants()
        self._record.unlink(missing_ok=True)
        self._spawner.shutdown()

    def _forked(self, command: Command) -> Child | None:
        """A process from its fork server; None when there is none that answers."""
        if command.fork is None:
            return None
        server, words = command.fork
        request = {
            "argv": list(words), "env": dict(command.env), "cwd": str(command.cwd), "name": command.name,
            "death_signal": int(command.death_signal), "user_code": command.user_code,
        }  # fmt: skip
        with contextlib.ExitStack() as opened:
            gate, say_go = os.pipe()
            opened.callback(os.close, say_go)
            try:
                pid = server.fork(request, _streams(command, opened), gate)
                child = Child(command, Forked(pid), attestation.process(pid), os.pidfd_open(pid))
            except (ForkServerGone, ProcessLookupError):
                return None  # it waits at the gate for a word that does not come
            finally:
                os.close(gate)
            self._know(child)  # before it does anything, so that nobody takes it for an orphan
            with contextlib.suppress(BrokenPipeError):  # it was killed at the gate: as at any later moment
                os.write(say_go, fork_server.GO)
        return child

    def _spawn(self, command: Command) -> Child:
        argv = list(command.argv)
        if self._setpriv:
            argv = [self._setpriv, "--pdeathsig", command.death_signal.name.removeprefix("SIG"), *argv]
        with contextlib.ExitStack() as opened:
            stdin, stdout, stderr = _streams(command, opened)
            try:
                popen = subprocess.Popen(
                    argv, env=dict(command.env), cwd=command.cwd, stdin=stdin, stdout=stdout, stderr=stderr,
                    start_new_session=True, close_fds=True, pass_fds=command.descriptors,
                )  # fmt: skip
            except OSError as error:
                raise DependencyUnavailable(f"{command.name} cannot be started", why=str(error)) from error
        return Child(command, popen, attestation.process(popen.pid), os.pidfd_open(popen.pid))

    def _write(self) -> None:
        rows = [
            {"name": c.command.name, "pid": c.pid, "start_ticks": c.identity.start_ticks}
            for c in self._children.values()
        ]
        write_private(self._record, json.dumps(rows).encode())


def _streams(command: Command, opened: contextlib.ExitStack) -> tuple[int, int, int]:
    """The descriptors of its standard streams; what is opened for them is closed with `opened`."""
    if command.streams is not None:
        return command.streams
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    opened.callback(os.close, nothing)
    if command.log is None:
        return nothing, nothing, nothing
    log = os.open(command.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    opened.callback(os.close, log)
    return nothing, log, log


def become_subreaper() -> None:
    """Makes orphans of our processes children of this one, so that the last sweep finds them.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def clean_leftovers(record: Path) -> list[str]:
    """Kills what a crashed supervisor left behind; returns the names of what was found."""
    try:
        rows = json.loads(record.read_bytes())
    except (FileNotFoundError, ValueError):
        return []
    found = []
    for row in rows:
        identity = attestation.Process(int(row["pid"]), int(row["start_ticks"]))
        if kill_session(identity):
            found.append(str(row["name"]))
    record.unlink(missing_ok=True)
    return found


def kill_session(leader: attestation.Process) -> bool:
    """Kills the leader, if it is still that process, and every member of its session.

    A session's id stays taken while it has members, so a member found under the leader's pid
    that started no earlier than the leader belongs to it.
    """
    found = False
    give_up_at = time.monotonic() + GRACE_SECONDS
    while members := [p for p in _session(leader.pid) if p.start_ticks >= leader.start_ticks]:
        stranger = _process(leader.pid)
        if stranger is not None and stranger != leader:
            return found  # the pid was reused: this session is somebody else's
        found = True
        for member in members:
            _kill(member)
        if time.monotonic() > give_up_at:
            break
        time.sleep(POLL_SECONDS)
    return found


def kill_descendants() -> None:
    """Kills every process below this one; with a subreaper nothing can have slipped away."""
    give_up_at = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < give_up_at:
        left = [p for p in _children_of(os.getpid()) if not _zombie(p)]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap_orphans()
        if not left:
            return
        time.sleep(POLL_SECONDS)


def reap_orphans(known: Callable[[], Iterable[int]] = tuple) -> None:
    """Collects adopted orphans that ended, and leaves our own processes to their owners."""
    for pid in _children_of(os.getpid()):
        if _zombie(pid) and pid not in known():  # asked last: one may have come and gone meanwhile
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def tail(path: Path, size: int = TAIL_BYTES) -> str:
    """The end of a log file, from the start of a line."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            length = file.tell()
            file.seek(max(0, length - size))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return text if length <= size else text.partition("\n")[2]


def alive(process: attestation.Process) -> bool:
    """Whether just this process still runs; one that only waits to be reaped does not."""
    return _process(process.pid) == process and not _zombie(process.pid)


def _kill(process: attestation.Process) -> None:
    """Kills by a pidfd opened on exactly that process."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(process.pid)
        try:
            if _process(process.pid) == process:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)


def _process(pid: int) -> attestation.Process | None:
    try:
        return attestation.process(pid)
    except ProcessLookupError:
        return None


def _fields(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _session(sid: int) -> list[attestation.Process]:
    rows = ((pid, _fields(pid)) for pid in _pids())
    return [
        attestation.Process(pid, int(row[19]))
        for pid, row in rows
        if row and row[0] != "Z" and int(row[3]) == sid
    ]


def _children_of(pid: int) -> list[int]:
    rows = ((child, _fields(child)) for child in _pids())
    return [child for child, row in rows if row and int(row[1]) == pid]


def _zombie(pid: int) -> bool:
    row = _fields(pid)
    return not row or row[0] == "Z"
