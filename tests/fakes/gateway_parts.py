"""Stand-ins for the gateway's neighbours: an engine, a certificate check, a host, a failing store."""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from meshgate_gateway.errors import PolicyUnavailable, Refused, RuntimeUnavailable, StoreUnavailable
from meshgate_gateway.model import Outcome, Presented, State
from meshgate_identities.errors import AuthenticationFailed
from meshgate_identities.spiffe_id import SpiffeId

ALLOW = {"allow": True, "reasons": [], "approval": None, "obligations": {}}


def deny(*reasons: str) -> dict[str, object]:
    """A well-formed denial."""
    return {"allow": False, "reasons": list(reasons), "approval": None, "obligations": {}}


class ProgrammedPolicy:
    """An engine that answers what it was told, and remembers what it was asked."""

    def __init__(self, answer: object = ALLOW) -> None:
        self.answer = answer
        self.away = False
        self.asked: list[Mapping[str, Any]] = []

    def evaluate(self, policy_input: Mapping[str, object]) -> object:
        if self.away:
            raise PolicyUnavailable(detail="stopped by the test")
        self.asked.append(policy_input)
        return self.answer(policy_input) if callable(self.answer) else self.answer


@dataclass(frozen=True)
class _Peer:
    spiffe_id: SpiffeId
    serial_hex: str = "01"
    leaf_sha256: str = "ab" * 32
    not_after: datetime = datetime(2100, 1, 1, tzinfo=UTC)


class NamedPeers:
    """Takes the 'certificate' for a SPIFFE ID in plain text: for tests below the wire."""

    def verify(self, *, chain_pem: bytes, tls_version: str | None) -> _Peer:
        if not chain_pem.startswith(b"spiffe://"):
            raise AuthenticationFailed(reason="chain", detail="no certificate of this fake")
        return _Peer(SpiffeId.parse(chain_pem.decode()))


def peer(app: str, *, mesh: str = "desk", trust_domain: str = "desk.example") -> Presented:
    """A connection of an app, as NamedPeers reads it."""
    return Presented(f"spiffe://{trust_domain}/ns/{mesh}/{app}".encode(), "TLSv1.3", "test:1")


@dataclass
class HostRuntime:
    """A tool host in this process: takes, runs, finishes. Counts effects by call id.

    `held` keeps deliveries back, as a runtime does whose host is down; `deliver_all` lets them go.
    """

    tools: dict[str, Callable[..., object]] = field(default_factory=dict)
    effects: list[str] = field(default_factory=list)
    held: bool = False
    away: bool = False
    asked: int = 0
    on_ask: Callable[[], object] = lambda: None
    background: bool = False
    waiting: list[tuple[str, str]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    instance: str = "instance-1"
    started: list[tuple[str, str]] = field(default_factory=list)
    tellings: set[tuple[str, str]] = field(default_factory=set)
    hosts: Any = None
    present: Callable[[str], Presented] = peer

    def dispatch(self, call_id: str, host: str, *, fresh: bool = False) -> None:
        self._answer()
        if self.held:
            self.waiting.append((call_id, host))
        elif self.background:
            threading.Thread(target=self.run, args=(call_id, host), daemon=True).start()
        else:
            self.run(call_id, host)

    def start_run(self, run_id: str, app: str, *, telling: str) -> None:
        self._answer()
        if (run_id, telling) not in self.tellings:
            self.tellings.add((run_id, telling))
            self.started.append((run_id, app))

    def _answer(self) -> None:
        self.asked += 1
        self.on_ask()
        if self.away:
            raise RuntimeUnavailable(detail="stopped by the test")

    def deliver_all(self) -> None:
        waiting, self.waiting = self.waiting, []
        for call_id, host in waiting:
            self.run(call_id, host)

    def run(self, call_id: str, host: str) -> None:
        """One delivery; a refusal ends it, as it ends a real activity."""
        try:
            taken = self.hosts.take(self.present(host), call_id=call_id, host_instance=self.instance)
        except Refused as refused:
            self.refusals.append(refused.reason)
            return
        self.effects.append(call_id)
        outcome = self._outcome(taken.row.tool, json.loads(taken.arguments))
        self.hosts.finish(
            self.present(host),
            call_id=call_id,
            take=taken.row.take,
            host_instance=self.instance,
            outcome=outcome,
        )

    def _outcome(self, tool: str, arguments: dict[str, object]) -> Outcome:
        run = self.tools.get(tool, lambda **given: json.dumps(given))
        try:
            return Outcome(State.DONE, str(run(**arguments)).encode(), "text")
        except ValueError as error:
            return Outcome(State.FAILED, str(error).encode(), "", type(error).__name__)


class FaultyStore:
    """A store that fails both ways: before anything is stored, and after all of it is."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.fail_before = False
        self.fail_after = False

    def write(self, work: Callable[[Any], Any]) -> Any:
        if self.fail_before:
            raise StoreUnavailable(detail="not stored, says the test")
        value = self._store.write(work)
        if self.fail_after:
            self.fail_after = False
            raise StoreUnavailable(detail="stored, but reported failed, says the test")
        return value

    def read(self, work: Callable[[Any], Any]) -> Any:
        return self._store.read(work)

    def probe(self) -> None:
        if self.fail_before:
            raise StoreUnavailable(detail="not stored, says the test")
        self._store.probe()

    def close(self) -> None:
        self._store.close()
