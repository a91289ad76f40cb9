"""The way to the launcher: one connection per request, so threads and forks need no care.

An answer that does not come is never turned into text for a model: the process ends instead.
"""

import os
import socket
import sys
from typing import NoReturn

from .framing import BadFrame, Message, receive, send

SOCKET_VARIABLE = "MESHGATE_SOCKET"
FAILED = 125  # exit status of a failure of ours, as env(1) and docker(1) use it


def end_process(reason: str) -> NoReturn:
    """Ends this process now, past every handler, with one line on stderr."""
    try:
        sys.stdout.flush()
        os.write(2, f"meshgate: {reason}\n".encode("utf-8", "replace"))
    finally:
        os._exit(FAILED)  # also when the streams are closed


class Channel:
    """Sends requests to the launcher. Safe for threads; survives fork."""

    def __init__(self, *, socket_path: str) -> None:
        self._path = socket_path

    def ask(self, request: Message) -> Message:
        """Sends one request and waits for its answer, for as long as the launcher needs.

        Ends the process when the launcher is gone or refuses this process.
        """
        if not self._path:
            end_process("this process is not connected to a launcher")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(self._path)
                send(connection, request)
                answer = receive(connection)
        except (OSError, BadFrame) as error:
            end_process(f"the launcher does not answer ({type(error).__name__}: {error})")
        if answer is None:
            end_process("the launcher closed the connection without an answer")
        if answer.get("state") == "end":
            end_process(str(answer.get("text", "the launcher ended this run")))
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


def from_environment() -> Channel:
    """The channel named by MESHGATE_SOCKET; without the variable every request ends the process."""
    if _Later.channel is not None:
        return _Later.channel
    return Channel(socket_path=os.environ.get(SOCKET_VARIABLE, ""))
