"""The supervisor's control socket: one request per connection, answers as JSON lines.

Admitted are processes of the same user that the supervisor did not start, directly or indirectly:
every process of an agent is a descendant of the supervisor, which adopts orphans,
or was of an earlier one and bears its mark. A run request may carry the caller's standard streams, so
that a terminal passes through.
"""

import contextlib
import errno
import json
import os
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from meshgate_identities import attestation

from meshgate_deploy import strays
from meshgate_deploy.accepting import accept_each
from meshgate_deploy.errors import Denied, DependencyUnavailable, MeshError, UsageError, from_dict

MAX_REQUEST_BYTES = 8_388_608  # the gateway's largest message, 4 MiB, in base64 and JSON
REQUEST_SECONDS = 5.0
STREAMS = 3

Send = Callable[[dict[str, Any]], None]
Handle = Callable[[dict[str, Any], list[int], socket.socket, Send], None]


class ControlServer:
    """Serves requests, a thread each. `handle` owns the descriptors it is given."""

    def __init__(self, *, path: Path, handle: Handle) -> None:
        self._path, self._handle = path, handle
        self._own = attestation.process(os.getpid())
        self._listener, self._closed = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), threading.Event()

    def start(self) -> None:
        """Opens the socket with mode 0600.

        Raises:
            DependencyUnavailable: another supervisor of this project is up.
        """
        if reachable(self._path):
            raise DependencyUnavailable(
                "the mesh is up already",
                why=f"{self._path} answers",
                next_step="meshgate ps, or meshgate down",
            )
        self._path.unlink(missing_ok=True)
        self._listener.bind(str(self._path))
        self._path.chmod(0o600)
        self._listener.listen(64)
        threading.Thread(target=self._serve, name="control", daemon=True).start()

    def close(self) -> None:
        """Stops serving."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _serve(self) -> None:
        accept_each(self._listener, self._closed, self._converse)

    def _converse(self, connection: socket.socket) -> None:
        def send(answer: dict[str, Any]) -> None:
            with contextlib.suppress(OSError):  # the asker went away: nobody to tell
                connection.sendall(json.dumps(answer).encode() + b"\n")

        descriptors: list[int] = []
        with connection:
            try:
                self._admit(connection)
                connection.settimeout(REQUEST_SECONDS)
                request = _receive(connection, descriptors)
                connection.settimeout(None)
                self._handle(request, descriptors, connection, send)
            except MeshError as error:
                send({"error": error.as_dict()})
            except (OSError, ValueError, KeyError, TypeError) as error:
                send({"error": {"what": "the request failed", "why": repr(error), "exit_code": 1}})
            finally:
                for descriptor in descriptors:
                    with contextlib.suppress(OSError):
                        os.close(descriptor)

    def _admit(self, connection: socket.socket) -> None:
        try:
            found = attestation.peer(connection)
        except ProcessLookupError as error:
            raise Denied("the asking process has ended") from error
        if found.uid != os.getuid():
            raise Denied(f"uid {found.uid} may not command this mesh", why=f"it belongs to uid {os.getuid()}")
        try:
            ours = attestation.is_descendant(found.process.pid, self._own)
        except ProcessLookupError as error:
            raise Denied("where the asking process came from cannot be told", why="a parent ended") from error
        if ours:
            raise Denied("a process of the mesh may not command it", why=f"pid {found.process.pid}")
        if strays.has_no_new_privs(found.process.pid) and not strays.has_no_new_privs(os.getpid()):
            raise Denied(  # what a program left when supervisor and launcher were killed at once is so marked
                "a process without a way to privileges may not command a mesh that has one",
                why=f"pid {found.process.pid} has no_new_privs, as every program of an agent",
                next_step="the same command in the shell where `meshgate up` was given",
            )


def reachable(path: Path) -> bool:
    """Whether a supervisor listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return False
    return True


def connect(path: Path) -> socket.socket:
    """Connects to the supervisor.

    Raises:
        DependencyUnavailable: none is there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise DependencyUnavailable(
            "the mesh is not up", why=f"{path}: {error.strerror}", next_step="meshgate up"
        ) from error
    return sock


def ask(
    path: Path, request: dict[str, Any], *, descriptors: tuple[int, ...] = ()
) -> Generator[dict[str, Any], None, None]:
    """Sends a request and yields its answers.

    Raises:
        MeshError: what the supervisor says went wrong.
    """
    with connect(path) as sock:
        yield from converse(sock, request, descriptors)


def converse(
    sock: socket.socket, request: dict[str, Any], descriptors: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """The same on an open connection.

    Raises:
        UsageError: more than is taken; nothing was sent.
        MeshError: as `ask`.
    """
    data = json.dumps(request).encode() + b"\n"
    if len(data) > MAX_REQUEST_BYTES:
        raise _too_large(len(data))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused unread: the answer says why
        sent = socket.send_fds(sock, [data], list(descriptors)) if descriptors else 0
        sock.sendall(data[sent:])
    with sock.makefile("rb") as lines:
        for line in lines:
            answer = json.loads(line)
            if "error" in answer:
                raise from_dict(answer["error"])
            yield answer


def ask_once(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """A request with one answer."""
    # Closed here: of a Ctrl-C that comes while a forgotten generator is taken down nobody hears.
    with contextlib.closing(ask(path, request)) as answers:
        for answer in answers:
            return answer
    raise DependencyUnavailable("the supervisor gave no answer", next_step="meshgate ps")


def _too_large(size: int) -> UsageError:
    return UsageError(
        f"the request is too large: {size} bytes",
        why=f"the supervisor takes {MAX_REQUEST_BYTES}",
        next_step="give a file's path or an address in place of what it holds",
    )


def _receive(connection: socket.socket, descriptors: list[int]) -> dict[str, Any]:
    data = bytearray()
    while not data.endswith(b"\n"):
        part, passed, flags, _address = socket.recv_fds(connection, 65_536, STREAMS)
        descriptors.extend(passed)
        data += part
        if flags & socket.MSG_CTRUNC:
            raise OSError(errno.EMFILE, "the supervisor has no room for the request's streams")
        if not part:
            raise UsageError("the request ended in its middle", next_step="the same command again")
        if len(data) > MAX_REQUEST_BYTES:
            raise _too_large(len(data))
    request = json.loads(data)
    if not isinstance(request, dict):
        raise TypeError("a request is one JSON object")
    return request
