"""The development SPIFFE Workload API: X.509-SVIDs for this supervisor's own processes.

Development, because it attests by kernel process id against processes that one supervisor
started. Production uses SPIRE behind the same socket protocol.
"""

import asyncio
import os
import random
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from weakref import WeakSet

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.server import Server
from spiffe._proto import workload_pb2

from meshgate_identities import attestation
from meshgate_identities.authority import SVID_LIFE, DevelopmentAuthority
from meshgate_identities.spiffe_id import SCHEME, SpiffeId

HEADER = "workload.spiffe.io"  # SPIFFE Workload Endpoint §5: must be "true"
RENEW_AT = 0.5  # of the life, as SPIRE does
JITTER = 0.1  # so that many workloads do not renew at once


@dataclass(frozen=True, slots=True)
class Entry:
    """What one process is entitled to.

    Attributes:
        process: pid and start time.
        pidfd: readable once that process has ended; closed when the entry goes.
        spiffe_id: the one URI SAN.
        dns_names: DNS SANs.
    """

    process: attestation.Process
    pidfd: int
    spiffe_id: SpiffeId
    dns_names: tuple[str, ...]


class WorkloadApiServer:
    """Serves FetchX509SVID and FetchX509Bundles on a Unix socket, on a thread of its own.

    Entries may be registered and forgotten from any thread. A process is admitted by its exact
    pid and start time, and only while it lives: its children get nothing, nor does a later process
    with the same pid. A change of entries reaches open streams at once.
    """

    def __init__(
        self, *, socket_path: Path, authority: DevelopmentAuthority, ttl: timedelta = SVID_LIFE
    ) -> None:
        self._socket_path = socket_path
        self._authority = authority
        self._ttl = ttl
        self._entries: dict[int, Entry] = {}
        self._given: dict[int, bytes] = {}  # the last chain sent, by pid of an entry
        self._lock = threading.Lock()  # guards the entries and the life of their pidfds
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._transports: WeakSet[asyncio.BaseTransport] = WeakSet()
        self._changed = asyncio.Event()  # replaced at each change; used on the loop's thread only
        self._thread = threading.Thread(target=self._run, name="workload-api", daemon=True)
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Opens the socket (0600).

        Raises:
            OSError: the socket cannot be bound, or the kernel cannot name its peers.
        """
        attestation.check_kernel()
        self._thread.start()
        self._ready.wait()
        if self._failure:
            raise self._failure

    def close(self) -> None:
        """Ends all streams and removes the socket."""
        with suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread.ident is not None:
            self._thread.join(timeout=5)
        for pid in list(self._entries):
            self.forget(pid)

    def register(self, pid: int, spiffe_id: SpiffeId, dns_names: Sequence[str] = ()) -> None:
        """Entitles a living process to an SVID.

        Call it before the process is reaped: until then its pid cannot be anyone else's.

        Raises:
            ProcessLookupError: it ended already.
            ValueError: a DNS name belongs to another SPIFFE ID; callers trust the gateway by it.
        """
        pidfd = os.pidfd_open(pid)
        try:
            entry = Entry(attestation.process(pid), pidfd, spiffe_id, tuple(dns_names))
            with self._lock:
                self._check_names(entry)
                replaced = self._entries.get(pid)
                self._entries[pid] = entry
                self._given.pop(pid, None)
        except (ProcessLookupError, ValueError):
            os.close(pidfd)
            raise
        self._end(replaced)

    def forget(self, pid: int) -> None:
        """Takes the entitlement away; what was issued lives on until it expires."""
        with self._lock:
            entry = self._entries.pop(pid, None)
            self._given.pop(pid, None)
        self._end(entry)

    def held(self, spiffe_id: SpiffeId) -> dict[int, bytes]:
        """The chain (DER) that each living process with this ID was sent last, by pid. Issues nothing.

        A process with several streams got one on each; the last one is told.
        """
        with self._lock:
            return {
                pid: self._given[pid]
                for pid, entry in self._entries.items()
                if entry.spiffe_id == spiffe_id
                and pid in self._given
                and not attestation.has_ended(entry.pidfd)
            }

    def _check_names(self, entry: Entry) -> None:
        for other in self._entries.values():
            shared = set(other.dns_names) & set(entry.dns_names)
            if shared and other.spiffe_id != entry.spiffe_id:
                raise ValueError(f"{sorted(shared)} belong to {other.spiffe_id}")

    def _end(self, entry: Entry | None) -> None:
        if entry is not None:
            os.close(entry.pidfd)  # no reader: the entry left the table, and readers hold the lock
        with suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._tell_streams)

    def _tell_streams(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except OSError as error:
            self._failure = error
        finally:
            self._ready.set()
            self._loop.close()

    def _bind(self) -> socket.socket:
        """Binds, and closes the socket to others before anyone can connect."""
        self._socket_path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(self._socket_path))
            self._socket_path.chmod(0o600)
        except OSError:
            listener.close()
            raise
        return listener

    async def _serve(self) -> None:
        server = Server([self])
        await server.start(sock=self._bind())
        self._ready.set()
        await self._stopping.wait()
        server.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(server.wait_closed(), timeout=2)
        # grpclib ends its handlers but leaves connections open: a client would wait for ever.
        for transport in self._transports:
            transport.close()
        await asyncio.sleep(0)  # transports close on the loop's next turn
        self._socket_path.unlink(missing_ok=True)

    def __mapping__(self) -> dict[str, Handler]:
        """Grpclib's table of methods; JWT methods answer UNIMPLEMENTED."""
        prefix = "/SpiffeWorkloadAPI/"
        return {
            f"{prefix}FetchX509SVID": Handler(
                self._fetch_svid,
                Cardinality.UNARY_STREAM,
                workload_pb2.X509SVIDRequest,
                workload_pb2.X509SVIDResponse,
            ),
            f"{prefix}FetchX509Bundles": Handler(
                self._fetch_bundles,
                Cardinality.UNARY_STREAM,
                workload_pb2.X509BundlesRequest,
                workload_pb2.X509BundlesResponse,
            ),
        }

    async def _fetch_svid(self, stream: Any) -> None:
        await self._send_each_life(stream, self._issue, self._note)

    async def _fetch_bundles(self, stream: Any) -> None:
        bundles = {f"{SCHEME}{self._authority.trust_domain}": self._authority.bundle_der}
        await self._send_each_life(stream, lambda _: workload_pb2.X509BundlesResponse(bundles=bundles))

    async def _send_each_life(
        self, stream: Any, make: Callable[[Entry], Any], note: Callable[[Entry, Any], None] | None = None
    ) -> None:
        """Sends the full state at once, at each renewal, and when the peer's entry changes."""
        await stream.recv_message()
        sent: Entry | None = None
        renew_at = 0.0
        with suppress(StreamTerminatedError):
            while True:
                changed = self._changed  # read before the entry, so that no change is missed
                entry = self._attest(stream)
                if entry is not sent or self._loop.time() >= renew_at:
                    message = make(entry)
                    await stream.send_message(message)
                    if note is not None:
                        note(entry, message)
                    sent, renew_at = entry, self._loop.time() + self._renewal_seconds()
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), max(0.0, renew_at - self._loop.time()))

    def _note(self, entry: Entry, message: Any) -> None:
        """Keeps what was sent, but for the key, while the process is entitled to it."""
        with self._lock:
            if self._entries.get(entry.process.pid) is entry:
                self._given[entry.process.pid] = bytes(message.svids[0].x509_svid)

    def _renewal_seconds(self) -> float:
        spread = random.uniform(-JITTER, JITTER)  # noqa: S311 - spreads load, guards nothing
        return self._ttl.total_seconds() * RENEW_AT * (1 + spread)

    def _attest(self, stream: Any) -> Entry:
        """Asks the kernel who is connected.

        Raises:
            GRPCError: INVALID_ARGUMENT without the header, PERMISSION_DENIED without an entry.
        """
        if stream.metadata.get(HEADER) != "true":
            raise GRPCError(Status.INVALID_ARGUMENT, f"the {HEADER} header must be 'true'")
        # grpclib shows a peer's address and TLS certificate but no socket, and its events come
        # after the same point. The transport beneath is asyncio's, whose "socket" is public. Were
        # the attribute renamed, every request would fail here (UNKNOWN) and the tests with it.
        transport: asyncio.BaseTransport = stream.peer._transport  # noqa: SLF001
        self._transports.add(transport)
        connected: attestation.Connected = transport.get_extra_info("socket")
        try:
            found = attestation.peer(connected)
        except ProcessLookupError as error:
            raise GRPCError(Status.PERMISSION_DENIED, "the process has ended") from error
        with self._lock:
            entry = self._entries.get(found.process.pid)
            if entry is None or entry.process != found.process or attestation.has_ended(entry.pidfd):
                raise GRPCError(Status.PERMISSION_DENIED, "no identity is registered for this process")
            return entry

    def _issue(self, entry: Entry) -> workload_pb2.X509SVIDResponse:
        issued = self._authority.issue(spiffe_id=entry.spiffe_id, dns_names=entry.dns_names, ttl=self._ttl)
        svid = workload_pb2.X509SVID(
            spiffe_id=str(entry.spiffe_id),
            x509_svid=issued.chain_der,
            x509_svid_key=issued.key_der,
            bundle=self._authority.bundle_der,
        )
        return workload_pb2.X509SVIDResponse(svids=[svid])
