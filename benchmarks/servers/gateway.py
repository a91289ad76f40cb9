"""A real gateway over mTLS on a real store, with as many of its guarantees as `--level` names.

decision  the call is recorded and reserved, synced; nothing runs, the answer is PENDING
outcome   the host takes it, runs it and settles it: two further synced transactions
opa       the same, and OPA is asked about every call (the levels before ask a constant)

The host is in this process: what is measured is the gateway, without Dapr and without the host's wire.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ca import DOMAIN, MESH, Authority
from meshgate_gateway.adapters.opa import Opa
from meshgate_gateway.adapters.sqlite_store import SqliteStore
from meshgate_gateway.authenticate import Mesh
from meshgate_gateway.broker import WAIT_SECONDS
from meshgate_gateway.compose import Gateway, Parts
from meshgate_gateway.errors import PolicyUnavailable
from meshgate_gateway.hosts import Hosts
from meshgate_gateway.model import Outcome, Presented, State
from meshgate_gateway.policy import ActivePolicy, PolicyPlace, PolicySlot
from meshgate_gateway.settings import DEFAULT_THREADS
from meshgate_identities.verification import PeerVerifier

from servers import desk, opa, serve_until_told, task


class AlwaysYes:
    """An engine that costs nothing, to show what OPA adds."""

    def evaluate(self, _policy_input: Mapping[str, object]) -> object:
        """Allows."""
        return {"allow": True, "reasons": [], "approval": None, "obligations": {}}


class NoRuntime:
    """Implements `compose.Runtime`: delivers nothing."""

    def dispatch(self, call_id: str, host: str, *, fresh: bool = False) -> None:
        """Nothing."""

    def start_run(self, run_id: str, app: str, *, telling: str) -> None:
        """Nothing."""


@dataclass
class HostInProcess(NoRuntime):
    """Implements `execute.ToolRuntime`: takes, runs and settles on the caller's thread."""

    presented: Presented
    hosts: Hosts | None = None

    def dispatch(self, call_id: str, host: str, *, fresh: bool = False) -> None:  # noqa: ARG002 - the port's
        """One delivery of an echo."""
        if self.hosts is None:
            raise RuntimeError("dispatched before it was composed")
        taken = self.hosts.take(self.presented, call_id=call_id, host_instance="bench")
        self.hosts.finish(
            self.presented,
            call_id=call_id,
            take=taken.row.take,
            host_instance="bench",
            outcome=Outcome(State.DONE, taken.arguments, "json"),
        )


def main() -> None:
    """Serves until the parent goes."""
    given = task()
    authority = Authority(given.ca)
    with ExitStack() as stack:
        policy, pids = ActivePolicy(AlwaysYes(), "none", "none"), []
        if given.level == "opa":
            server = stack.enter_context(opa.serving(given.folder / "opa", agents=given.agents))
            engine = Opa(socket_path=str(server.socket_path), token=opa.TOKEN)
            policy = ActivePolicy(engine, server.bundle.revision, server.bundle.sha256)
            pids = [server.pid]
        gateway, store = composed(given.folder, authority, policy, effects=given.level != "decision")
        gateway.start()
        try:
            serve_until_told(port=gateway.server.port, pids=pids)
        finally:
            gateway.stop(1.0)
            store.close()


def composed(
    folder: Path, authority: Authority, policy: ActivePolicy, *, effects: bool
) -> tuple[Gateway, SqliteStore]:
    """A gateway of real parts; only its runtime is ours."""
    bundles = {DOMAIN: (authority.root,)}
    store = SqliteStore(path=folder / "gateway.db")
    host = HostInProcess(Presented(authority.pair(desk.HOST)[1], "TLSv1.3", "in-process"))
    gateway = Gateway(
        parts=Parts(
            store=store,
            policy=PolicySlot(active=policy),
            runtime=host if effects else NoRuntime(),
            verifier=PeerVerifier(bundles=lambda: bundles, clock=lambda: datetime.now(UTC)),
            now_ms=lambda: time.time_ns() // 1_000_000,
            open_policy=_no_other_policy,
        ),
        mesh=Mesh(MESH, DOMAIN, frozenset(), desk.catalogue()),
        payload_key=b"k" * 32,
        listen="127.0.0.1:0",
        credentials=authority.server_credentials(),
        threads=DEFAULT_THREADS,
        wait_seconds=WAIT_SECONDS if effects else 0.0,
    )
    host.hosts = gateway.hosts
    return gateway, store


def _no_other_policy(_place: PolicyPlace) -> ActivePolicy:
    raise PolicyUnavailable(detail="a benchmark keeps its engine")


if __name__ == "__main__":
    main()
