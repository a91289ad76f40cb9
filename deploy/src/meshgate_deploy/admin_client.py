"""The operator's side of the gateway's Admin service."""

import os
import pwd
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from google.protobuf import json_format, message_factory
from meshgate_identities.authority import DevelopmentAuthority
from meshgate_identities.spiffe_id import SpiffeId
from meshgate_identities.tls import gateway_dns_name
from meshgate_wire import broker_pb2, broker_pb2_grpc

from meshgate_deploy.errors import Denied, DependencyUnavailable, MeshError, NotFound, UsageError
from meshgate_deploy.manifest import Manifest

SVID_LIFE = timedelta(minutes=10)
CALL_SECONDS = 10.0
_REFUSED: dict[str, tuple[type[MeshError], str, str]] = {
    "app_unknown": (NotFound, "the mesh has no crew or program of that name", "meshgate ps"),
    "run_changed_input": (MeshError, "that run exists, with another app or input", "another --run-id"),
    "run_purged": (MeshError, "that run exists, and its clear text was purged", "another --run-id"),
    "run_id_invalid": (UsageError, "a run id is 1 to 64 of A-Z a-z 0-9 . _ -", "another --run-id"),
    "input_not_json": (
        UsageError,
        "the input is no JSON, or holds text that is no Unicode",
        "--input '{...}' or --input @FILE",
    ),
    "input_not_an_object": (UsageError, "a crew's input is a JSON object", '--input \'{"topic": "…"}\''),
    "commands_off": (
        Denied,
        "the app runs only what its manifest says",
        "`commands: true` at the app in meshgate.yaml, or `meshgate run` on the mesh's own machine",
    ),
    "input_too_large": (
        UsageError,
        "the input is larger than 1 MiB, or a key in it than 256 characters",
        "give a file's path or an address in place of what it holds",
    ),
    "result_invalid": (
        UsageError,
        "the result is not what it is said to be",
        "text in UTF-8, or one JSON value with --json",
    ),
    "call_settled": (MeshError, "how that call ended is known already", "meshgate runs list"),
    "result_too_large": (
        UsageError,
        "the result is larger than 3 MiB",
        "give a file's path or an address in place of it",
    ),
    "input_too_deep": (
        UsageError,
        "the input has more than 32 lists and objects in each other",
        "a flatter one",
    ),
    "input_duplicate_key": (UsageError, "an object of the input has a key twice", "each key once"),
    "input_case_variant_keys": (
        UsageError,
        "an object of the input has two keys that differ in case only",
        "other names",
    ),
    "input_not_finite": (UsageError, "the input has a number that is no finite one", "a text in its place"),
    "input_integer_too_large": (
        UsageError,
        "the input has a whole number above 2^53 - 1, which not every reader holds exactly",
        "a text in its place",
    ),
}
METHODS = (
    "Status", "QueryRecords", "ListRuns", "ListCalls", "ActivatePolicy", "VerifyRecords", "ShowRun",
    "ControlRun", "ResolveCall", "StartRun", "BranchRun", "ExportRun", "PurgeRun",
)  # fmt: skip
SIGNED = (
    "ControlRun",
    "ResolveCall",
    "ActivatePolicy",
    "StartRun",
    "BranchRun",
    "ExportRun",
    "PurgeRun",
    "ShowRun",
)  # the record names the person


class Operator:
    """Calls the gateway as `…/operator`, with an SVID made for each call."""

    def __init__(
        self, *, authority: DevelopmentAuthority, manifest: Manifest, target: Callable[[], str]
    ) -> None:
        self._authority, self._manifest, self._target = authority, manifest, target

    def call(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        """Calls one method; request and answer are protobuf's JSON with the proto's names.

        Raises:
            Denied: the gateway refused the operator, or there is no such method.
            MeshError: the gateway takes the request for wrong.
            DependencyUnavailable: it does not answer.
        """
        if method not in METHODS:
            raise Denied(f"the gateway has no operator method {method!r}")
        if method in SIGNED:
            request = {**request, "operator": _person()}
        message = json_format.ParseDict(request, _request(method))
        with self._channel() as channel:
            try:
                answer = getattr(broker_pb2_grpc.AdminStub(channel), method)(message, timeout=CALL_SECONDS)
            except grpc.RpcError as error:
                raise _mapped(method, error) from error
        return json_format.MessageToDict(
            answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    def _channel(self) -> grpc.Channel:
        manifest = self._manifest
        issued = self._authority.issue(
            spiffe_id=SpiffeId.parse(manifest.spiffe_id("operator")), ttl=SVID_LIFE
        )
        key = load_der_private_key(issued.key_der, None)
        credentials = grpc.ssl_channel_credentials(
            root_certificates=self._authority.root.public_bytes(Encoding.PEM),
            private_key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            certificate_chain=x509.load_der_x509_certificate(issued.chain_der).public_bytes(Encoding.PEM),
        )
        name = gateway_dns_name(trust_domain=manifest.trust_domain, mesh=manifest.mesh)
        options = [("grpc.ssl_target_name_override", name), ("grpc.enable_http_proxy", 0)]
        return grpc.secure_channel(self._target(), credentials, options=options)


def _request(method: str) -> Any:
    """An empty message of the method's own kind."""
    service = broker_pb2.DESCRIPTOR.services_by_name["Admin"]
    return message_factory.GetMessageClass(service.methods_by_name[method].input_type)()


def _person() -> str:
    """Who commands this mesh: the control socket admits the supervisor's own user only."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = "?"
    return f"{name} (uid {uid})"


def _mapped(method: str, error: grpc.RpcError) -> Exception:
    code = error.code() if isinstance(error, grpc.Call) else None
    details = str(error.details()) if isinstance(error, grpc.Call) else str(error)
    reason, _, detail = details.partition(": ")
    if reason in _REFUSED:
        kind, what, next_step = _REFUSED[reason]
        return kind(what, why=detail, next_step=next_step)
    if code is grpc.StatusCode.NOT_FOUND:
        return NotFound("no such run or call", why=details, next_step="meshgate runs list")
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return Denied(f"the gateway refused {method}", why=details)
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION):
        return MeshError(
            f"the gateway did not accept {method}", why=details, next_step="meshgate logs gateway"
        )
    return DependencyUnavailable(
        f"the gateway did not answer {method}", why=f"{code}: {details}", next_step="meshgate ps"
    )
