"""This process's own identity, kept fresh from the Workload API by the `spiffe` package."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe import WorkloadApiClient
from spiffe.workloadapi.workload_api_client import StreamCancelHandler
from spiffe.workloadapi.x509_context import X509Context

from meshgate_identities.errors import IdentityUnavailable
from meshgate_identities.spiffe_id import SpiffeId

RECONNECT_SECONDS = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IdentitySnapshot:
    """One coherent state: certificate, key and bundles that came together.

    Attributes:
        spiffe_id: our own ID.
        chain_pem: our certificates, leaf first.
        key_pem: PKCS#8, not encrypted; never written to disk by us.
        bundles: trust domain to CA certificates.
        not_after: when our leaf ends, aware.
    """

    spiffe_id: SpiffeId
    chain_pem: bytes
    key_pem: bytes
    bundles: Mapping[str, tuple[x509.Certificate, ...]]
    not_after: datetime

    def bundle_pem(self, trust_domain: str) -> bytes:
        """The CA certificates of one trust domain.

        Raises:
            IdentityUnavailable: the domain has no bundle.
        """
        roots = self.bundles.get(trust_domain)
        if not roots:
            raise IdentityUnavailable(f"no bundle for trust domain {trust_domain}")
        return b"".join(root.public_bytes(Encoding.PEM) for root in roots)


class IdentitySource:
    """Watches the Workload API and holds the newest snapshot.

    py-spiffe's stream ends for good on some errors, so a watchdog opens it again. An expired
    snapshot is never served.
    """

    def __init__(self, *, socket_path: Path | str) -> None:
        self._address = f"unix:{socket_path}"
        self._lock = threading.Lock()
        self._first = threading.Event()
        self._closed = threading.Event()
        self._broken = threading.Event()
        self._latest: IdentitySnapshot | None = None
        self._last_error = "no answer yet"
        self._subscribers: list[Callable[[IdentitySnapshot], None]] = []
        self._client: WorkloadApiClient | None = None
        self._handle: StreamCancelHandler | None = None
        self._watchdog = threading.Thread(target=self._watch, name="identity", daemon=True)

    def start(self, timeout_seconds: float = 10.0) -> IdentitySnapshot:
        """Waits for the first snapshot.

        Raises:
            IdentityUnavailable: none came in time, with the last error.
        """
        self._broken.set()
        self._watchdog.start()
        if not self._first.wait(timeout_seconds):
            self.close()
            raise IdentityUnavailable(f"the Workload API at {self._address} gave no SVID: {self._last_error}")
        return self.snapshot()

    def snapshot(self) -> IdentitySnapshot:
        """The newest state.

        Raises:
            IdentityUnavailable: there is none, or it has expired.
        """
        latest = self._latest
        if latest is None or latest.not_after <= datetime.now(UTC):
            raise IdentityUnavailable(f"no unexpired SVID: {self._last_error}")
        return latest

    def subscribe(self, callback: Callable[[IdentitySnapshot], None]) -> None:
        """Calls `callback` on the watching thread at each rotation. It must not raise or block."""
        with self._lock:
            self._subscribers.append(callback)

    def close(self) -> None:
        """Stops watching."""
        self._closed.set()
        self._broken.set()
        if self._handle:
            self._handle.cancel()
        if self._client:
            self._client.close()

    def _watch(self) -> None:
        """Opens the stream whenever it is broken."""
        while not self._closed.is_set():
            self._broken.wait()
            if self._closed.is_set():
                return
            self._broken.clear()
            try:
                self._client = WorkloadApiClient(self._address)
                self._handle = self._client.stream_x509_contexts(
                    self._accept, self._fail, retry_connect=False
                )
            except Exception as error:  # py-spiffe raises many kinds; each means "try again"
                self._fail(error)
                if self._closed.is_set():
                    raise
            self._closed.wait(RECONNECT_SECONDS)

    def _fail(self, error: Exception) -> None:
        self._last_error = f"{type(error).__name__}: {error}"
        if not self._closed.is_set():
            log.warning("identity.stream_broken", extra={"error": self._last_error})
        self._broken.set()

    def _accept(self, context: X509Context) -> None:
        svid = context.default_svid
        if svid.leaf.public_key() != svid.private_key.public_key():
            self._fail(ValueError("the key does not belong to the certificate"))
            return
        bundles = {
            str(bundle.trust_domain.name): tuple(bundle.x509_authorities)
            for bundle in context.x509_bundle_set.bundles
        }
        snapshot = IdentitySnapshot(
            spiffe_id=SpiffeId.parse(str(svid.spiffe_id)),
            chain_pem=b"".join(c.public_bytes(Encoding.PEM) for c in svid.cert_chain),
            key_pem=svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            bundles=bundles,
            not_after=svid.leaf.not_valid_after_utc,
        )
        with self._lock:
            self._latest = snapshot
            subscribers = list(self._subscribers)
        self._first.set()
        for callback in subscribers:
            callback(snapshot)
