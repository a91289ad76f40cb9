"""The gRPC door: authenticates every call, maps every failure to one status, in one place."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
from meshgate_identities.errors import AuthenticationFailed, IdentityUnavailable
from meshgate_identities.spiffe_id import SpiffeId
from meshgate_policies.engine import OpaEngine
from meshgate_wire import broker_pb2 as pb
from meshgate_wire import broker_pb2_grpc as rpc

from meshgate_gateway.adapters import wire
from meshgate_gateway.admin import Admin, RecordQuery
from meshgate_gateway.authenticate import Authenticator
from meshgate_gateway.broker import ActivePolicy, Books, Broker
from meshgate_gateway.catalogue import Catalogue
from meshgate_gateway.errors import Conflict, Malformed, NotFound, Refused, Unavailable
from meshgate_gateway.hosts import Hosts
from meshgate_gateway.record import Entry
from meshgate_gateway.runs import Runs

R = TypeVar("R")
REASON_KEY = "meshgate-reason"  # trailing metadata of every refusal
MAX_METADATA_BYTES = 8_192
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

SERVER_OPTIONS = (
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.max_connection_age_ms", 600_000),  # a bound on how long a revoked peer stays connected
)

log = logging.getLogger(__name__)

_STATUS: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (AuthenticationFailed, grpc.StatusCode.UNAUTHENTICATED),
    (Malformed, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (Conflict, grpc.StatusCode.FAILED_PRECONDITION),
    (Refused, grpc.StatusCode.PERMISSION_DENIED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (IdentityUnavailable, grpc.StatusCode.UNAVAILABLE),
)


class Door:
    """Runs one handler for an authenticated caller."""

    def __init__(self, *, authenticator: Authenticator, books: Books) -> None:
        self._authenticator = authenticator
        self._books = books

    def pass_through(self, context: grpc.ServicerContext, handler: Callable[[SpiffeId], R]) -> R:
        """Authenticates, runs, and turns any failure into a status with a stable reason."""
        try:
            return handler(self._authenticate(context))
        except Exception as error:
            status = next((code for kind, code in _STATUS if isinstance(error, kind)), None)
            if status is None:
                log.exception("server.internal_error")
                context.abort(grpc.StatusCode.INTERNAL, "internal error; see the gateway's log")
            reason = getattr(error, "reason", "identity_unavailable")
            context.set_trailing_metadata(((REASON_KEY, reason),))
            context.abort(status, str(error)[:1000])
            raise

    def _authenticate(self, context: grpc.ServicerContext) -> SpiffeId:
        try:
            return self._authenticator.authenticate(context)
        except AuthenticationFailed as error:
            fields = {"reason": error.reason, "detail": error.detail[:500], "peer": context.peer()[:200]}
            entry = Entry("authentication", "", "", "", fields)
            self._books.store.transact(lambda tx: self._books.recorder.append(tx, entry))
            raise


class BrokerService(rpc.BrokerServicer):
    """CallTool, TakeCall, FinishCall, ListTools."""

    def __init__(self, *, door: Door, broker: Broker, hosts: Hosts, catalogue: Catalogue) -> None:
        self._door, self._broker, self._hosts, self._catalogue = door, broker, hosts, catalogue

    def CallTool(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """See the proto."""
        return self._door.pass_through(
            context,
            lambda caller: wire.call_response(self._broker.handle(caller, wire.call_request(request))),
        )

    def TakeCall(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """See the proto."""
        return self._door.pass_through(
            context,
            lambda caller: wire.take_response(
                self._hosts.take(caller, request.call_id, request.host_instance)
            ),
        )

    def FinishCall(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """See the proto."""

        def handler(caller: SpiffeId) -> pb.FinishCallResponse:
            state = self._hosts.finish(caller, wire.finish(request))
            return pb.FinishCallResponse(state=wire.STATES[state])

        return self._door.pass_through(context, handler)

    def ListTools(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002 - gRPC's name and shape
        """See the proto."""

        def handler(caller: SpiffeId) -> pb.ListToolsResponse:
            tools = [self._catalogue.tools[name] for name in self._broker.list_tools(caller)]
            return pb.ListToolsResponse(
                tools=[
                    pb.ToolDescription(
                        tool=tool.id,
                        description=tool.description,
                        arguments_schema_json=tool.schema_json,
                        definition_sha256=tool.definition_sha256,
                        effect=tool.effect,
                    )
                    for tool in tools
                ]
            )

        return self._door.pass_through(context, handler)


class RunsService(rpc.RunsServicer):
    """StartRun, StartAttempt, Heartbeat, FinishRun."""

    def __init__(self, *, door: Door, runs: Runs) -> None:
        self._door, self._runs = door, runs

    def StartRun(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """See the proto."""

        def handler(caller: SpiffeId) -> pb.StartRunResponse:
            state = self._runs.start(caller, request.run_id, request.input_json)
            return pb.StartRunResponse(run_id=request.run_id, state=state)

        return self._door.pass_through(context, handler)

    def StartAttempt(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """See the proto."""
        return self._door.pass_through(
            context,
            lambda caller: pb.StartAttemptResponse(attempt=self._runs.start_attempt(caller, request.run_id)),
        )

    def Heartbeat(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """See the proto."""

        def handler(caller: SpiffeId) -> pb.HeartbeatResponse:
            state = self._runs.heartbeat(caller, request.run_id, request.attempt, request.steps)
            return pb.HeartbeatResponse(state=state)

        return self._door.pass_through(context, handler)

    def FinishRun(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """See the proto."""

        def handler(caller: SpiffeId) -> pb.FinishRunResponse:
            state = self._runs.finish(caller, request.run_id, request.attempt, request.state, request.detail)
            return pb.FinishRunResponse(state=state)

        return self._door.pass_through(context, handler)


class AdminService(rpc.AdminServicer):
    """The operator's door."""

    def __init__(self, *, door: Door, admin: Admin, version: str, readiness: Callable[[], list[str]]) -> None:
        self._door, self._admin, self._version, self._readiness = door, admin, version, readiness

    def _operator(self, context: Any, handler: Callable[[], R]) -> R:
        def checked(caller: SpiffeId) -> R:
            self._admin.check(caller)
            return handler()

        return self._door.pass_through(context, checked)

    def Status(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002 - gRPC's name and shape
        """See the proto."""

        def handler() -> pb.StatusResponse:
            reasons = self._readiness()
            records, states = self._admin.counts()
            return pb.StatusResponse(
                ready=not reasons,
                not_ready_reasons=reasons,
                records=records,
                calls_by_state=states,
                version=self._version,
            )

        return self._operator(context, handler)

    def QueryRecords(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """See the proto."""

        def handler() -> pb.QueryRecordsResponse:
            query = RecordQuery(
                request.after_seq, request.limit, request.caller, request.tool, request.call_id, request.kind
            )
            found = self._admin.records(query)
            return pb.QueryRecordsResponse(
                records_json=[json.dumps({**json.loads(r.body), "hash": r.hash}).encode() for r in found],
                last_seq=found[-1].seq if found else request.after_seq,
            )

        return self._operator(context, handler)

    def ListRuns(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """See the proto."""

        def handler() -> pb.ListRunsResponse:
            names = ("run_id", "app", "state", "attempt", "created", "detail")
            rows = self._admin.runs(request.limit)
            return pb.ListRunsResponse(runs=[pb.RunRow(**dict(zip(names, r, strict=True))) for r in rows])

        return self._operator(context, handler)

    def ListCalls(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """See the proto."""
        return self._operator(
            context,
            lambda: pb.ListCallsResponse(
                calls=[wire.call_row(row) for row in self._admin.calls(request.run_id, request.limit)]
            ),
        )

    def ActivatePolicy(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """See the proto."""

        def handler() -> pb.ActivatePolicyResponse:
            token = Path(request.token_file).read_text().strip()
            engine = OpaEngine(socket_path=request.socket_path, token=token)
            self._admin.activate(ActivePolicy(engine, request.revision, request.digest), request.operator)
            return pb.ActivatePolicyResponse(revision=request.revision)

        return self._operator(context, handler)

    def VerifyRecords(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002 - gRPC's name and shape
        """See the proto."""

        def handler() -> pb.VerifyRecordsResponse:
            good, problem = self._admin.verify()
            return pb.VerifyRecordsResponse(verified=problem is None, records=good, problem=problem or "")

        return self._operator(context, handler)
