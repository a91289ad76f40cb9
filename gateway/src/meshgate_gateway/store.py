"""The store's ports, implemented by `adapters/sqlite_store.py` and `adapters/postgres_store.py`.

Durability: when `write` returns, everything its work did is on disk; when it raises, either
nothing was stored or, for StoreUnavailable alone, it is not known. Concurrency: works run one
after the other, each atomic; several may share one commit. Nobody retries inside: the caller
of the gateway asks again with the same key.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from meshgate_audit.chain import Head

from meshgate_gateway.model import AuditRecord, JournalRow, LedgerRow, Run, State

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PayloadRow:
    """One encrypted clear text. `data` is None when only the commitment was kept."""

    id: str
    codec: str
    salt: bytes
    nonce: bytes
    data: bytes | None


@dataclass(frozen=True, slots=True)
class RecordQuery:
    """Which records; empty fields match all."""

    after_seq: int = 0
    limit: int = 1000
    caller: str = ""
    tool: str = ""
    call_id: str = ""
    run_id: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class CallQuery:
    """Which calls; empty fields match all. Newest first.

    Attributes:
        other_hosts: those of hosts that are not among these.
        delegated: whether those that are a task for another agent are among them; None for either.
    """

    run_id: str = ""
    likeness: str = ""
    states: tuple[State, ...] = ()
    updated_before_ms: int = 0
    tools: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    other_hosts: tuple[str, ...] = ()
    ask_due_ms: int = 0
    delegated: bool | None = None
    limit: int = 1000


class RecordTable(Protocol):
    """The chained log."""

    def append(self, record: AuditRecord) -> Head:
        """Numbers, links, hashes and stores one record."""

    def query(self, query: RecordQuery) -> Sequence[tuple[int, bytes]]:
        """Sequence numbers and canonical bytes, oldest first."""

    def head(self) -> Head:
        """The newest record."""


class CallTable(Protocol):
    """The ledger."""

    def insert(self, row: LedgerRow) -> bool:
        """Stores a new call; False when the id is taken."""

    def get(self, call_id: str) -> LedgerRow | None:
        """One call."""

    def move(self, before: LedgerRow, after: LedgerRow) -> bool:
        """Compare-and-set on state and take number; False when somebody was quicker."""

    def query(self, query: CallQuery) -> Sequence[LedgerRow]:
        """Calls that match, newest first."""

    def of_run(self, run_id: str) -> Sequence[LedgerRow]:
        """All calls of a run, in their order."""


class RunTable(Protocol):
    """Runs and their fencing numbers."""

    def insert(self, run: Run) -> bool:
        """Stores a new run; False when the id is taken."""

    def get(self, run_id: str) -> Run | None:
        """One run."""

    def move(self, before: Run, after: Run) -> bool:
        """Compare-and-set on state and attempt."""

    def grow(self, run_id: str, *, steps: int = 0, size_bytes: int = 0, delegated: int = 0) -> None:
        """Adds to what a run has recorded, or others did below it.

        A `Run` read before it in this transaction is out of date.
        """

    def open(self, app: str, *, caller: str = "") -> int:
        """How many runs of an app have not ended; with `caller` those that it delegated."""

    def list(self, limit: int) -> Sequence[Run]:
        """Newest first."""

    def branches(self, run_id: str) -> Sequence[Run]:
        """Runs that were made from this one, at most MAX_ROWS."""

    def forsaken(self, silent_since_ms: Mapping[str, int], *, per_app: int, turn: int) -> Sequence[Run]:
        """Driven runs in these states without a change or heartbeat since then.

        At most `per_app` of each app, one of each app after the other, those longest without a change
        first; with each further turn the next ones, and then again the first.
        """

    def unfinished(self, *, before_ms: int) -> Sequence[Run]:
        """Runs whose making or purge took more than one transaction and stopped at that time or earlier."""

    def leaving(self, *, silent_since_ms: int) -> Sequence[Run]:
        """Runs to be cancelled or paused whose last heartbeat is older, at most MAX_ROWS."""

    def below(self, run_id: str, *, limit: int) -> Sequence[Run]:
        """Runs whose calls of this run are open, and that are neither over nor told to end."""

    def recalling(self, *, limit: int) -> Sequence[Run]:
        """Runs that are, or are to be, over, and not all that they had asked for is told so."""


class JournalTable(Protocol):
    """Model steps of runs."""

    def insert(self, row: JournalRow) -> bool:
        """Stores a step; False when the run has one under that key."""

    def get(self, run_id: str, step_key: str) -> JournalRow | None:
        """One step."""

    def of_run(self, run_id: str) -> Sequence[JournalRow]:
        """A run's steps, in their order."""

    def delete(self, run_id: str, limit: int) -> int:
        """Deletes that many of a run's steps; how many there were."""

    def beyond(self, *, run_id: str, scope: str, turn: int, attempts: range) -> JournalRow | None:
        """A model step of these attempts at this turn of the scope or at a later one."""


class PayloadTable(Protocol):
    """Clear text, encrypted."""

    def put(self, row: PayloadRow) -> None:
        """Stores one payload."""

    def get(self, payload_id: str) -> PayloadRow | None:
        """One payload, or None when it was erased."""

    def delete(self, payload_ids: Sequence[str]) -> int:
        """Erases payloads, their salts too; how many were there."""


class InstanceTable(Protocol):
    """Who is which gateway; times are the store's own."""

    def claim(self, *, name: str, holder: str, lease_ms: int) -> bool:
        """Takes or renews a name; False while another holder's lease runs."""

    def release(self, *, name: str, holder: str) -> None:
        """Gives a name back at once."""


class Tables(Protocol):
    """What a work may touch, inside one transaction."""

    @property
    def records(self) -> RecordTable:
        """The log."""

    @property
    def calls(self) -> CallTable:
        """The ledger."""

    @property
    def runs(self) -> RunTable:
        """Runs."""

    @property
    def journal(self) -> JournalTable:
        """Model steps."""

    @property
    def payloads(self) -> PayloadTable:
        """Payloads."""

    @property
    def instances(self) -> InstanceTable:
        """Leases."""

    def counts(self) -> dict[str, int]:
        """Calls by state."""

    def owner(self) -> str | None:
        """Whose store it is, as it was said to `own`; None while nobody has."""

    def own(self, owner: str) -> None:
        """Says whose store it is; the first word stays."""


class Store(Protocol):
    """The gateway's only memory."""

    def write(self, work: Callable[[Tables], T]) -> T:
        """Runs `work` in one transaction and returns once it is durable. May run it more than once.

        Raises:
            StoreUnavailable: it may or may not be stored.
            NotStorable: the database takes no such value; nothing was stored.
        """

    def read(self, work: Callable[[Tables], T]) -> T:
        """Runs `work` on committed state; it must not write.

        Raises:
            StoreUnavailable: nothing could be read.
            NotStorable: no column holds such a value.
        """

    def probe(self) -> None:
        """Reopens after a failure, checks the newest records, and writes.

        Raises:
            StoreUnavailable: still not usable.
        """

    def close(self) -> None:
        """Ends the store; later calls raise StoreUnavailable."""
