"""Programs that are forked from a process which has imported CrewAI, instead of being executed.

A program that was forked is no child of this process but of its keeper, which is at the other end of a
connection: it tells how the program ended, and closing the connection ends the program with all that is below
it. Where anything is in doubt there is no fork, and the program is executed.
"""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshgate_agents.child.keeper import ASK, READY

READY_SECONDS = 2.0  # as long as an import of CrewAI takes, which a fork saves
ANSWER_SECONDS = 5.0
END_SECONDS = 5.0
MAX_WORD_BYTES = 4096
LOST = -int(signal.SIGKILL)  # the kernel kills the program when its keeper dies
_UCRED = struct.Struct("3i")


Streams = tuple[int | None, int | None, int | None]  # stdin, stdout, stderr


class NotForked(Exception):
    """Why a program is executed."""


@dataclass(slots=True, eq=False)
class Forked:
    """A program that was forked. Safe for threads.

    Attributes:
        keeper: the process whose child it is.
    """

    pid: int
    keeper: int
    pidfd: int
    connection: socket.socket | None
    note: Callable[[str], None]
    returncode: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def poll(self) -> int | None:
        """Its status, negative after a signal; None while it runs. Its pid is its own until this tells."""
        with self._lock:
            while self.returncode is None and self.connection is not None:
                try:
                    word = self.connection.recv(MAX_WORD_BYTES, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return None
                except OSError:
                    word = b""
                self._hear(json.loads(word) if word else {"status": LOST})
            return self.returncode

    def until_ended(self) -> None:
        """Waits until `poll` has something to tell."""
        with self._lock:
            if self.connection is None:
                return
            again = self.connection.dup()
        with again:
            poller = select.poll()
            poller.register(again, select.POLLIN)
            while self.poll() is None:
                poller.poll()

    def end(self) -> None:
        """Kills it with all that is below it, and waits for the end of that."""
        with self._lock:
            if self.connection is None:
                return
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_WR)
                self.connection.settimeout(END_SECONDS)
                while self.connection.recv(MAX_WORD_BYTES):
                    continue
            self._hear({"status": LOST})

    def _hear(self, told: Mapping[str, Any]) -> None:
        if "executed" in told:
            self.note(f"executed, not forked: {told['executed']}")
            return
        self.returncode = int(told["status"])
        if self.connection is not None:
            self.connection.close()
            self.connection = None
            os.close(self.pidfd)


class Forks:
    """The fork servers that this process may ask.

    Args:
        servers: by the interpreter that each runs in, the socket where it is asked.
        note: told once of each reason why a program is executed.
    """

    def __init__(self, servers: Mapping[str, Path], note: Callable[[str], None]) -> None:
        self._servers, self._note = dict(servers), note
        self._said: set[str] = set()

    def start(  # noqa: PLR0913 - what a program is
        self,
        command: Sequence[str],
        *,
        python: str,
        cwd: Path | None,
        env: Mapping[str, str],
        streams: Streams,
        descriptors: int,
        rules: str,
    ) -> Forked | None:
        """Forks a program; None when it is to be executed.

        Args:
            command: its words.
            python: where the first of them was found.
            cwd: its folder; ours when None.
            env: all its variables.
            streams: its standard ones; None is ours, and of stdin DEVNULL is nothing to read.
            descriptors: how many it may have.
            rules: what it may do, as `adopt` takes it.
        """
        if not self._servers:
            return None
        request = {
            "argv": list(command), "python": os.path.abspath(python), "env": dict(env),  # noqa: PTH100 - no link followed
            "cwd": str(cwd or Path.cwd()), "descriptors": descriptors, "rules": rules,
        }  # fmt: skip
        try:
            return self._asked(self._server(command, request), request, streams)
        except NotForked as error:
            self._say(f"executed, not forked: {error}")
        except (OSError, ValueError, KeyError) as error:
            self._say(f"executed, not forked: the fork server does not answer ({type(error).__name__})")
        return None

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._note(text)

    def _server(self, command: Sequence[str], request: Mapping[str, Any]) -> Path:
        why = _unfit(command) or ("" if Path(request["cwd"]).is_dir() else "its folder is not there")
        if why:
            raise NotForked(why)
        python = str(request["python"])
        for known, socket_path in self._servers.items():
            if _place(known) == _place(python):
                return socket_path
        raise NotForked(f"no fork server has the interpreter {python}")

    def _asked(self, path: Path, request: Mapping[str, Any], streams: Streams) -> Forked:
        with contextlib.ExitStack() as opened:
            connection = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            connection.settimeout(READY_SECONDS)
            connection.connect(str(path))
            _check_server(connection)
            if connection.recv(MAX_WORD_BYTES) != READY:
                raise NotForked("the fork server does not take this process")
            connection.settimeout(ANSWER_SECONDS)
            opened.callback(_hang_up, connection)  # whatever fails from here on, nothing is left of it
            _, *texts = (number if stream is None else stream for number, stream in enumerate(streams))
            with _input(streams[0]) as given, _in_memory(request) as asked:
                socket.send_fds(connection, [ASK], [given, *texts, asked])
            while "pid" not in (told := _told(connection)):
                self._say(f"executed, not forked: {told['executed']}")
            forked = Forked(told["pid"], told["keeper"], told["pidfd"], connection, self._say)
            connection.settimeout(None)
            opened.pop_all()
            return forked


def _told(connection: socket.socket) -> dict[str, Any]:
    """A message, with the descriptor that it may bring."""
    word, descriptors, _, _ = socket.recv_fds(connection, MAX_WORD_BYTES, 1)
    return {**json.loads(word), **({"pidfd": descriptors[0]} if descriptors else {})}


def _hang_up(connection: socket.socket) -> None:
    """Ends what was begun, and waits for the end of it."""
    with contextlib.suppress(OSError):
        connection.settimeout(END_SECONDS)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(MAX_WORD_BYTES):
            continue


def _check_server(connection: socket.socket) -> None:
    """The supervisor opened that socket; nobody else's is told what a program is to be.

    Raises:
        NotForked: another process did.
    """
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _gid = _UCRED.unpack(credentials)
    if pid != os.getppid() or uid != os.getuid():
        raise NotForked(f"the socket of the fork server is of pid {pid}, not of the supervisor")


def _unfit(command: Sequence[str]) -> str:
    """Why a command is not one that a fork server runs."""
    words = command[1:]
    if not words:
        return "it names no file and no module"
    if words[0] in ("-m", "-c"):
        if len(words) == 1:
            return f"nothing follows {words[0]}"
    elif words[0].startswith("-"):
        return f"{words[0]} is for the interpreter"
    return "it has a terminal of its own" if _has_terminal() else ""


def _has_terminal() -> bool:
    """Whether a terminal gives this process's programs its signals: it takes groups of our session alone."""
    try:
        os.tcgetpgrp(0)
    except OSError:
        return False
    return True


def _place(python: str) -> tuple[str, str]:
    """An interpreter: a folder, because an environment is found from there, and what lies there."""
    return os.path.dirname(python), os.path.realpath(python)  # noqa: PTH120 - no link of the folder followed


@contextlib.contextmanager
def _input(stdin: int | None) -> Iterator[int]:
    if stdin != subprocess.DEVNULL:
        yield 0 if stdin is None else stdin
        return
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield nothing
    finally:
        os.close(nothing)


@contextlib.contextmanager
def _in_memory(request: Mapping[str, Any]) -> Iterator[int]:
    """A descriptor from which the new process alone reads what it is to be."""
    descriptor = os.memfd_create("request", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, json.dumps(request).encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)
