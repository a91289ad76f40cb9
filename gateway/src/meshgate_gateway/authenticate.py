"""The first room: a certificate becomes a `Caller`, or one record and nothing else.

`Door.enter` is also the outermost net: whatever the rooms behind it refuse leaves exactly one
record, and a refusal that cannot be recorded becomes UNAVAILABLE.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar

from meshgate_identities.errors import AuthenticationFailed, IdentityUnavailable, InvalidSpiffeId
from meshgate_identities.spiffe_id import SpiffeId

from meshgate_gateway.catalogue import Catalogue
from meshgate_gateway.errors import NotPermitted, Refused, StoreUnavailable, Unauthenticated, Unavailable
from meshgate_gateway.model import RUNNERS, AuditRecord, Caller, Kind, Presented
from meshgate_gateway.record import Recorder
from meshgate_gateway.store import Store

T = TypeVar("T")


class VerifiedPeer(Protocol):
    """What a verifier proved of a certificate."""

    @property
    def spiffe_id(self) -> SpiffeId:
        """The one URI SAN."""

    @property
    def serial_hex(self) -> str:
        """The leaf's serial number."""

    @property
    def leaf_sha256(self) -> str:
        """Digest of the leaf."""

    @property
    def not_after(self) -> datetime:
        """End of the leaf's life."""


class Verifier(Protocol):
    """Checks a chain. `meshgate_identities.verification.PeerVerifier` is the real one."""

    def verify(self, *, chain_pem: bytes, tls_version: str | None) -> VerifiedPeer:
        """Raises AuthenticationFailed."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """Whose door this is."""

    name: str
    trust_domain: str
    operators: frozenset[str]
    catalogue: Catalogue

    def is_local(self, caller: Caller) -> bool:
        """Whether it is the operator of this mesh itself, behind the supervisor's socket; no other one."""
        return caller.spiffe_id == f"spiffe://{self.trust_domain}/ns/{self.name}/{Kind.OPERATOR}"

    def has_runner(self, app: str) -> bool:
        """Whether an app, by its SPIFFE ID, is one of this mesh that has runs."""
        return self._kind_of(app) in RUNNERS

    def is_agent(self, app: str) -> bool:
        """Whether an app, by its SPIFFE ID, is an agent's of this mesh."""
        return self._kind_of(app) is Kind.AGENT

    def _kind_of(self, app: str) -> Kind | None:
        try:
            return self.kind_of(SpiffeId.parse(app))
        except InvalidSpiffeId:
            return None

    def kind_of(self, peer: SpiffeId) -> Kind | None:
        """What the mesh knows of a SPIFFE ID; None for an ID it did not name."""
        if str(peer) in self.operators:
            return Kind.OPERATOR
        if peer.trust_domain != self.trust_domain or peer.namespace != self.name:
            return None
        if peer.app == Kind.OPERATOR:
            return Kind.OPERATOR
        return self.catalogue.apps.get(peer.app)


class Door:
    """Authenticates, lets a caller in, and records whoever is turned away."""

    def __init__(self, *, verifier: Verifier, mesh: Mesh, store: Store, recorder: Recorder) -> None:
        self._verifier = verifier
        self._mesh = mesh
        self._store = store
        self._recorder = recorder

    def enter(self, presented: Presented, method: str, serve: Callable[[Caller], T]) -> T:
        """Runs `serve` for the verified caller.

        Raises:
            Unauthenticated: recorded.
            Refused: recorded.
            Unavailable: recorded where that is possible.
        """
        try:
            caller = self._identify(presented)
        except Unauthenticated as error:
            self._write(
                self._recorder.authentication(
                    address=presented.address, method=method, reason=error.reason, detail=error.detail
                )
            )
            raise
        try:
            _check_known(caller)
            return serve(caller)
        except Refused as error:
            if not error.recorded:
                self._write(self._refusal(caller, method, error.reason, error))
            raise
        except StoreUnavailable:
            raise  # where nothing can be written, nothing is
        except Unavailable as error:
            self._write(
                self._recorder.refusal(caller=caller, method=method, reason=error.reason, detail=error.detail)
            )
            raise
        except Exception as error:
            self._write(
                self._recorder.refusal(
                    caller=caller, method=method, reason="internal_error", detail=type(error).__name__
                )
            )
            raise

    def _refusal(self, caller: Caller, method: str, reason: str, error: Refused) -> AuditRecord:
        return self._recorder.refusal(
            caller=caller,
            method=method,
            reason=reason,
            detail=error.detail,
            call_id=error.call_id,
            tool=error.tool,
        )

    def _write(self, record: AuditRecord) -> None:
        self._store.write(lambda tables: tables.records.append(record))

    def _identify(self, presented: Presented) -> Caller:
        if not presented.chain_pem:
            raise Unauthenticated("no_certificate")
        try:
            peer = self._verifier.verify(chain_pem=presented.chain_pem, tls_version=presented.tls_version)
        except AuthenticationFailed as error:
            raise Unauthenticated(error.reason, detail=error.detail) from error
        except IdentityUnavailable as error:
            raise Unavailable("identity_unavailable", detail=str(error)) from error
        return Caller(
            spiffe_id=str(peer.spiffe_id),
            trust_domain=peer.spiffe_id.trust_domain,
            namespace=peer.spiffe_id.namespace,
            app=peer.spiffe_id.app,
            kind=self._mesh.kind_of(peer.spiffe_id),
            serial_hex=peer.serial_hex,
            leaf_sha256=peer.leaf_sha256,
            address=presented.address,
        )


def _check_known(caller: Caller) -> None:
    if caller.kind is None:
        raise NotPermitted("caller_unknown", detail="no app of this mesh")
