"""The tool host's side: TakeCall hands out the exact bytes once, FinishCall makes the outcome."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from meshgate_identities.spiffe_id import SpiffeId

from meshgate_gateway import ledger
from meshgate_gateway.broker import Books
from meshgate_gateway.errors import Conflict, NotFound, Refused
from meshgate_gateway.execute import Executor
from meshgate_gateway.ledger import LedgerRow, Settlement
from meshgate_gateway.outcomes import Outcomes
from meshgate_gateway.record import Entry
from meshgate_gateway.store import Transaction

R = TypeVar("R")
MAX_MESSAGE = 2_000
MAX_RESULT_BYTES = 1_048_576  # a quarter of gRPC's default receive limit


@dataclass(frozen=True, slots=True)
class Taken:
    """What a host needs to run one call."""

    row: LedgerRow
    take: int
    arguments: bytes
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class Finish:
    """What a host says of a call it has taken."""

    call_id: str
    take: int
    host_instance: str
    settlement: Settlement
    result: bytes


class Hosts:
    """TakeCall and FinishCall."""

    def __init__(self, *, books: Books, outcomes: Outcomes, executor: Executor) -> None:
        self._books = books
        self._outcomes = outcomes
        self._executor = executor

    def take(self, caller: SpiffeId, call_id: str, host_instance: str) -> Taken:
        """Moves the call to `sent`.

        A second take by another instance means that the first may have had its effect: only a
        reading or idempotent tool runs again, anything else becomes `unknown` here.

        Raises:
            Refused: unknown, another host's, already settled, or not to be run again; recorded.
        """

        def work(tx: Transaction) -> Taken | Refused:
            row = self._owned(tx, caller, call_id)
            if row.state in ledger.SETTLED:
                raise Conflict("call_settled", f"the call is {row.state}")
            if row.state == "sent" and row.effect != "read" and not row.idempotent:
                return self._give_up(tx, row)
            deadline_ms = self._books.now_ms() + int(row.tool_seconds * 1000)
            number = ledger.take(tx, row, host_instance, deadline_ms)
            fields = {"take": number, "host_instance": host_instance, "decision_id": row.decision_id}
            self._books.recorder.append(tx, Entry("take", str(caller), row.tool, call_id, fields))
            arguments = self._books.payloads.get(tx, row.args_payload)
            return Taken(row, number, arguments, deadline_ms)

        taken = self._refusing(caller, call_id, lambda: self._books.store.transact(work))
        if isinstance(taken, Refused):
            self._outcomes.announce()
            raise taken
        return taken

    def finish(self, caller: SpiffeId, finish: Finish) -> str:
        """Settles the call, or confirms that it was settled in the same way.

        Raises:
            Refused: not taken by this instance and take, or settled otherwise; recorded.
        """

        def work(tx: Transaction) -> str:
            row = self._owned(tx, caller, finish.call_id)
            if row.take == 0 or (row.take, row.host_instance) != (finish.take, finish.host_instance):
                raise Conflict("take_mismatch", f"take {finish.take} is not the one in force")
            if row.state == finish.settlement.state and row.state != "unknown":
                return row.state
            if row.state not in ("sent", "unknown"):
                raise Conflict("call_settled", f"the call is {row.state}")
            return self._settle(tx, row, finish)

        state = self._refusing(caller, finish.call_id, lambda: self._books.store.transact(work))
        self._outcomes.announce()
        self._executor.forget(finish.call_id)
        return state

    def _settle(self, tx: Transaction, row: LedgerRow, finish: Finish) -> str:
        commitment = self._books.payloads.put(tx, finish.result) if finish.settlement.result_kind else None
        said = finish.settlement
        settlement = Settlement(
            state=said.state,
            result_kind=said.result_kind,
            result_payload=commitment.payload_id if commitment else "",
            error_class=said.error_class[:128],
            message=said.message[:MAX_MESSAGE],
        )
        ledger.settle(tx, row, settlement)
        record_outcome(self._books, tx, row, settlement, commitment.hmac_sha256 if commitment else "")
        return settlement.state

    def _give_up(self, tx: Transaction, row: LedgerRow) -> Refused:
        message = "the tool's host died while the tool may have been running"
        settlement = Settlement("unknown", error_class="host_lost", message=message)
        ledger.settle(tx, row, settlement)
        record_outcome(self._books, tx, row, settlement, "")
        return Conflict("not_idempotent", "a second take of a tool that takes no key")

    def _owned(self, tx: Transaction, caller: SpiffeId, call_id: str) -> LedgerRow:
        row = ledger.find(tx, call_id)
        if row is None or row.state == "denied":
            raise NotFound("call_unknown", "no such call was allowed")
        own = SpiffeId.parse(row.caller)
        expected = SpiffeId.of_app(trust_domain=own.trust_domain, namespace=own.namespace, app=row.host)
        if caller != expected:
            raise Refused("call_of_another_host", "the tool belongs to another host")
        return row

    def _refusing(self, caller: SpiffeId, call_id: str, work: Callable[[], R]) -> R:
        try:
            return work()
        except Refused as error:
            self._books.refuse(str(caller), "", call_id, error)
            raise


def record_outcome(
    books: Books, tx: Transaction, row: LedgerRow, settlement: Settlement, commitment: str
) -> None:
    """Appends the outcome record, in the transaction that settles."""
    fields = {
        "decision_id": row.decision_id,
        "state": settlement.state,
        "error_class": settlement.error_class,
        "result_commitment": commitment,
        "result_payload": settlement.result_payload,
        "take": row.take,
        "host_instance": row.host_instance,
        "run_id": row.run_id,
        "duration_ms": books.now_ms() - row.created_ms,
    }
    books.recorder.append(tx, Entry("outcome", row.caller, row.tool, row.call_id, fields))
