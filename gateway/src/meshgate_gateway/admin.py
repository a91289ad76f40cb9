"""The operator's questions. Reads of the log are recorded like everything else."""

from collections.abc import Iterator
from dataclasses import dataclass

from meshgate_audit.chain import AuditRecord, verify
from meshgate_identities.spiffe_id import SpiffeId

from meshgate_gateway import ledger
from meshgate_gateway.broker import ActivePolicy, Books, Broker
from meshgate_gateway.errors import Refused
from meshgate_gateway.ledger import LedgerRow
from meshgate_gateway.record import Entry
from meshgate_gateway.store import Row, Transaction

MAX_ROWS = 1_000
VERIFY_BATCH = 5_000


@dataclass(frozen=True, slots=True)
class RecordQuery:
    """Which records: after `after_seq`, empty strings match all."""

    after_seq: int
    limit: int
    caller: str
    tool: str
    call_id: str
    kind: str


class Admin:
    """Callable by the mesh's operators only."""

    def __init__(self, *, books: Books, broker: Broker, operators: frozenset[str]) -> None:
        self._books = books
        self._broker = broker
        self._operators = operators

    def check(self, caller: SpiffeId) -> None:
        """Lets operators through.

        Raises:
            Refused: anybody else; recorded.
        """
        if str(caller) not in self._operators:
            error = Refused("operator_required", "only an operator may ask this")
            self._books.refuse(str(caller), "", "", error)
            raise error

    def counts(self) -> tuple[int, dict[str, int]]:
        """How many records there are, and calls by state."""

        def work(tx: Transaction) -> tuple[int, dict[str, int]]:
            records = tx.execute("SELECT COALESCE(MAX(seq), 0) FROM records")[0][0]
            states = tx.execute("SELECT state, COUNT(*) FROM calls GROUP BY state")
            return int(records), {str(state): int(count) for state, count in states}

        return self._books.store.read(work)

    def records(self, query: RecordQuery) -> list[AuditRecord]:
        """Records in order of their sequence number."""
        return self._books.store.read(lambda tx: _select(tx, query))

    def runs(self, limit: int) -> list[Row]:
        """Newest runs: id, app, state, attempt, created, detail."""
        sql = "SELECT run_id, app, state, attempt, created, detail FROM runs ORDER BY created DESC LIMIT ?"
        return self._books.store.read(lambda tx: tx.execute(sql, (_bounded(limit),)))

    def calls(self, run_id: str, limit: int) -> list[LedgerRow]:
        """Newest calls of one run, or of all."""
        return self._books.store.read(lambda tx: ledger.recent(tx, run_id, _bounded(limit)))

    def verify(self) -> tuple[int, str | None]:
        """Walks the whole chain; returns how many records are good and the first problem."""
        return verify(self._all_records())

    def activate(self, policy: ActivePolicy, operator: str) -> None:
        """Puts a policy in force for decisions from now on; recorded first."""
        fields = {
            "event": "activated",
            "policy_revision": policy.revision,
            "policy_sha256": policy.sha256,
            "replaces": self._broker.policy.revision,
        }
        entry = Entry("policy", operator, "", "", fields)
        self._books.store.transact(lambda tx: self._books.recorder.append(tx, entry))
        self._broker.policy = policy

    def _all_records(self) -> Iterator[AuditRecord]:
        after = 0
        while batch := self._batch(after):
            yield from batch
            after = batch[-1].seq

    def _batch(self, after: int) -> list[AuditRecord]:
        sql = "SELECT seq, CAST(body AS BLOB), hash FROM records WHERE seq > ? ORDER BY seq LIMIT ?"
        rows = self._books.store.read(lambda tx: tx.execute(sql, (after, VERIFY_BATCH)))
        return [AuditRecord(*row) for row in rows]


def _bounded(limit: int) -> int:
    return min(limit or MAX_ROWS, MAX_ROWS)


def _select(tx: Transaction, query: RecordQuery) -> list[AuditRecord]:
    rows = tx.execute(
        "SELECT seq, CAST(body AS BLOB), hash FROM records"
        " WHERE seq > ? AND ? IN ('', caller) AND ? IN ('', tool)"
        " AND ? IN ('', call_id) AND ? IN ('', kind) ORDER BY seq LIMIT ?",
        (query.after_seq, query.caller, query.tool, query.call_id, query.kind, _bounded(query.limit)),
    )
    return [AuditRecord(*row) for row in rows]
