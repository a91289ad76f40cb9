"""The payment service: a process of its own, with its own book of what was really paid."""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from meshgate_deploy.demo_services.http_json import Answer, JsonServer


def serve(book: Path, port_file: Path, key: str) -> None:
    """Serves until it is ended; every refund is one line of the book."""
    lock = threading.Lock()

    def handle(_path: str, body: dict[str, Any], headers: dict[str, str]) -> Answer:
        if headers.get("Authorization") != f"Bearer {key}":
            return 401, {"error": "wrong key"}
        with lock, book.open("a") as file:
            file.write(json.dumps(body) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return 200, {"paid": body["amount"], "order_id": body["order_id"]}

    server = JsonServer(handle)
    port_file.write_text(str(server.port))
    server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), os.environ["PAYMENT_KEY"])
