"""The child's side of the launcher's socket: length-prefixed JSON, one connection per thread."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading

SOCKET_VARIABLE = "MESHGATE_SOCKET"
MAX_FRAME = 8 * 1024 * 1024
_LENGTH = struct.Struct(">I")
_local = threading.local()


class BrokerGone(BaseException):
    """The launcher is away or ended the attempt.

    A BaseException on purpose: CrewAI turns ordinary ones into text for the model, and "could not
    ask" must never become that.
    """


def ask(request: dict[str, object]) -> dict[str, object]:
    """Sends one request and waits for its answer.

    Raises:
        BrokerGone: no answer will come; the program cannot go on.
    """
    try:
        connection = _connection()
        write_frame(connection, request)
        answer = read_frame(connection)
    except OSError as error:
        _local.connection = None
        raise BrokerGone(f"the launcher is gone: {error}") from error
    if answer is None:
        _local.connection = None
        raise BrokerGone("the launcher ended the attempt")
    return answer


def _connection() -> socket.socket:
    # A forked child must not share its parent's connection: frames would mix.
    if getattr(_local, "connection", None) is None or _local.pid != os.getpid():
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(os.environ[SOCKET_VARIABLE])
        _local.connection, _local.pid = connection, os.getpid()
    connection_of_thread: socket.socket = _local.connection
    return connection_of_thread


def write_frame(connection: socket.socket, content: dict[str, object]) -> None:
    """Writes one frame: four bytes of length, then JSON."""
    data = json.dumps(content).encode()
    if len(data) > MAX_FRAME:
        raise ValueError(f"a frame of {len(data)} bytes is over the limit of {MAX_FRAME}")
    connection.sendall(_LENGTH.pack(len(data)) + data)


def read_frame(connection: socket.socket) -> dict[str, object] | None:
    """Reads one frame; None when the other side has closed."""
    head = _exactly(connection, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME:
        raise OSError(f"a frame of {length} bytes is over the limit of {MAX_FRAME}")
    data = _exactly(connection, length)
    if data is None:
        return None
    content = json.loads(data)
    if not isinstance(content, dict):
        raise OSError("a frame is not a JSON object")
    return content


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    parts = []
    while count:
        part = connection.recv(count)
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
