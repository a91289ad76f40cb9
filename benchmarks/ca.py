"""Certificates of one throw-away mesh, for both ends."""

from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from meshgate_identities.authority import DevelopmentAuthority
from meshgate_identities.spiffe_id import SpiffeId
from meshgate_identities.tls import gateway_dns_name

MESH, DOMAIN = "bench", "bench.example"


class Authority:
    """Issues SVIDs of the folder's root; the same folder gives the same root in each process."""

    def __init__(self, folder: Path, *, mesh: str = MESH, domain: str = DOMAIN) -> None:
        self._authority = DevelopmentAuthority(directory=folder, trust_domain=domain)
        self._mesh, self._domain = mesh, domain
        self.root = self._authority.root
        self.root_pem = self.root.public_bytes(Encoding.PEM)
        self.server_name = gateway_dns_name(trust_domain=domain, mesh=mesh)

    def pair(self, app: str, *, dns_names: tuple[str, ...] = ()) -> tuple[bytes, bytes]:
        """Key and certificate of an app, in PEM."""
        spiffe_id = SpiffeId.of_app(trust_domain=self._domain, namespace=self._mesh, app=app)
        svid = self._authority.issue(spiffe_id=spiffe_id, dns_names=list(dns_names))
        key = load_der_private_key(svid.key_der, None)
        chain = x509.load_der_x509_certificate(svid.chain_der).public_bytes(Encoding.PEM)
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), chain

    def server_credentials(self) -> grpc.ServerCredentials:
        """Asks for a client certificate, as the gateway does."""
        pair = self.pair("gateway", dns_names=(self.server_name,))
        return grpc.ssl_server_credentials([pair], self.root_pem, require_client_auth=True)

    def channel(self, app: str, target: str) -> grpc.Channel:
        """A channel of its own connection, as an app."""
        credentials = grpc.ssl_channel_credentials(self.root_pem, *self.pair(app))
        options = (
            ("grpc.ssl_target_name_override", self.server_name),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
        )
        return grpc.secure_channel(target, credentials, options)
