"""Who asks? The certificate of the connection, and nothing the request says."""

from collections.abc import Mapping
from typing import Any

import grpc
from meshgate_identities.errors import AuthenticationFailed
from meshgate_identities.spiffe_id import SpiffeId
from meshgate_identities.verification import PeerVerifier

from meshgate_gateway.catalogue import Catalogue

GATEWAY_APPS = frozenset({"gateway", "operator"})


class Authenticator:
    """From a gRPC context to a Caller of this mesh."""

    def __init__(self, *, verifier: PeerVerifier, mesh: str, trust_domain: str, catalogue: Catalogue) -> None:
        self._verifier = verifier
        self._mesh = mesh
        self._trust_domain = trust_domain
        self._apps = frozenset(catalogue.apps) | GATEWAY_APPS

    def authenticate(self, context: grpc.ServicerContext) -> SpiffeId:
        """Checks the peer's certificate chain and that its app belongs to this mesh.

        Raises:
            AuthenticationFailed: with a stable reason.
        """
        shown: Mapping[str, Any] = context.auth_context()
        chain = shown.get("x509_pem_cert_chain") or shown.get("x509_pem_cert")
        version = shown.get("ssl_tls_version")
        if not chain:
            raise AuthenticationFailed(reason="no_certificate", detail="the peer showed none")
        peer = self._verifier.verify(
            chain_pem=chain[0], tls_version=version[0].decode() if version else None
        ).spiffe_id
        if peer.trust_domain != self._trust_domain or peer.namespace != self._mesh:
            raise AuthenticationFailed(reason="not_of_this_mesh", detail=str(peer))
        if peer.app not in self._apps:
            raise AuthenticationFailed(reason="app_unknown", detail=str(peer))
        return peer
