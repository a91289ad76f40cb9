"""Asks an OPA on a Unix socket for a decision. The path is constant; no input can choose it."""

import http.client
import json
import socket
import threading
from collections.abc import Mapping
from typing import Final

from meshgate_policies.errors import PolicyUnavailable

DECISION_PATH: Final = "/v1/data/meshgate/decision"
TIMEOUT_SECONDS = 1.0  # OPA answers in 0.1 ms; a second means it hangs
MAX_ANSWER_BYTES = 1_048_576
HTTP_OK = 200


class Undefined:
    """The rule had no value: not the same as null, and never an allow."""

    def __repr__(self) -> str:
        return "UNDEFINED"


UNDEFINED: Final = Undefined()


class UnixConnection(http.client.HTTPConnection):
    """HTTP/1.1 over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("opa", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connects to the socket's path; the host name is never looked up."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class OpaEngine:
    """One OPA. Safe for threads: each has a kept-alive connection of its own.

    A request is sent again only when the server had closed an idle connection, never after a
    timeout, so a slow engine costs one timeout.
    """

    def __init__(self, *, socket_path: str, token: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._socket_path = socket_path
        self._timeout = timeout_seconds
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._local = threading.local()

    def evaluate(self, policy_input: Mapping[str, object]) -> object:
        """The raw value of the decision, or UNDEFINED.

        Raises:
            PolicyUnavailable: no whole answer in time, or not status 200.
        """
        body = json.dumps({"input": policy_input}, separators=(",", ":")).encode()
        reused: UnixConnection | None = getattr(self._local, "connection", None)
        self._local.connection = None
        if reused is not None:
            try:
                return self._ask(reused, body)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                reused.close()
            except (OSError, http.client.HTTPException, ValueError) as error:
                reused.close()
                raise PolicyUnavailable(f"OPA gave no answer: {error!r}") from error
        fresh = UnixConnection(self._socket_path, self._timeout)
        try:
            return self._ask(fresh, body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            fresh.close()
            raise PolicyUnavailable(f"OPA gave no answer: {error!r}") from error

    def _ask(self, connection: UnixConnection, body: bytes) -> object:
        connection.request("POST", DECISION_PATH, body, self._headers)
        response = connection.getresponse()
        text = response.read(MAX_ANSWER_BYTES + 1)
        if response.status != HTTP_OK or len(text) > MAX_ANSWER_BYTES:
            connection.close()
            raise PolicyUnavailable(f"OPA answered {response.status} with {len(text)} bytes")
        answer = json.loads(text)
        self._local.connection = connection
        if not isinstance(answer, dict):
            return answer
        return answer.get("result", UNDEFINED)
