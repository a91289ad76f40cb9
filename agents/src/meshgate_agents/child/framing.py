"""Frames on the launcher's socket: four bytes of length, then one JSON object in UTF-8."""

import json
import socket
import struct
from collections.abc import Callable
from typing import Any

MAX_FRAME_BYTES = 33_554_432  # 8x gRPC's default 4 MiB message, room for JSON escapes
_LENGTH = struct.Struct("!I")

Message = dict[str, Any]


class BadFrame(Exception):
    """The bytes are no frame of ours: too long, cut off, or no JSON object."""


def send(connection: socket.socket, message: Message) -> None:
    """Writes one frame.

    Raises:
        BadFrame: the message is longer than MAX_FRAME_BYTES.
        OSError: the other side is gone.
    """
    data = json.dumps(message, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass")
    if len(data) > MAX_FRAME_BYTES:
        raise BadFrame(f"a frame of {len(data)} bytes is over {MAX_FRAME_BYTES}")
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket, room: Callable[[int], None] | None = None) -> Message | None:
    """Reads one frame.

    Args:
        connection: whence.
        room: asked for the frame's size before any of it is read.

    Returns:
        The object, or None when the other side closed before a first byte.

    Raises:
        BadFrame: see there.
    """
    head = _exactly(connection, _LENGTH.size)
    if not head:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME_BYTES:
        raise BadFrame(f"a frame of {length} bytes is over {MAX_FRAME_BYTES}")
    if room is not None:
        room(length)
    data = _exactly(connection, length)
    if len(data) != length:
        raise BadFrame("the frame is cut off")
    try:
        message = json.loads(data)
    except ValueError as error:
        raise BadFrame("the frame is no JSON") from error
    if not isinstance(message, dict):
        raise BadFrame("the frame is no JSON object")
    return message


def _exactly(connection: socket.socket, size: int) -> bytes:
    """Reads `size` bytes; b"" when nothing comes at all."""
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(size - len(parts), 1 << 20))
        if not part:
            if parts:
                raise BadFrame("the frame is cut off")
            return b""
        parts += part
    return bytes(parts)
