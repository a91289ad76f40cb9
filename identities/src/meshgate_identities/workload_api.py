"""The development SPIFFE Workload API: X.509-SVIDs for this supervisor's own processes.

Development, because it attests by kernel process id against processes that one supervisor
started. Production uses SPIRE behind the same socket protocol.
"""

import asyncio
import random
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.server import Server
from spiffe._proto import workload_pb2

from meshgate_identities import attestation
from meshgate_identities.authority import SVID_LIFE, DevelopmentAuthority
from meshgate_identities.spiffe_id import SpiffeId

HEADER = "workload.spiffe.io"  # SPIFFE Workload Endpoint §5: must be "true"
RENEW_AT = 0.5  # of the life, as SPIRE does
JITTER = 0.1  # so that many workloads do not renew at once


@dataclass(frozen=True, slots=True)
class Entry:
    """What one process is entitled to."""

    process: attestation.Process
    spiffe_id: SpiffeId
    dns_names: tuple[str, ...]


class WorkloadApiServer:
    """Serves FetchX509SVID and FetchX509Bundles on a Unix socket, on a thread of its own.

    Entries may be registered and forgotten from any thread. A process is admitted by its exact
    pid and start time: a child of a registered process gets nothing.
    """

    def __init__(
        self, *, socket_path: Path, authority: DevelopmentAuthority, ttl: timedelta = SVID_LIFE
    ) -> None:
        self._socket_path = socket_path
        self._authority = authority
        self._ttl = ttl
        self._entries: dict[int, Entry] = {}
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="workload-api", daemon=True)
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Opens the socket (0600).

        Raises:
            OSError: the socket cannot be bound.
        """
        self._thread.start()
        self._ready.wait()
        if self._failure:
            raise self._failure

    def close(self) -> None:
        """Ends all streams and removes the socket."""
        with suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(timeout=5)

    def register(self, pid: int, spiffe_id: SpiffeId, dns_names: Sequence[str] = ()) -> None:
        """Entitles a living process to an SVID.

        Raises:
            ProcessLookupError: it ended already.
        """
        self._entries[pid] = Entry(attestation.process(pid), spiffe_id, tuple(dns_names))

    def forget(self, pid: int) -> None:
        """Takes the entitlement away; what was issued lives on until it expires."""
        self._entries.pop(pid, None)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except OSError as error:
            self._failure = error
        finally:
            self._ready.set()
            self._loop.close()

    async def _serve(self) -> None:
        self._socket_path.unlink(missing_ok=True)
        server = Server([self])
        await server.start(path=str(self._socket_path))
        self._socket_path.chmod(0o600)
        self._ready.set()
        await self._stopping.wait()
        server.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(server.wait_closed(), timeout=2)
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
        await stream.recv_message()
        with suppress(StreamTerminatedError):
            while True:
                entry = self._attest(stream)
                await stream.send_message(self._issue(entry))
                await self._until_renewal()

    async def _fetch_bundles(self, stream: Any) -> None:
        await stream.recv_message()
        with suppress(StreamTerminatedError):
            while True:
                self._attest(stream)
                bundles = {f"spiffe://{self._authority.trust_domain}": self._authority.bundle_der}
                await stream.send_message(workload_pb2.X509BundlesResponse(bundles=bundles))
                await self._until_renewal()

    async def _until_renewal(self) -> None:
        spread = random.uniform(-JITTER, JITTER)  # noqa: S311 - spreads load, guards nothing
        await asyncio.sleep(self._ttl.total_seconds() * (RENEW_AT + spread))

    def _attest(self, stream: Any) -> Entry:
        """Asks the kernel who is connected.

        Raises:
            GRPCError: INVALID_ARGUMENT without the header, PERMISSION_DENIED without an entry.
        """
        if stream.metadata.get(HEADER) != "true":
            raise GRPCError(Status.INVALID_ARGUMENT, f"the {HEADER} header must be 'true'")
        # grpclib shows no socket; its transport is asyncio's, which does.
        connected: socket.socket = stream.peer._transport.get_extra_info("socket")  # noqa: SLF001
        try:
            found = attestation.peer(connected)
        except ProcessLookupError as error:
            raise GRPCError(Status.PERMISSION_DENIED, "the process has ended") from error
        entry = self._entries.get(found.process.pid)
        if entry is None or entry.process != found.process:
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
