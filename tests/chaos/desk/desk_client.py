"""How the desk speaks to the world outside: one JSON request, one JSON answer, loopback only."""

import http.client
import json
import os
from typing import Any
from urllib.parse import urlsplit


def ask(path: str, *, key: str | None = None, **body: Any) -> Any:
    """Posts to the checker's service; waits as long as that takes."""
    place = urlsplit(os.environ["CHECKER_URL"])
    connection = http.client.HTTPConnection(place.hostname or "", place.port)
    headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
    try:
        connection.request("POST", f"/{path}", json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()  # the service notices: its answer was read
    if answer.status != http.HTTPStatus.OK:
        raise RuntimeError(f"{path}: {answer.status} {text!r}")
    return json.loads(text)
