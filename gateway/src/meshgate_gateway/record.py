"""Appends audit records inside the transaction of what they describe."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from meshgate_audit.chain import GENESIS, AuditRecord, link

from meshgate_gateway.store import Transaction


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be recorded.

    Attributes:
        kind: decision, outcome, take, refusal, authentication, policy, run or lifecycle.
        caller: the SPIFFE ID, empty where none was proven.
        fields: everything else; all of it is hashed. No clear text of arguments or results.
    """

    kind: str
    caller: str
    tool: str
    call_id: str
    fields: Mapping[str, object]


class Recorder:
    """Chains records. The writer's transactions are serial, so the head is read, not locked."""

    def __init__(self, *, gateway: str, version: str, clock: Callable[[], datetime]) -> None:
        self._gateway = gateway
        self._version = version
        self._clock = clock

    def append(self, tx: Transaction, entry: Entry) -> AuditRecord:
        """Adds one record after the newest."""
        head = tx.execute("SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1")
        seq, prev = (head[0][0], head[0][1]) if head else (0, GENESIS)
        fields = {
            **entry.fields,
            "schema": 1,
            "kind": entry.kind,
            "caller": entry.caller,
            "tool": entry.tool,
            "call_id": entry.call_id,
            "gateway": self._gateway,
            "version": self._version,
            "time": self._clock().astimezone(UTC).isoformat(timespec="microseconds"),
        }
        record = link(seq + 1, prev, fields)
        tx.execute(
            "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)",
            (record.seq, record.hash, entry.kind, entry.caller, entry.tool, entry.call_id, record.body),
        )
        return record
