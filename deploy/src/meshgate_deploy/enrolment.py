"""Enrolment tokens: what a Dapr process shows to Sentry to get its certificate.

The key lives in the supervisor's memory for one start. Sentry knows its public half from a JWKS
file, so nobody else can enrol, whatever port they reach.
"""

import base64
import json
import secrets
import time
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from meshgate_deploy.state import write_private

TOKEN_SECONDS = 3600
RENEW_SECONDS = 900  # a sidecar reads its token file again whenever it renews its certificate
CONTROL_NAMESPACE = "dapr-system"
_P256_BYTES = 32


class Enroller:
    """Mints ES256 tokens for one trust domain of the control plane."""

    def __init__(self, *, control_trust_domain: str, namespace: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._kid = secrets.token_hex(8)
        self._control = f"spiffe://{control_trust_domain}/ns/{CONTROL_NAMESPACE}"
        self._apps = f"spiffe://public/ns/{namespace}"

    def write_jwks(self, path: Path) -> None:
        """Writes the public half for Sentry."""
        numbers = self._key.public_key().public_numbers()
        key = {
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self._kid,
            "x": _encode(numbers.x.to_bytes(_P256_BYTES)), "y": _encode(numbers.y.to_bytes(_P256_BYTES)),
        }  # fmt: skip
        write_private(path, json.dumps({"keys": [key]}).encode())

    def for_app(self, app: str) -> str:
        """A token that enrols a sidecar as this app and no other."""
        return self._mint(self.app_id(app))

    def for_service(self, service: str) -> str:
        """A token for `placement` or `scheduler`."""
        return self._mint(self.service_id(service))

    def app_id(self, app: str) -> str:
        """The SPIFFE ID of an app's sidecar, in the trust domain of Dapr's apps."""
        return f"{self._apps}/{app}"

    def service_id(self, service: str) -> str:
        """The SPIFFE ID of `sentry`, `placement` or `scheduler`."""
        return f"{self._control}/dapr-{service}"

    def _mint(self, subject: str) -> str:
        now = int(time.time())
        header = {"alg": "ES256", "typ": "JWT", "kid": self._kid}
        claims = {
            "iss": "meshgate", "sub": subject, "aud": [f"{self._control}/dapr-sentry"],
            "iat": now, "nbf": now - 5, "exp": now + TOKEN_SECONDS, "jti": secrets.token_hex(8),
        }  # fmt: skip
        signed = ".".join(_encode(json.dumps(part).encode()) for part in (header, claims))
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_encode(r.to_bytes(_P256_BYTES) + s.to_bytes(_P256_BYTES))}"


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
