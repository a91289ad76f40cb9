"""What the supervisor does for later commands: ps, run, audit, down."""

import json
import os
import select
import signal
import socket
import threading
from typing import Any

import grpc
from meshgate_identities import attestation
from meshgate_wire import broker_pb2 as pb

from meshgate_deploy.control import ControlServer
from meshgate_deploy.errors import EXIT_UNAVAILABLE, EXIT_USAGE, UserError
from meshgate_deploy.processes import Managed
from meshgate_deploy.supervisor import Supervisor

RPC_SECONDS = 30.0
POLL_SECONDS = 0.1


class Operations:
    """The control socket's requests."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.stop = threading.Event()
        self.server = ControlServer(
            path=supervisor.places.control, handler=self.handle, is_agent=self._is_agent
        )

    def handle(self, request: dict[str, Any], fds: list[int], connection: socket.socket) -> dict[str, Any]:
        """Answers one request.

        Raises:
            UserError: it is unknown, or cannot be done.
        """
        operation = request.get("op")
        if operation == "ps":
            return {"rows": self.ps()}
        if operation == "run":
            return self._run(request, fds, connection)
        if operation == "down":
            self.stop.set()
            return {"state": "stopping"}
        try:
            if operation == "records":
                return self.records(**request["query"])
            if operation == "verify":
                answer = self._supervisor.admin().VerifyRecords(
                    pb.VerifyRecordsRequest(), timeout=RPC_SECONDS
                )
                return {"verified": answer.verified, "records": answer.records, "problem": answer.problem}
        except grpc.RpcError as error:
            raise UserError(
                "the gateway gave no answer", why=str(error), fix="run `meshgate logs gateway`",
                exit_code=EXIT_UNAVAILABLE,
            ) from error  # fmt: skip
        raise UserError(
            f"unknown request {operation!r}", why="the supervisor is another version",
            fix="restart it: `meshgate down`, `meshgate up`", exit_code=EXIT_USAGE,
        )  # fmt: skip

    def ps(self) -> list[dict[str, object]]:
        """One row per process."""
        apps = {"gateway", *self._supervisor.manifest.apps()}
        rows = []
        for name, managed in list(self._supervisor.table.rows.items()):
            app = name if name in apps else name.split("-", 2)[2] if name.startswith("run-") else ""
            rows.append(
                {
                    "name": name,
                    "pid": managed.popen.pid,
                    "state": "running" if managed.alive() else f"ended ({managed.popen.returncode})",
                    "spiffe_id": str(self._supervisor.spiffe_id(app)) if app in apps else "",
                }
            )
        return rows

    def records(self, **query: Any) -> dict[str, Any]:
        """Audit records as the gateway has them."""
        found = self._supervisor.admin().QueryRecords(pb.QueryRecordsRequest(**query), timeout=RPC_SECONDS)
        return {"records": [json.loads(record) for record in found.records_json], "last_seq": found.last_seq}

    def _run(self, request: dict[str, Any], fds: list[int], connection: socket.socket) -> dict[str, Any]:
        if len(fds) != 3:  # noqa: PLR2004 - stdin, stdout, stderr
            raise UserError("a run needs three streams", why=f"{len(fds)} came", fix="use `meshgate run`")
        managed = self._supervisor.run(
            request["app"], request["argv"], stdio=(fds[0], fds[1], fds[2]), run_id=request.get("run_id")
        )
        try:
            return {"status": wait_or_cancel(managed, connection)}
        finally:
            self._supervisor.finish_run(managed)

    def _is_agent(self, pid: int) -> bool:
        launchers = [m for n, m in list(self._supervisor.table.rows.items()) if n.startswith("run-")]
        return any(attestation.is_descendant(pid, m.started) for m in launchers if m.alive())


def wait_or_cancel(managed: Managed, connection: socket.socket) -> int:
    """Waits for a launcher; a caller that goes away (Ctrl-C) cancels the run."""
    cancelled = False
    while managed.alive():
        readable, _, _ = select.select([] if cancelled else [connection], [], [], POLL_SECONDS)
        if readable and not connection.recv(1):
            cancelled = True
            os.kill(managed.popen.pid, signal.SIGINT)
    return int(managed.popen.returncode)
