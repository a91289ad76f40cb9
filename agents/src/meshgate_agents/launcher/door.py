"""The private socket: admits the launcher's own descendants, and answers their calls."""

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from meshgate_identities import attestation
from meshgate_wire import broker_pb2 as pb

from meshgate_agents.child.channel import read_frame, write_frame
from meshgate_agents.launcher.gateway import AttemptOver, GatewaySession, Step
from meshgate_agents.launcher.tools import ToolUnknown, match

STATES = {pb.CALL_STATE_DONE: "done", pb.CALL_STATE_FAILED: "failed", pb.CALL_STATE_DENIED: "denied"}
KINDS = {pb.RESULT_KIND_TEXT: "text", pb.RESULT_KIND_JSON: "json"}

log = logging.getLogger(__name__)


class Door:
    """Listens on one Unix socket (0600), one thread per connection."""

    def __init__(
        self, *, path: Path, tools: Sequence[Mapping[str, object]], session: GatewaySession,
        on_over: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._tools = tools
        self._session = session
        self._on_over = on_over
        self._self = attestation.process(os.getpid())
        self.reported = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        path.chmod(0o600)
        self._socket.listen(64)
        self._thread = threading.Thread(target=self._accept, name="door", daemon=True)

    def start(self) -> None:
        """Begins to admit."""
        self._thread.start()

    def close(self) -> None:
        """Admits nobody any more."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

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
                if peer.process == self._self or not attestation.is_descendant(peer.process.pid, self._self):
                    log.warning("door.refused", extra={"pid": peer.process.pid, "uid": peer.uid})
                    return
                while (request := read_frame(connection)) is not None:
                    write_frame(connection, self._answer(request))
            except AttemptOver as error:
                self._on_over(str(error))
            except (OSError, ValueError, KeyError, ProcessLookupError) as error:
                log.warning("door.bad_request", extra={"error": repr(error)})

    def _answer(self, request: dict[str, Any]) -> dict[str, object]:
        if request["op"] == "report":
            self.reported.set()
            return {"state": "ok"}
        if request["op"] != "call":
            raise ValueError(f"unknown request {request['op']!r}")
        return self._call(request)

    def _call(self, request: dict[str, Any]) -> dict[str, object]:
        try:
            tool = match(self._tools, request["identity"])
        except ToolUnknown as error:
            # Asked for all the same: a refusal that nobody records did not happen.
            tool = "unlisted:" + str(request["identity"].get("qualname", ""))[:200]
            self._session.call(self._step(request, tool))
            return {"state": "denied", "message": f"denied: {error}; do not retry", "code": "tool_unknown"}
        answer = self._session.call(self._step(request, tool))
        state = STATES[answer.state]
        if state == "done":
            return {"state": state, "kind": KINDS[answer.kind], "text": answer.result.decode()}
        if state == "denied":
            reasons = ", ".join(answer.reasons)
            note = f" ({answer.message})" if answer.message else ""
            mark = f" [{answer.decision_id}]" if answer.decision_id else ""
            return {
                "state": state,
                "message": f"denied{mark}: {reasons}{note}; do not retry",
                "code": reasons,
            }
        return {
            "state": state,
            "message": f"{answer.error_class}: {answer.message}",
            "code": answer.error_class,
        }

    @staticmethod
    def _step(request: dict[str, Any], tool: str) -> Step:
        untrusted = {str(k): str(v) for k, v in dict(request.get("untrusted") or {}).items()}
        arguments = json.dumps(request["arguments"], allow_nan=False).encode()
        return Step(tool, str(request["step_key"]), arguments, untrusted)
