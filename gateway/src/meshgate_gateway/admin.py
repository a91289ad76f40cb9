"""The operator's door, without its wire."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from meshgate_audit.chain import Verification, verify
from meshgate_policies.judge import INVALID, judge

from meshgate_gateway import runs
from meshgate_gateway.archive import Archive, Part, Purged
from meshgate_gateway.authenticate import Door
from meshgate_gateway.drive import Drive, Order
from meshgate_gateway.errors import (
    InvalidRequest,
    ListingMismatch,
    NotPermitted,
    Refused,
    StoreUnavailable,
)
from meshgate_gateway.health import Health
from meshgate_gateway.history import Branch, BranchOrder, History
from meshgate_gateway.hosts import Hosts
from meshgate_gateway.model import (
    Caller,
    Kind,
    LedgerRow,
    Outcome,
    Presented,
    Run,
    State,
)
from meshgate_gateway.payloads import Vault
from meshgate_gateway.policy import ActivePolicy, PolicyPlace, PolicySlot
from meshgate_gateway.record import Recorder
from meshgate_gateway.store import CallQuery, RecordQuery, Store
from meshgate_gateway.views import Question, RunView, Views

T = TypeVar("T")

PAGE = 1000  # records per read while verifying

SAMPLE: dict[str, object] = {
    "caller": {"spiffe_id": "", "trust_domain": "", "namespace": "", "app": ""},
    "call": {"tool": "", "host": "", "effect": "", "kind": "tool", "args": {}},
    "run": None,
    "delegation": [],
    "approval": None,
    "budget": {},
    "time": "1970-01-01T00:00:00.000Z",
    "untrusted": {},
}


@dataclass(frozen=True, slots=True)
class Status:
    """How the gateway is."""

    not_ready: tuple[str, ...]
    policy_revision: str
    records: int
    calls_by_state: dict[str, int]


@dataclass(frozen=True, slots=True)
class Admin:
    """Everything an operator may ask. Nobody else may ask any of it."""

    door: Door
    store: Store
    policy: PolicySlot
    recorder: Recorder
    health: Health
    open_policy: Callable[[PolicyPlace], ActivePolicy]
    run_control: runs.Runs
    hosts: Hosts
    vault: Vault
    history: History
    archive: Archive
    drive: Drive

    def _enter(self, presented: Presented, method: str, serve: Callable[[Caller], T]) -> T:
        def only_operators(caller: Caller) -> T:
            if caller.kind is not Kind.OPERATOR:
                raise NotPermitted("admin_not_permitted", detail="no operator")
            try:
                return serve(caller)
            except Refused as error:
                error.told = True
                raise

        return self.door.enter(presented, method, only_operators)

    def status(self, presented: Presented) -> Status:
        """Readiness, policy, and counts; no counts while the store is away, for then the reason matters."""

        def serve(_: Caller) -> Status:
            revision = self.policy.active.revision
            try:
                head, counts = self.store.read(lambda tables: (tables.records.head(), tables.counts()))
            except StoreUnavailable as error:
                reasons = {*self.health.reasons, error.reason}
                return Status(tuple(sorted(reasons)), revision, 0, {})
            return Status(self.health.reasons, revision, head.seq, counts)

        return self._enter(presented, "Status", serve)

    def records(self, presented: Presented, query: RecordQuery) -> Sequence[tuple[int, bytes]]:
        """Records, oldest first."""
        return self._enter(
            presented, "QueryRecords", lambda _: self.store.read(lambda tables: tables.records.query(query))
        )

    def runs(self, presented: Presented, limit: int) -> Sequence[Run]:
        """Runs, newest first."""

        def serve(_: Caller) -> Sequence[Run]:
            found = self.store.read(lambda tables: tables.runs.list(limit))
            return [self.drive.shown(run) for run in found]

        return self._enter(presented, "ListRuns", serve)

    def calls(self, presented: Presented, query: CallQuery) -> Sequence[LedgerRow]:
        """Calls, newest first."""
        return self._enter(
            presented, "ListCalls", lambda _: self.store.read(lambda tables: tables.calls.query(query))
        )

    def show(self, presented: Presented, question: Question) -> RunView:
        """A run, and what went in and what came out of it; who reads clear text is recorded."""

        def serve(caller: Caller) -> RunView:
            view = Views(self.store, self.vault, self.recorder).of(question, caller=caller.spiffe_id)
            return replace(view, run=self.drive.shown(view.run))

        return self._enter(presented, "ShowRun", serve)

    def start(self, presented: Presented, order: Order, *, operator: str) -> Run:
        """Orders a run of an app."""

        def serve(caller: Caller) -> Run:
            return self.drive.order(order, operator=operator[:128], local=self.drive.mesh.is_local(caller))

        return self._enter(presented, "StartRun", serve)

    def control(self, presented: Presented, *, run_id: str, action: str, operator: str) -> Run:
        """Cancels, pauses, resumes a run, or decides on one that waits."""

        def serve(_: Caller) -> Run:
            run = self.run_control.control(run_id=run_id, action=action, operator=operator[:128])
            if action == "cancel":
                for each in self.run_control.family(run_id):
                    self.hosts.cut(each)
            return run

        return self._enter(presented, "ControlRun", serve)

    def branch(self, presented: Presented, order: BranchOrder, *, dry_run: bool) -> Branch:
        """Makes a fork or a re-run of a run and tells its app, or says what one would be."""
        order = replace(order, operator=order.operator[:128])

        def serve(caller: Caller) -> Branch:
            plan = self.history.plan(order)
            app, local = plan.run.app.rpartition("/")[2], self.drive.mesh.is_local(caller)
            self.drive.check_command(app, plan.given, local=local)
            if dry_run:
                return plan
            made = self.history.make(order)
            if made.run.state == "pending":
                self.drive.deliver(made.run)
            return made

        return self._enter(presented, "BranchRun", serve)

    def export(
        self, presented: Presented, *, run_id: str, from_step: int, operator: str, from_byte: int = 0
    ) -> Part:
        """A part of all that a run is; who asks for it is recorded."""
        ask = self.archive.part
        return self._enter(
            presented,
            "ExportRun",
            lambda _: ask(run_id=run_id, from_step=from_step, operator=operator[:128], from_byte=from_byte),
        )

    def purge(
        self, presented: Presented, *, run_id: str, digest: str, without_export: bool, operator: str
    ) -> Purged:
        """Deletes a run's clear text for good."""
        ask = self.archive.purge
        return self._enter(
            presented,
            "PurgeRun",
            lambda _: ask(
                run_id=run_id, digest=digest, without_export=without_export, operator=operator[:128]
            ),
        )

    def resolve(self, presented: Presented, *, call_id: str, outcome: Outcome, operator: str) -> State:
        """Says how an unknown call ended."""
        return self._enter(
            presented,
            "ResolveCall",
            lambda _: self.hosts.resolve(call_id=call_id, outcome=outcome, operator=operator[:128]),
        )

    def activate(self, presented: Presented, *, place: PolicyPlace, operator: str) -> ActivePolicy:
        """Puts a policy in force after its engine gave one well-formed answer; recorded first.

        On return no decision uses the policy before: its engine may be stopped.
        """

        def serve(caller: Caller) -> ActivePolicy:
            try:
                policy = self.open_policy(place)
            except ListingMismatch as error:
                raise InvalidRequest("listing_mismatch", detail=str(error)) from error
            if judge(policy.engine.evaluate(SAMPLE)) == INVALID:
                raise InvalidRequest("policy_invalid", detail="its answer is no decision")
            record = self.recorder.policy(policy=policy, by=caller.spiffe_id, operator=operator[:128])
            self.policy.activate(
                policy, record=lambda: self.store.write(lambda tables: tables.records.append(record))
            )
            return policy

        return self._enter(presented, "ActivatePolicy", serve)

    def verify(self, presented: Presented) -> Verification:
        """Checks the whole chain, page by page."""
        return self._enter(presented, "VerifyRecords", lambda _: self._verified())

    def _verified(self) -> Verification:
        head = self.store.read(lambda tables: tables.records.head())
        return verify(self._pages(head.seq), head=head)

    def _pages(self, last: int) -> Iterator[bytes]:
        seq = 0
        while seq < last:
            query = RecordQuery(after_seq=seq, limit=min(PAGE, last - seq))
            page = self._page(query)
            if not page:
                return
            yield from (body for _, body in page)
            seq = page[-1][0]

    def _page(self, query: RecordQuery) -> Sequence[tuple[int, bytes]]:
        return self.store.read(lambda tables: tables.records.query(query))
