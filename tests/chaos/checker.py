"""The independent checker: the world outside of meshgate, and an append-only log of what reached it.

`python checker.py --log FILE --ready-file FILE`: a payment service, the model of the agents, and a place
where either can be held in the middle. It is a process of its own, knows nothing of meshgate, and each
line of its log is on disk before it answers anybody. Ends when its standard input ends.

Events (`e`): hello, asked, replied, quoted, effect, repeat, read, answered, closed, between, passed, held;
and what the driver notes: begun, kill, resolved, final.
"""

import argparse
import json
import os
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NOTED = ("begun", "kill", "resolved", "final")
CLOSE_SECONDS = 10.0  # a reader that was stopped or killed closes late, or never

Body = dict[str, Any]


class Log:
    """One JSON line per event; on disk when `append` returns."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file = path.open("a", encoding="utf-8")
        self._number = 0

    def append(self, event: str, **fields: Any) -> None:
        """Writes an event with its number and its time."""
        with self._lock:
            self._number += 1
            line = json.dumps({"n": self._number, "t": time.time(), "e": event, **fields})
            self._file.write(line + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


class Gates:
    """Where a request waits as long as its gate is shut."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._changed = threading.Condition()
        self._shut: set[tuple[str, str]] = set()

    def shut(self, point: str, name: str) -> None:
        """From now on requests wait there."""
        with self._changed:
            self._shut.add((point, name))

    def open(self, point: str, name: str) -> None:
        """Lets them go on."""
        with self._changed:
            self._shut.discard((point, name))
            self._changed.notify_all()

    def enter(self, point: str, name: str) -> None:
        """Waits while the gate is shut; the log says so."""
        with self._changed:
            if (point, name) not in self._shut:
                return
            self._log.append("held", point=point, name=name)
            self._changed.wait_for(lambda: (point, name) not in self._shut)


class World:
    """What the desk's tools and its model speak to."""

    def __init__(self, log: Log) -> None:
        self._log, self._gates = log, Gates(log)
        self._lock = threading.Lock()
        self._receipts: dict[str, str] = {}
        self._paid = 0

    def hello(self, body: Body, _key: str | None) -> Body:
        """A program begins."""
        self._log.append("hello", **body)
        self._gates.enter("hello", body.get("app", ""))
        return {}

    def model(self, body: Body, _key: str | None) -> Body:
        """Asked for an order: its tool; shown the tool's result: the answer of the task."""
        about = {name: body[name] for name in ("run", "app", "life", "order") if name in body}
        turn = "call" if body["result"] is None else "answer"
        self._log.append("asked", turn=turn, **about)
        self._gates.enter("model" if turn == "call" else "answer", body["order"])
        self._log.append("replied", turn=turn, **about)
        return {} if turn == "call" else {"text": f"{body['order']}: {body['result']}"}

    def between(self, body: Body, _key: str | None) -> Body:
        """A program finished a task, now or in a replay."""
        self._log.append("between", **body)
        self._gates.enter("between", f"{body['run']}:{body['task']}")
        self._log.append("passed", **body)
        return {}

    def quote(self, body: Body, _key: str | None) -> Body:
        """A tool's body has begun. No effect."""
        self._log.append("quoted", **body)
        self._gates.enter("quote", body["order"])
        return {}

    def serve(self, body: Body, key: str | None) -> Body:
        """The effect: in the log first, then the answer."""
        if body["tool"] == "look":
            self._log.append("read", **body)
            text = f"{body['order']} costs 20"
        else:
            text = f"{body['order']} receipt {self._receipt(body, key)}"
        self._gates.enter("serve", body["order"])
        self._log.append("answered", **body)
        return {"text": text}

    def _receipt(self, body: Body, key: str | None) -> str:
        """A payment; under a key that was seen it is the first one."""
        with self._lock:
            known = self._receipts.get(key) if key else None
            if known is not None:
                self._log.append("repeat", key=key, receipt=known, **body)
                return known
            self._paid += 1
            receipt = f"R-{self._paid}"
            if key:
                self._receipts[key] = receipt
            self._log.append("effect", key=key, receipt=receipt, **body)
            return receipt

    def closed(self, body: Body) -> None:
        """The tool has read its answer, and closed."""
        self._log.append("closed", **body)

    # The driver's side.

    def shut(self, body: Body, _key: str | None) -> Body:
        """Shuts a gate."""
        self._gates.shut(body["point"], body["name"])
        return {}

    def open(self, body: Body, _key: str | None) -> Body:
        """Opens it."""
        self._gates.open(body["point"], body["name"])
        return {}

    def note(self, body: Body, _key: str | None) -> Body:
        """Something only the driver knows."""
        event = body.pop("e")
        if event not in NOTED:
            raise KeyError(event)
        self._log.append(event, **body)
        return {}

    def handler(self, path: str) -> Callable[[Body, str | None], Body] | None:
        """What serves a path."""
        served = ("hello", "model", "between", "quote", "serve", "shut", "open", "note")
        return getattr(self, path) if path in served else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    world: World

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        serve = self.world.handler(self.path.strip("/"))
        if serve is None:
            self.send_error(404)
            return
        about = dict(body)
        self._send(json.dumps(serve(body, self.headers["Idempotency-Key"])).encode())
        if self.path == "/serve" and self._was_read():
            self.world.closed(about)

    def _send(self, answer: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\nConnection: close\r\n\r\n"
        self.close_connection = True
        try:
            self.connection.sendall(head.encode() + answer)
        except OSError:  # whoever asked was killed meanwhile
            return

    def _was_read(self) -> bool:
        """Waits until the other side closes in order."""
        self.connection.settimeout(CLOSE_SECONDS)
        try:
            return self.connection.recv(1) == b""
        except (OSError, TimeoutError):
            return False

    def log_message(self, *_arguments: Any) -> None:
        """The log is elsewhere."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = socket.SOMAXCONN

    def server_bind(self) -> None:
        """Without the base class's reverse name lookup."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])


def main() -> None:
    """Serves until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--ready-file", type=Path, required=True)
    options = parser.parse_args()
    _Handler.world = World(Log(options.log))
    server = _Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    part = options.ready_file.with_suffix(".part")
    part.write_text(f"http://127.0.0.1:{server.server_port}")
    part.replace(options.ready_file)
    while os.read(sys.stdin.fileno(), 4096):
        pass
    server.shutdown()


if __name__ == "__main__":
    main()
