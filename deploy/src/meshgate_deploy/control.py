"""The supervisor's own socket: how later commands reach a mesh that is up.

One JSON line each way; a run also carries the caller's stdin, stdout and stderr, so that a
terminal passes through. Only the same user gets in, and no process of an agent.
"""

import array
import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from meshgate_identities import attestation

from meshgate_deploy.errors import EXIT_UNAVAILABLE, UserError

MAX_LINE = 262_144
Handler = Callable[[dict[str, Any], list[int], socket.socket], dict[str, Any]]


class ControlServer:
    """Answers on `control.sock` (0600), a thread per request."""

    def __init__(self, *, path: Path, handler: Handler, is_agent: Callable[[int], bool]) -> None:
        self._path = path
        self._handler = handler
        self._is_agent = is_agent
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        path.chmod(0o600)
        self._socket.listen(16)
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def close(self) -> None:
        """Removes the socket."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                peer = attestation.peer(connection)
            except ProcessLookupError:
                return
            if peer.uid != os.getuid() or self._is_agent(peer.process.pid):
                return
            fds = array.array("i")
            line, ancillary, _flags, _address = connection.recvmsg(
                MAX_LINE, socket.CMSG_LEN(3 * fds.itemsize)
            )
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
            try:
                answer = self._answer(line, list(fds), connection)
            finally:
                for descriptor in fds:
                    os.close(descriptor)
            with suppress(BrokenPipeError):
                connection.sendall(json.dumps(answer).encode() + b"\n")

    def _answer(self, line: bytes, fds: list[int], connection: socket.socket) -> dict[str, Any]:
        try:
            return self._handler(json.loads(line), fds, connection)
        except UserError as error:
            return {"error": [error.what, error.why, error.fix], "exit_code": error.exit_code}


def ask(path: Path, request: dict[str, Any], fds: tuple[int, ...] = ()) -> dict[str, Any]:
    """Asks the supervisor and waits for its answer.

    Raises:
        UserError: nobody listens, or what the supervisor refused.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(path))
        except OSError as error:
            raise UserError(
                "no mesh is up in this project", why=str(error), fix="run `meshgate up`",
                exit_code=EXIT_UNAVAILABLE,
            ) from error  # fmt: skip
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        connection.sendmsg([json.dumps(request).encode()], rights)
        with connection.makefile("rb") as stream:
            line = stream.readline()
    if not line:
        raise UserError(
            "the supervisor gave no answer", why="it ended or refused this process", fix="run `meshgate ps`",
            exit_code=EXIT_UNAVAILABLE,
        )  # fmt: skip
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        what, why, fix = answer["error"]
        raise UserError(what, why=why, fix=fix, exit_code=answer["exit_code"])
    return answer
