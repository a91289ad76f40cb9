"""A small loopback JSON server: one write per answer, no delayed ACK."""

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, Any]]
Handler = Callable[[str, dict[str, Any], dict[str, str]], Answer]
MAX_BODY = 4 * 1024 * 1024


class JsonServer:
    """Serves POST requests with a handler of (path, body, headers)."""

    def __init__(self, handler: Handler, port: int = 0) -> None:
        class Requests(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                super().setup()

            def do_POST(self) -> None:
                length = min(int(self.headers.get("Content-Length", "0")), MAX_BODY)
                body = json.loads(self.rfile.read(length) or b"{}")
                status, answer = handler(self.path, body, dict(self.headers.items()))
                data = json.dumps(answer).encode()
                head = (
                    f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(data)}\r\n\r\n"
                )
                self.wfile.write(head.encode() + data)

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Requests)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def start(self) -> None:
        """Begins to serve."""
        self._thread.start()

    def serve_forever(self) -> None:
        """Serves on this thread until the process ends."""
        self._server.serve_forever()

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()
