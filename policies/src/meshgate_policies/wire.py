"""The little of HTTP/1.1 that a question to OPA needs, on one Unix socket, under one deadline.

`http.client` costs three times as much per question, and its timeout counts per read: an engine
that drips bytes would hold a call for ever.
"""

import socket
import time
from dataclasses import dataclass

MAX_HEAD_BYTES = 16_384
MAX_BODY_BYTES = 1_048_576  # a decision is 100 bytes
_READ_BYTES = 65_536
_HEAD_END = b"\r\n\r\n"


class Closed(Exception):
    """The server closed the connection.

    Attributes:
        after_bytes: whether part of an answer had come.
    """

    def __init__(self, *, after_bytes: bool) -> None:
        super().__init__("closed in mid-answer" if after_bytes else "closed before an answer")
        self.after_bytes = after_bytes


class MalformedAnswer(Exception):
    """The answer is not HTTP as OPA speaks it, or too large."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer."""

    status: int
    body: bytes
    keep_alive: bool


class Connection:
    """One connection. Not for two threads at a time; unusable after any exception."""

    def __init__(self, socket_path: str, deadline: float, *, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._max_body_bytes = max_body_bytes
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = b""
        try:
            self._socket.settimeout(_left(deadline))
            self._socket.connect(socket_path)
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        """Closes the socket; may be called twice."""
        self._socket.close()

    def ask(self, request: bytes, deadline: float) -> Answer:
        """Sends one request and reads its whole answer.

        Raises:
            Closed: the server closed the connection.
            MalformedAnswer: what came is no answer.
            TimeoutError: the deadline, in `time.monotonic()` seconds, passed.
            OSError: the socket failed in another way.
        """
        self._buffer = b""
        try:
            self._socket.settimeout(_left(deadline))
            self._socket.sendall(request)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed(after_bytes=False) from error
        end = -1
        while end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise MalformedAnswer("the head is too large")
            self._more(deadline)
            end = self._buffer.find(_HEAD_END)
        head, self._buffer = self._buffer[:end], self._buffer[end + len(_HEAD_END) :]
        status, fields = _parse_head(head)
        if b"chunked" in fields.get(b"transfer-encoding", b""):
            body = self._chunks(deadline)
        else:
            body = self._take(_size(fields.get(b"content-length", b""), 10), deadline)
        # Bytes beyond the answer would be read as the next one's.
        keep_alive = not self._buffer and fields.get(b"connection", b"") != b"close"
        return Answer(status, body, keep_alive)

    def _more(self, deadline: float) -> None:
        self._socket.settimeout(_left(deadline))
        try:
            received = self._socket.recv(_READ_BYTES)
        except ConnectionResetError as error:
            raise Closed(after_bytes=bool(self._buffer)) from error
        if not received:
            raise Closed(after_bytes=bool(self._buffer))
        self._buffer += received

    def _take(self, size: int, deadline: float) -> bytes:
        if size > self._max_body_bytes:
            raise MalformedAnswer("the body is too large")
        while len(self._buffer) < size:
            self._rest(deadline)
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _chunks(self, deadline: float) -> bytes:
        body = b""
        while True:
            size = _size(self._line(deadline).partition(b";")[0], 16)
            chunk = self._take(size, deadline)
            if self._take(2, deadline) != b"\r\n":  # OPA sends no trailers
                raise MalformedAnswer("a chunk without its end")
            if not chunk:
                return body
            body += chunk
            if len(body) > self._max_body_bytes:
                raise MalformedAnswer("the body is too large")

    def _line(self, deadline: float) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise MalformedAnswer("a line is too long")
            self._rest(deadline)
        line, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
        return line

    def _rest(self, deadline: float) -> None:
        """Reads on behind a head: an end here is in mid-answer, whatever the buffer holds."""
        try:
            self._more(deadline)
        except Closed as error:
            raise Closed(after_bytes=True) from error


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no whole answer in time")
    return left


def _parse_head(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    first, *lines = head.split(b"\r\n")
    parts = first.split(b" ", 2)
    if len(parts) < 2 or parts[0] != b"HTTP/1.1" or not parts[1].isdigit():  # noqa: PLR2004
        raise MalformedAnswer("no HTTP/1.1 status line")
    fields = {}
    for line in lines:
        name, _, value = line.partition(b":")
        fields[name.strip().lower()] = value.strip().lower()
    return int(parts[1]), fields


def _size(text: bytes, base: int) -> int:
    try:
        size = int(text, base)
    except ValueError as error:
        raise MalformedAnswer("no size") from error
    if size < 0:
        raise MalformedAnswer("a negative size")
    return size
