"""Runs and their attempts. A run belongs to one app; its newest attempt alone may act."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from meshgate_identities.spiffe_id import SpiffeId

from meshgate_gateway.errors import Conflict, NotFound, Refused
from meshgate_gateway.record import Entry, Recorder
from meshgate_gateway.store import Store, Transaction

ENDED = frozenset({"completed", "failed", "cancelled"})
MAX_RUN_ID = 128


@dataclass(frozen=True, slots=True)
class Run:
    """One durable execution."""

    run_id: str
    app: str
    state: str
    attempt: int


def check_attempt(tx: Transaction, caller: str, run_id: str, attempt: int) -> None:
    """The fence: only the run's own app, and only with the newest attempt of a living run.

    Raises:
        NotFound, Refused, Conflict: no such run, another app's, ended or superseded.
    """
    run = _find(tx, run_id)
    if run.app != caller:
        raise Refused("run_of_another_app", "the run belongs to another app")
    if run.attempt != attempt:
        raise Conflict("superseded", f"attempt {attempt} was superseded by {run.attempt}")
    if run.state in ENDED:
        raise Conflict("run_ended", f"the run is {run.state}")


def _find(tx: Transaction, run_id: str) -> Run:
    rows = tx.execute("SELECT run_id, app, state, attempt FROM runs WHERE run_id = ?", (run_id,))
    if not rows:
        raise NotFound("run_unknown", "there is no such run")
    return Run(*rows[0])


class Runs:
    """Start, attempt, heartbeat, finish; each checked in the transaction that writes."""

    def __init__(self, *, store: Store, recorder: Recorder, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._recorder = recorder
        self._clock = clock

    def start(self, caller: SpiffeId, run_id: str, run_input: bytes) -> str:
        """Starts a run for the caller itself; the same id and input give the same run.

        Raises:
            Conflict: the id belongs to another app or another input.
        """
        if not 0 < len(run_id) <= MAX_RUN_ID:
            raise Refused("run_id_invalid", f"a run id has 1 to {MAX_RUN_ID} characters")
        app, digest = str(caller), hashlib.sha256(run_input).hexdigest()
        created = self._clock().astimezone(UTC).isoformat(timespec="milliseconds")

        def work(tx: Transaction) -> str:
            rows = tx.execute("SELECT app, input_sha256, state FROM runs WHERE run_id = ?", (run_id,))
            if rows:
                if (rows[0][0], rows[0][1]) != (app, digest):
                    raise Conflict("run_id_taken", "the run id belongs to another app or another input")
                return str(rows[0][2])
            tx.execute(
                "INSERT INTO runs (run_id, app, input_sha256, state, attempt, created)"
                " VALUES (?, ?, ?, 'pending', 0, ?)",
                (run_id, app, digest, created),
            )
            self._record(tx, app, run_id, "started", 0)
            return "pending"

        return self._store.transact(work)

    def start_attempt(self, caller: SpiffeId, run_id: str) -> int:
        """Gives the next fencing number; every earlier attempt is superseded from here on."""

        def work(tx: Transaction) -> int:
            run = _find(tx, run_id)
            check_attempt(tx, str(caller), run_id, run.attempt)
            tx.execute(
                "UPDATE runs SET attempt = attempt + 1, state = 'running', heartbeat_ms = ? WHERE run_id = ?",
                (self._now_ms(), run_id),
            )
            self._record(tx, str(caller), run_id, "attempt", run.attempt + 1)
            return run.attempt + 1

        return self._store.transact(work)

    def heartbeat(self, caller: SpiffeId, run_id: str, attempt: int, steps: int) -> str:
        """Notes that the attempt lives; answers the run's state."""

        def work(tx: Transaction) -> str:
            check_attempt(tx, str(caller), run_id, attempt)
            tx.execute(
                "UPDATE runs SET heartbeat_ms = ?, steps = ? WHERE run_id = ?",
                (self._now_ms(), steps, run_id),
            )
            return _find(tx, run_id).state

        return self._store.transact(work)

    def finish(self, caller: SpiffeId, run_id: str, attempt: int, state: str, detail: str) -> str:
        """Ends the run; ending it twice in the same way is one end."""
        if state not in ENDED:
            raise Refused("run_state_invalid", f"a run ends as one of {', '.join(sorted(ENDED))}")

        def work(tx: Transaction) -> str:
            run = _find(tx, run_id)
            if (run.app, run.attempt, run.state) == (str(caller), attempt, state):
                return state
            check_attempt(tx, str(caller), run_id, attempt)
            tx.execute(
                "UPDATE runs SET state = ?, detail = ? WHERE run_id = ?", (state, detail[:4000], run_id)
            )
            self._record(tx, str(caller), run_id, state, attempt)
            return state

        return self._store.transact(work)

    def _now_ms(self) -> int:
        return int(self._clock().timestamp() * 1000)

    def _record(self, tx: Transaction, app: str, run_id: str, event: str, attempt: int) -> None:
        fields = {"run_id": run_id, "event": event, "attempt": attempt}
        self._recorder.append(tx, Entry("run", app, "", "", fields))
