"""This process's own identity, kept fresh from the Workload API by the `spiffe` package."""

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe import WorkloadApiClient
from spiffe.errors import PySpiffeError
from spiffe.workloadapi.x509_context import X509Context

from meshgate_identities.errors import IdentityUnavailable
from meshgate_identities.spiffe_id import SpiffeId
from meshgate_identities.verification import TLS_1_3, verify_peer

RECONNECT_SECONDS = 0.5
_DENIED = "StatusCode.PERMISSION_DENIED"

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

    py-spiffe's stream ends for good on any error, so a watchdog opens it again. An expired
    snapshot is never served, and none after the Workload API says that we are entitled to nothing.
    A new state is taken only if the peers we meet would take it: key and certificate belong
    together, and `verify_peer` accepts our own chain.
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
        self._watchdog = threading.Thread(target=self._watch, name="identity", daemon=True)

    def start(self, timeout_seconds: float = 10.0) -> IdentitySnapshot:
        """Waits for the first snapshot.

        Raises:
            IdentityUnavailable: none came in time, with the last error.
        """
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

    def subscribe(self, callback: Callable[[IdentitySnapshot], None]) -> Callable[[], None]:
        """Calls `callback` on the watching thread at each rotation. It must not raise or block.

        Returns:
            A function that ends the subscription.
        """
        with self._lock:
            self._subscribers.append(callback)

        def unsubscribe() -> None:
            with self._lock, suppress(ValueError):  # ended already
                self._subscribers.remove(callback)

        return unsubscribe

    def close(self) -> None:
        """Stops watching. The last snapshot stays readable until it expires."""
        self._closed.set()
        self._broken.set()
        if self._watchdog.ident is not None and self._watchdog is not threading.current_thread():
            self._watchdog.join(timeout=5)

    def _watch(self) -> None:
        """Opens a stream, waits until it breaks, closes it, and again."""
        while not self._closed.is_set():
            self._broken.clear()
            with ExitStack() as stream:
                try:
                    client = WorkloadApiClient(self._address)
                    stream.callback(client.close)
                    handle = client.stream_x509_contexts(self._accept, self._fail, retry_connect=False)
                    stream.callback(handle.cancel)
                except PySpiffeError as error:  # no socket yet, most often
                    self._fail(error)
                self._wait_until_broken()
            self._closed.wait(RECONNECT_SECONDS)

    def _wait_until_broken(self) -> None:
        """Returns when the stream ended, or was silent until our leaf expired."""
        # `close` sets `_broken` too, but `_watch` may just have cleared it: so both are looked at.
        while not self._closed.is_set() and not self._broken.wait(RECONNECT_SECONDS):
            latest = self._latest
            if latest and latest.not_after <= datetime.now(UTC):
                self._fail(IdentityUnavailable("the Workload API let our SVID expire"))

    def _fail(self, error: Exception) -> None:
        if self._closed.is_set():
            return
        problem = f"{type(error).__name__}: {error}"
        if problem != self._last_error:  # one line per trouble, not one per attempt
            log.warning("identity.stream_broken", extra={"error": problem})
        self._last_error = problem
        if _DENIED in str(error):  # py-spiffe keeps the status code in its text only
            with self._lock:
                self._latest = None
        self._broken.set()

    def _accept(self, context: X509Context) -> None:
        """Takes a new state. What this raises, py-spiffe hands to `_fail` and ends the stream."""
        snapshot = _snapshot(context)
        with self._lock:
            self._latest = snapshot
            self._last_error = "the Workload API has been silent since"
            subscribers = list(self._subscribers)
        self._first.set()
        for callback in subscribers:
            callback(snapshot)


def _snapshot(context: X509Context) -> IdentitySnapshot:
    svid = context.default_svid
    if svid.leaf.public_key() != svid.private_key.public_key():
        raise IdentityUnavailable("the key does not belong to the certificate")
    chain_pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in svid.cert_chain)
    bundles = {
        str(bundle.trust_domain.name): tuple(bundle.x509_authorities)
        for bundle in context.x509_bundle_set.bundles
    }
    own = verify_peer(chain_pem=chain_pem, bundles=bundles, tls_version=TLS_1_3[0], now=datetime.now(UTC))
    return IdentitySnapshot(
        spiffe_id=own.spiffe_id,  # from the raw URI: py-spiffe folds case
        chain_pem=chain_pem,
        key_pem=svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        bundles=MappingProxyType(bundles),
        not_after=own.not_after,
    )
