"""A small HTTP server for the two services: loopback only, bounded, gone when its parent is gone."""

import json
import os
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MAX_BODY_BYTES = 1_048_576  # a conversation of the demo stays far below it
IDLE_SECONDS = 30  # a silent connection is closed


@dataclass(frozen=True, slots=True)
class Request:
    """What a handler sees."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


Answer = tuple[int, Mapping[str, Any]]


class LoopbackServer(ThreadingHTTPServer):
    """Serves one function on 127.0.0.1, on a port that the system chooses."""

    daemon_threads = True

    def __init__(self, respond: Callable[[Request], Answer]) -> None:
        self.respond = respond
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def server_bind(self) -> None:
        """Binds without the reverse name lookup of the base class, which may ask a name server."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    server: LoopbackServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            self._send(413, {"error": {"message": "the body is too large or has no length"}})
            return
        try:
            body = json.loads(self.rfile.read(int(length)))
        except ValueError:
            self._send(400, {"error": {"message": "the body is no JSON"}})
            return
        self._answer(body)

    def _answer(self, body: Any) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._send(*self.server.respond(Request(self.command, self.path, headers, body)))

    def _send(self, status: int, answer: Mapping[str, Any]) -> None:
        body = json.dumps(answer).encode()
        head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        if self.close_connection:
            head += "Connection: close\r\n"
        # One write: two would wait for the peer's delayed acknowledgement, 40 ms a call.
        self.wfile.write(head.encode() + b"\r\n" + body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name is http.server's)
        """Says nothing: the services keep books, not access logs."""


def serve_until_parent_is_gone(server: LoopbackServer, *, ready_file: Path) -> None:
    """Writes the URL to the ready file and serves until standard input ends.

    The parent holds the other end of standard input, so its death, however sudden, ends this too.
    """
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    part = ready_file.with_suffix(".part")
    part.write_text(server.url)
    part.replace(ready_file)
    while os.read(sys.stdin.fileno(), 4096):
        pass
    server.shutdown()
    server.server_close()
