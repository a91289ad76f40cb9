"""The way to the launcher. A connection serves one request at a time and, where the launcher lets it, many.

An answer that does not come is never turned into text for a model: the process ends instead.
"""

import functools
import os
import socket
import sys
import threading
from typing import NoReturn

from .framing import BadFrame, Message, receive, send

SOCKET_VARIABLE = "MESHGATE_SOCKET"
FAILED = 125  # exit status of a failure of ours, as env(1) and docker(1) use it
MAX_AT_REST = 2  # kept connections of one process: a crew at work needs one, its sign of life another
MAX_BEGUN = 16  # conversations of one process that wait for their second request; the launcher has 128


def end_process(reason: str) -> NoReturn:
    """Ends this process now, past every handler, with one line on stderr."""
    try:
        sys.stdout.flush()
        os.write(2, f"meshgate: {reason}\n".encode("utf-8", "replace"))
    finally:
        os._exit(FAILED)  # also when the streams are closed


class Channel:
    """Sends requests to the launcher. Safe for threads; survives fork: a connection is its process's own."""

    def __init__(self, *, socket_path: str) -> None:
        self._path = socket_path
        self._pool = _Pool()

    def ask(self, request: Message) -> Message:
        """Sends one request and waits for its answer, for as long as the launcher needs.

        Ends the process when the launcher is gone or refuses this process.
        """
        return self._asked(self._connected(), request)

    def begin(self, request: Message) -> "Begun | None":
        """Sends a request that gets no answer, and whose end will be told on the same connection.

        Returns:
            Where to tell it; None when nothing was sent, because this process has begun so much already.
        """
        if not self._pool.begun(1):
            return None
        try:
            return Begun(self, self._sent(self._connected(), request))
        except BaseException:  # no conversation, so that nobody will end it
            self._pool.begun(-1)
            raise

    def ask_begun(self, connection: socket.socket, request: Message) -> Message:
        """As `ask`, on a connection of `begin`; once."""
        self._pool.begun(-1)
        return self._asked(connection, request)

    def _connected(self) -> socket.socket:
        kept = self._pool.take()
        if kept is not None:
            return kept
        if not self._path:
            end_process("this process is not connected to a launcher")
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(self._path)
        except OSError as error:
            _unanswered(error)
        return connection

    def _sent(self, connection: socket.socket, request: Message) -> socket.socket:
        try:
            send(connection, request)
        except (OSError, BadFrame) as error:
            _unanswered(error)
        except BaseException:  # nobody knows how much of it was sent: no other request may follow
            connection.close()
            raise
        return connection

    def _asked(self, connection: socket.socket, request: Message) -> Message:
        try:
            answer = receive(self._sent(connection, request))
        except (OSError, BadFrame) as error:
            _unanswered(error)
        if answer is None:
            end_process("the launcher closed the connection without an answer")
        if answer.get("state") == "end":
            end_process(str(answer.get("text", "the launcher ended this run")))
        if answer.pop("keep", False):
            self._pool.put(connection)
        else:
            connection.close()
        return answer

    def lead_to(self, socket_path: str) -> None:
        """Where requests go from now on."""
        self._path = socket_path


class _Later:
    """In a fork server: the one channel of all that are handed out before there is a launcher."""

    channel: "Channel | None" = None


def postpone() -> None:
    """This process has no launcher; until it is connected, every request ends it."""
    _Later.channel = Channel(socket_path="")


def connect() -> None:
    """Now it has one."""
    if _Later.channel is not None:
        _Later.channel.lead_to(os.environ.get(SOCKET_VARIABLE, ""))


class Begun:
    """Something that the launcher was told of, and whose end it will be told."""

    def __init__(self, channel: Channel, connection: socket.socket) -> None:
        self._channel, self._connection = channel, connection
        self._process = os.getpid()

    def ask(self, request: Message) -> Message:
        """The end of it; once."""
        if os.getpid() != self._process:  # forked meanwhile: the connection is the other one's
            return self._channel.ask(request)
        return self._channel.ask_begun(self._connection, request)


class _Pool:
    """Connections at rest, and how many are begun: of the process that asks, none of its parent's."""

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """A lock that another thread held at the fork would be held for ever."""
        self._lock = threading.Lock()
        self._at_rest: list[socket.socket] = []
        self._begun = 0

    def take(self) -> "socket.socket | None":
        with self._lock:
            return self._at_rest.pop() if self._at_rest else None

    def put(self, connection: socket.socket) -> None:
        with self._lock:
            if len(self._at_rest) < MAX_AT_REST:
                self._at_rest.append(connection)
                return
        connection.close()

    def begun(self, change: int) -> bool:
        """Counts one that begins or ends; False for one that may not begin."""
        with self._lock:
            if change > 0 and self._begun >= MAX_BEGUN:
                return False
            self._begun = max(0, self._begun + change)
            return True


def _unanswered(error: Exception) -> NoReturn:
    end_process(f"the launcher does not answer ({type(error).__name__}: {error})")


def from_environment() -> Channel:
    """The channel named by MESHGATE_SOCKET; without the variable every request ends the process."""
    if _Later.channel is not None:
        return _Later.channel
    return _channel(os.environ.get(SOCKET_VARIABLE, ""))


@functools.cache
def _channel(path: str) -> Channel:
    """One for all of a process, so that what is kept for one is there for all."""
    return Channel(socket_path=path)
