"""The wire: threaded gRPC over mTLS, and one total table from failures to statuses."""

import logging
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from meshgate_wire import broker_pb2_grpc as services

from meshgate_gateway import errors
from meshgate_gateway.adapters.services import AdminServicer, BrokerServicer, Guard, RunsServicer
from meshgate_gateway.authenticate import Door
from meshgate_gateway.model import Caller, Presented

T = TypeVar("T")

MAX_METADATA_BYTES = 16_384  # twice gRPC's default soft limit; a trace context fits easily
MAX_MESSAGE_BYTES = 4_194_304  # gRPC's default, written down
MAX_CONNECTION_AGE_MS = 300_000  # an expired certificate is looked at again within five minutes
CONNECTION_GRACE_MS = 10_000  # five times the longest wait of a handler
REASON_KEY = "meshgate-reason"
MAX_CAUSES, MAX_FRAMES = 4, 8  # of one failure in the log

_log = logging.getLogger(__name__)

_STATUS: tuple[tuple[type[errors.GatewayError], grpc.StatusCode], ...] = (
    (errors.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotPermitted, grpc.StatusCode.PERMISSION_DENIED),
    (errors.Conflict, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Missing, grpc.StatusCode.NOT_FOUND),
    (errors.Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
)


@dataclass(frozen=True, slots=True)
class Services:
    """Builds the servicers around the guard that maps their failures."""

    broker: Callable[[Guard], BrokerServicer]
    runs: Callable[[Guard], RunsServicer]
    admin: Callable[[Guard], AdminServicer]


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """The status and the stable reason for any failure; what we do not know is INTERNAL, bare."""
    reason = getattr(error, "reason", "")
    if reason == "method_unknown":
        return grpc.StatusCode.UNIMPLEMENTED, reason
    for kind, code in _STATUS:
        if isinstance(error, kind):
            return code, reason
    return grpc.StatusCode.INTERNAL, "internal_error"


def contained(step: Callable[[], object]) -> None:
    """Runs a step of a loop; what nobody foresaw is told by its place, and the loop goes on.

    Raises:
        Refused, Unavailable: as the step did.
    """
    failure: Exception | None = None
    try:
        step()
    except (errors.Refused, errors.Unavailable):
        raise
    except Exception as error:  # noqa: BLE001 - the outermost handler of a loop that must not end
        failure = error
    if failure is not None:
        _log.error("a loop met an internal error: %s", place_of(failure))  # its message may hold clear text


def place_of(error: BaseException) -> str:
    """Class and place of a failure and of its causes. Never its message."""
    told: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(told) < MAX_CAUSES:
        frames = traceback.extract_tb(seen.__traceback__)[-MAX_FRAMES:]
        lines = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
        told.append(f"{type(seen).__qualname__} at {lines or 'no place'}")
        seen = seen.__cause__ or seen.__context__
    return "; caused by ".join(told)


def presented(context: grpc.ServicerContext) -> Presented:
    """What the TLS layer says of the peer. Metadata and message fields are not looked at."""
    auth: Mapping[str, Any] = context.auth_context()
    leaf, chain, version = (
        b"".join(auth.get(key) or ()) for key in ("x509_pem_cert", "x509_pem_cert_chain", "ssl_tls_version")
    )
    if not chain.startswith(leaf):
        chain = leaf + chain
    return Presented(chain, version.decode() or None, context.peer())


class Server:
    """The listening side. Binds at once and serves after `start`."""

    def __init__(  # noqa: PLR0913 - one place composes the wire
        self,
        *,
        address: str,
        credentials: grpc.ServerCredentials,
        door: Door,
        make: Services,
        on_fault: Callable[[str], None],
        threads: int,
    ) -> None:
        self._door = door
        self._on_fault = on_fault
        self._health = health.HealthServicer()
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=threads, thread_name_prefix="call"),
            interceptors=[_UnknownMethods(self._unknown)],
            options=(
                ("grpc.max_metadata_size", MAX_METADATA_BYTES),
                ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_connection_age_ms", MAX_CONNECTION_AGE_MS),
                ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_MS),
                ("grpc.so_reuseport", 0),
            ),
        )
        services.add_BrokerServicer_to_server(make.broker(self.guard), self._server)
        services.add_RunsServicer_to_server(make.runs(self.guard), self._server)
        services.add_AdminServicer_to_server(make.admin(self.guard), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.serving(ready=False)
        try:
            self.port: int = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise errors.ConfigurationError(f"cannot listen on {address}") from error

    def start(self) -> None:
        """Begins to serve."""
        self._server.start()

    def stop(self, grace_seconds: float) -> None:
        """Refuses new calls and waits for those under way."""
        self._server.stop(grace_seconds).wait()

    def serving(self, *, ready: bool) -> None:
        """What the health service says."""
        state = health_pb2.HealthCheckResponse
        status = state.SERVING if ready else state.NOT_SERVING
        for name in ("", "meshgate.broker.v1.Broker"):
            self._health.set(name, status)

    def guard(self, context: grpc.ServicerContext, serve: Callable[[Presented], T]) -> T:
        """Runs a method; every failure becomes a status with a stable reason, here and only here."""
        try:
            return serve(presented(context))
        except Exception as error:  # noqa: BLE001 - the outermost handler: the table is total
            code, reason = status_of(error)
            failure = error
        if code is grpc.StatusCode.INTERNAL:
            _log.error("internal error: %s", place_of(failure))  # its message may hold clear text
        if isinstance(failure, errors.Unavailable):
            self._on_fault(reason)
        context.set_trailing_metadata(((REASON_KEY, reason),))
        told = isinstance(failure, errors.Refused) and failure.told and failure.detail
        context.abort(code, f"{reason}: {told}" if told else reason)
        raise RuntimeError("abort returned")

    def _unknown(self, method: str, context: grpc.ServicerContext) -> None:
        def refuse(_: Caller) -> None:
            raise errors.Missing("method_unknown", detail=method[:200])

        self.guard(context, lambda peer: self._door.enter(peer, "unknown", refuse))


class _UnknownMethods(grpc.ServerInterceptor):
    """A method we do not have is refused by us, with a record, not silently by the library."""

    def __init__(self, refuse: Callable[[str, grpc.ServicerContext], None]) -> None:
        self._refuse = refuse

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: Any
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Hands known methods on."""
        handler: grpc.RpcMethodHandler[Any, Any] | None = continuation(handler_call_details)
        if handler is not None:
            return handler
        method = str(handler_call_details.method)

        def refuse(_: Any, context: grpc.ServicerContext) -> bytes:
            self._refuse(method, context)
            return b""

        return grpc.unary_unary_rpc_method_handler(refuse)
