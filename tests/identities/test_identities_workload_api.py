"""The development Workload API: who gets what, by the kernel's word, and for how long."""

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fakes.certificates import authority as root_of
from fakes.certificates import make, uri
from meshgate_identities import attestation
from meshgate_identities.authority import DevelopmentAuthority, IssuedSvid
from meshgate_identities.describe import describe
from meshgate_identities.errors import IdentityUnavailable
from meshgate_identities.source import IdentitySource
from meshgate_identities.spiffe_id import SpiffeId
from meshgate_identities.workload_api import WorkloadApiServer
from spiffe import SpiffeId as TheirSpiffeId
from spiffe import TrustDomain, WorkloadApiClient, X509Source
from spiffe._proto import workload_pb2, workload_pb2_grpc

ME = os.getpid()
DESK = SpiffeId.parse("spiffe://mesh.test/ns/m/desk")
BILLING = SpiffeId.parse("spiffe://mesh.test/ns/m/billing")
HEADER = (("workload.spiffe.io", "true"),)
SECONDS = 10
# Waits for a line, asks for an SVID, and prints the ID or the error.
CHILD = """
import sys
from spiffe import WorkloadApiClient
sys.stdin.readline()
try:
    print(WorkloadApiClient(sys.argv[1]).fetch_x509_svid(timeout=10).spiffe_id, flush=True)
except Exception as error:
    print(error, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def root(tmp_path) -> DevelopmentAuthority:
    return DevelopmentAuthority(directory=tmp_path / "ca", trust_domain="mesh.test")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "w.sock"


@pytest.fixture
def api(root, path):
    server = WorkloadApiServer(socket_path=path, authority=root)
    server.start()
    yield server
    server.close()


@contextmanager
def quick(root, path, seconds: float = 2):
    """A server whose SVIDs live for seconds; this process is the desk."""
    server = WorkloadApiServer(socket_path=path, authority=root, ttl=timedelta(seconds=seconds))
    server.start()
    server.register(ME, DESK)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def watching(path, timeout_seconds: float = SECONDS):
    source = IdentitySource(socket_path=path)
    source.start(timeout_seconds)
    try:
        yield source
    finally:
        source.close()


@contextmanager
def child(path):
    """A process that has not asked yet."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, f"unix:{path}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def asks(process: subprocess.Popen) -> str:
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def raw(path, method: str = "FetchX509SVID", metadata=HEADER):
    """One request by hand: its first answer, or its status code."""
    request = {
        "FetchX509SVID": workload_pb2.X509SVIDRequest,
        "FetchX509Bundles": workload_pb2.X509BundlesRequest,
    }
    with grpc.insecure_channel(f"unix:{path}") as channel:
        call = getattr(workload_pb2_grpc.SpiffeWorkloadAPIStub(channel), method)
        try:
            return next(call(request[method](), metadata=metadata, timeout=SECONDS))
        except grpc.RpcError as error:
            return error.code()


def until(what, seconds: float = SECONDS):
    """Polls until something is true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.01)
    return found


def served(source: IdentitySource) -> bool:
    with suppress(IdentityUnavailable):
        return bool(source.snapshot())
    return False


def test_the_unmodified_client_gets_its_svid_and_bundle(api, path, root) -> None:
    """py-spiffe fetches SVID, bundles and the whole context."""
    api.register(ME, DESK)
    with WorkloadApiClient(f"unix:{path}") as client:
        svid = client.fetch_x509_svid(timeout=SECONDS)
        bundle = client.fetch_x509_bundles(timeout=SECONDS).get_bundle_for_trust_domain(
            TrustDomain("mesh.test")
        )
    assert svid.spiffe_id == TheirSpiffeId(str(DESK))
    assert {each.public_bytes(Encoding.DER) for each in bundle.x509_authorities} == {root.bundle_der}
    with X509Source(socket_path=f"unix:{path}", timeout_in_seconds=SECONDS) as theirs:
        assert str(theirs.get_x509_context().default_svid.spiffe_id) == str(DESK)


@pytest.mark.parametrize("method", ["FetchX509SVID", "FetchX509Bundles"])
@pytest.mark.parametrize("metadata", [(), (("workload.spiffe.io", "false"),), (("workload.spiffe.io", ""),)])
def test_the_header_is_mandatory(api, path, method, metadata) -> None:
    """Without `workload.spiffe.io: true` even an entitled process gets nothing."""
    api.register(ME, DESK)
    assert raw(path, method, metadata) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", ["FetchX509SVID", "FetchX509Bundles"])
def test_an_unregistered_process_is_denied(api, path, method) -> None:
    """A process of the same user that nobody registered gets neither SVID nor bundle."""
    assert raw(path, method) is grpc.StatusCode.PERMISSION_DENIED


def test_a_registered_process_gets_its_own_identity(api, path) -> None:
    """Two processes of one binary and one user get each their own."""
    with child(path) as one, child(path) as two:
        api.register(one.pid, DESK)
        api.register(two.pid, BILLING)
        assert asks(one) == str(DESK)
        assert asks(two) == str(BILLING)


def told_once(api, count: int) -> dict[int, bytes]:
    """What desks hold, once so many do: the client may have its certificate before the server notes that."""
    give_up_at = time.monotonic() + SECONDS
    while len(held := api.held(DESK)) < count:
        assert time.monotonic() < give_up_at, held
        time.sleep(0.01)
    return held


def test_what_each_process_holds_can_be_told(api, path) -> None:
    """By its exact chain, and only while it is entitled; nothing is issued for the telling."""
    assert api.held(DESK) == {}
    api.register(ME, DESK)
    assert api.held(DESK) == {}  # it has not asked
    with watching(path) as source, child(path) as other:
        api.register(other.pid, DESK)
        assert asks(other) == str(DESK)
        held = told_once(api, 2)
        assert set(held) == {ME, other.pid}
        assert held == api.held(DESK)
        told = describe(held[ME])
        (leaf,) = x509.load_pem_x509_certificates(source.snapshot().chain_pem)
        assert held[ME] == leaf.public_bytes(Encoding.DER)
        assert held[ME] != held[other.pid]
        assert (told.spiffe_id, told.key_type, told.chain_length) == (DESK, "EC P-256", 1)
        assert (told.serial_hex, told.issuer) == (f"{leaf.serial_number:x}", leaf.issuer.rfc4514_string())
        assert (told.not_before, told.not_after) == (leaf.not_valid_before_utc, leaf.not_valid_after_utc)
        assert told.sha256 == leaf.fingerprint(hashes.SHA256()).hex()
        other.kill()
        other.wait()
        assert set(api.held(DESK)) == {ME}
        assert api.held(BILLING) == {}
        api.forget(ME)
        assert api.held(DESK) == {}


def test_another_identity_is_not_told_with_the_old_certificate(api, path) -> None:
    """Who is registered anew holds nothing under the new name until it was sent."""
    api.register(ME, DESK)
    with watching(path):
        assert set(told_once(api, 1)) == {ME}
    api.register(ME, BILLING)
    assert api.held(DESK) == api.held(BILLING) == {}


def test_a_chain_is_told_by_its_leaf(root) -> None:
    """Certificates stand one after the other; what is cut off is no chain."""
    svid = root.issue(spiffe_id=DESK)
    told = describe(svid.chain_der + root.bundle_der)
    assert (told.spiffe_id, told.chain_length) == (DESK, 2)
    for bad in (b"", svid.chain_der[:-1], b"0"):
        with pytest.raises(ValueError, match=r"cut off|no certificate|pars"):
            describe(bad)


def test_a_child_of_a_registered_process_is_denied(api, path) -> None:
    """Only the exact pid counts: our own child gets nothing, though we are entitled."""
    api.register(ME, DESK)
    with child(path) as process:
        assert "PERMISSION_DENIED" in asks(process)


def test_the_start_time_must_match(api, path) -> None:
    """The same pid with another start time is another process."""
    api.register(ME, DESK)
    entry = api._entries[ME]
    older = replace(entry.process, start_ticks=entry.process.start_ticks - 1)
    api._entries[ME] = replace(entry, process=older)
    assert raw(path) is grpc.StatusCode.PERMISSION_DENIED


def test_the_registered_process_must_live(api, path) -> None:
    """An entry whose pidfd says that its process ended entitles nobody, were all else equal."""
    with child(path) as process:
        api.register(process.pid, DESK)
    dead = api._entries[process.pid]
    api._entries[ME] = replace(dead, process=attestation.process(ME))
    try:
        assert raw(path) is grpc.StatusCode.PERMISSION_DENIED
    finally:
        del api._entries[ME]  # the pidfd belongs to the other entry


def test_a_reused_pid_is_denied(api, path) -> None:
    """A new process that the kernel gives a dead one's pid does not inherit its entry."""
    chooser = Path("/proc/sys/kernel/ns_last_pid")
    with child(path) as first:
        api.register(first.pid, DESK)
    for _ in range(200):
        try:
            chooser.write_text(str(first.pid - 1))
        except OSError:
            pytest.skip("the next pid cannot be chosen here")
        with child(path) as second:
            if second.pid == first.pid:
                assert "PERMISSION_DENIED" in asks(second)
                return
    pytest.skip("other processes took the pid each time")


def test_a_peer_that_has_ended_is_nobody(tmp_path) -> None:
    """A connection that outlives its process is not attested."""
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        connect = (
            "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.stdin.read()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", connect, str(tmp_path / "s")], stdin=subprocess.PIPE
        )
        connected, _ = listener.accept()
        with connected:
            found = attestation.peer(connected)
            assert found.process.pid == process.pid
            assert found.uid == os.getuid()
            assert attestation.is_descendant(process.pid, attestation.process(ME))
            process.communicate()
            with pytest.raises(ProcessLookupError):
                attestation.peer(connected)
    with pytest.raises(ProcessLookupError):
        attestation.process(process.pid)


def test_a_dead_process_cannot_be_registered(api, path) -> None:
    """Registering a pid that is gone is an error."""
    with child(path) as process:
        pass
    with pytest.raises(ProcessLookupError):
        api.register(process.pid, DESK)


def test_a_dns_name_belongs_to_one_app(api, path) -> None:
    """The gateway's name is given to nobody else, not even after an error; the gateway keeps it."""
    with child(path) as process:
        api.register(ME, DESK, ["gateway.m.mesh.test"])
        with pytest.raises(ValueError, match="belong"):
            api.register(process.pid, BILLING, ["gateway.m.mesh.test"])
        assert "PERMISSION_DENIED" in asks(process)
        api.register(ME, DESK, ["gateway.m.mesh.test"])


def test_the_socket_is_for_its_owner_only(api, path) -> None:
    """Mode 0600, and gone after close."""
    assert path.stat().st_mode & 0o777 == 0o600
    api.close()
    assert not path.exists()


def test_a_socket_that_cannot_be_bound_is_an_error(root, tmp_path) -> None:
    """A path that is too long fails the start, not the first client."""
    with pytest.raises(OSError, match="too long"):
        WorkloadApiServer(socket_path=tmp_path / ("x" * 120), authority=root).start()


def test_an_old_kernel_is_an_error(root, path, monkeypatch) -> None:
    """Where the kernel cannot name a peer safely, the server does not start."""
    monkeypatch.setattr(attestation, "SO_PEERPIDFD", 9999)
    with pytest.raises(OSError, match=r"Linux 6\.5"):
        WorkloadApiServer(socket_path=path, authority=root).start()
    assert not path.exists()


def test_rotation_is_seen_live(root, path) -> None:
    """Certificate and key change at half life, without a gap and without a new start."""
    seen = []
    with quick(root, path), watching(path) as source:
        end = source.subscribe(seen.append)
        first = source.snapshot()
        until(lambda: len(seen) >= 3 or not served(source))
        assert served(source)
        keys = {each.key_pem for each in (first, *seen)}
        assert len(keys) == len(seen) + 1
        assert {each.spiffe_id for each in seen} == {DESK}
        assert all(each.not_after > datetime.now(UTC) - timedelta(seconds=SECONDS) for each in seen)
        end()
        end()


def test_a_forgotten_process_is_told_at_once(api, path) -> None:
    """With an hour to live the SVID is dropped as soon as the entry goes, and is back with it."""
    api.register(ME, DESK)
    with watching(path) as source:
        api.forget(ME)
        until(lambda: not served(source), 3)
        api.register(ME, BILLING)
        until(lambda: served(source))
        assert source.snapshot().spiffe_id == BILLING


def test_a_changed_entry_reaches_open_streams(api, path) -> None:
    """A process registered anew under another name receives it on the same stream."""
    api.register(ME, DESK)
    with watching(path) as source:
        api.register(ME, BILLING)
        until(lambda: source.snapshot().spiffe_id == BILLING, 3)
        api.forget(4_194_303)  # an entry that never was: nobody is sent anything


def test_a_source_outlives_its_server(root, path) -> None:
    """The last state serves until it expires, not longer; a new server is found again."""
    with quick(root, path):
        source = IdentitySource(socket_path=path)
        source.start(SECONDS)
    assert served(source)
    last = source.snapshot().not_after
    until(lambda: not served(source))
    assert datetime.now(UTC) >= last
    with quick(root, path):
        until(lambda: served(source))
        source.close()


def test_a_silent_server_is_asked_again(root, path) -> None:
    """A server that says nothing more is asked anew once our SVID has expired."""
    with quick(root, path, seconds=1) as server:
        server._renewal_seconds = lambda: 3600.0
        with watching(path) as source:
            first = source.snapshot().key_pem
            until(lambda: served(source) and source.snapshot().key_pem != first)


def test_a_source_waits_for_its_registration(api, path) -> None:
    """Asking before the supervisor registered us is no failure, only a wait."""
    timer = threading.Timer(0.2, api.register, (ME, DESK))
    timer.start()
    with watching(path) as source:
        assert source.snapshot().spiffe_id == DESK
    timer.join()


def test_no_api_and_no_entitlement_are_named(api, path, tmp_path) -> None:
    """A start that fails says why."""
    with pytest.raises(IdentityUnavailable, match="PERMISSION_DENIED"):
        IdentitySource(socket_path=path).start(0.5)
    with pytest.raises(IdentityUnavailable, match="nowhere"):
        IdentitySource(socket_path=tmp_path / "nowhere.sock").start(0.5)


def test_the_snapshot_holds_what_tls_needs(api, path, root) -> None:
    """Chain, key and bundle as PEM; an unknown domain has no bundle."""
    api.register(ME, DESK)
    with watching(path) as source:
        snapshot = source.snapshot()
    assert snapshot.bundle_pem("mesh.test") == root.root.public_bytes(Encoding.PEM)
    assert b"PRIVATE KEY" in snapshot.key_pem
    with pytest.raises(IdentityUnavailable):
        snapshot.bundle_pem("other.test")
    with pytest.raises(TypeError):
        snapshot.bundles["other.test"] = ()


class Forger:
    """An authority that issues what a test made."""

    def __init__(self, trusted, leaf, key=None) -> None:
        self.trust_domain = "mesh.test"
        self.bundle_der = trusted.certificate.public_bytes(Encoding.DER)
        self._leaf, self._key = leaf, key or leaf.key

    def issue(self, *, spiffe_id, dns_names, ttl) -> IssuedSvid:
        return IssuedSvid(
            spiffe_id=spiffe_id,
            chain_der=self._leaf.certificate.public_bytes(Encoding.DER),
            key_der=self._key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
            not_after=datetime.now(UTC),
        )


CA = root_of("mesh.test")
WELL = make(names=[uri(str(DESK))], signer=CA)


@pytest.mark.parametrize(
    ("forger", "problem"),
    [
        (Forger(CA, WELL, make(names=None, signer=CA).key), "key does not belong"),
        (Forger(CA, make(names=[uri(str(DESK))], signer=CA, starts=timedelta(hours=-2))), "not_valid_now"),
        (Forger(CA, make(names=[uri(str(DESK))], signer=CA, life=timedelta(days=30))), "life_too_long"),
        (Forger(CA, make(names=[uri("spiffe://MESH.test/a")], signer=CA)), "spiffe_id_invalid"),
        (Forger(root_of("mesh.test"), WELL), "chain"),
    ],
    ids=["foreign-key", "expired", "a-month", "folded-case", "other-root"],
)
def test_a_source_takes_no_svid_that_peers_would_refuse(path, forger, problem) -> None:
    """py-spiffe takes all of these; our source names what is wrong and serves none."""
    server = WorkloadApiServer(socket_path=path, authority=forger)
    server.start()
    server.register(ME, DESK)
    try:
        with pytest.raises(IdentityUnavailable, match=problem):
            IdentitySource(socket_path=path).start(0.5)
    finally:
        server.close()
