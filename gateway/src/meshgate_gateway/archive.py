"""A run as one archive, and the end of its clear text.

`part` gives everything out: rows, clear text, and the salts that prove to who holds the records
that it is the clear text which was recorded. `purge` deletes clear text and journal, and keeps
what must never be forgotten: the run's id, its calls (an effect must not happen twice), the
records. What forks share with the run they were made from is deleted with the last of them.
"""

import hmac
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from meshgate_audit.archive import run_digest
from meshgate_audit.chain import canonical

from meshgate_gateway import calls, chains, ledger, narrowing, steps
from meshgate_gateway.authenticate import Mesh
from meshgate_gateway.errors import Conflict, InvalidRequest, Missing
from meshgate_gateway.history import require_ended
from meshgate_gateway.model import AuditRecord, JournalRow, LedgerRow, Run, Sealed, State
from meshgate_gateway.payloads import Vault
from meshgate_gateway.record import Recorder, sealed_form, time_text
from meshgate_gateway.steps import StepRow
from meshgate_gateway.store import RecordQuery, Store, Tables

PART_BYTES = (
    3_145_728  # of rows and clear text in one part: below gRPC's default 4 MiB with room for the rest
)
TEXT_BYTES = 128  # a clear text's own fields
SLICE = 200  # rows deleted per transaction
RESUMED_MS = 60_000  # a purge that nobody has ended by then has lost its gateway
RECORDS_PER_READ = 10_000
MAX_BRANCHES = 10_000  # of one run; the most that one answer of the store holds


@dataclass(frozen=True, slots=True)
class Text:
    """One clear text, and what proves that it is the committed one."""

    payload_id: str
    salt: bytes
    data: bytes
    kept: bool


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a run; `next_step` is 0 in the last part.

    Attributes:
        next_byte: of the clear text of `next_step`, where that step comes in pieces; else 0.
    """

    run_json: bytes
    steps_json: Sequence[bytes]
    texts: Sequence[Text]
    next_step: int
    digest: str
    first_record: int
    last_record: int
    next_byte: int = 0


@dataclass(frozen=True, slots=True)
class Purged:
    """What was deleted, and how many clear texts stay because other runs hold them."""

    run: Run
    deleted: int
    shared: int


@dataclass(frozen=True, slots=True)
class Archive:
    """Export and purge, without their wire."""

    store: Store
    vault: Vault
    recorder: Recorder
    mesh: Mesh
    now_ms: Callable[[], int]

    def part(self, *, run_id: str, from_step: int, operator: str, from_byte: int = 0) -> Part:
        """The run itself (`from_step` 0), or as many steps from there on as fit. Each is recorded first.

        Raises:
            Missing: no such run.
            Conflict: purged.
        """
        part = self.store.read(
            lambda tables: (
                self._steps(tables, run_id, from_step, from_byte) if from_step else self._run(tables, run_id)
            )
        )
        # Not the run's own record (`run_id`): an export changes nothing of what it gives out.
        fields = {
            "exported_run": run_id,
            "digest": part.digest,
            "operator": operator,
            "from_step": from_step,
            "next_step": part.next_step,
            **({"from_byte": from_byte} if from_byte else {}),
        }
        record = self.recorder.lifecycle(event="run_exported", fields=fields)
        self.store.write(lambda tables: tables.records.append(record))
        return part

    def _run(self, tables: Tables, run_id: str) -> Part:
        run = _exportable(tables, run_id)
        rows = steps.of_run(tables, run_id)
        sealed = [each for each in (run.input, run.traceback, run.result) if each]
        first, last = _records(tables, run_id)
        return Part(
            run_json=_run_json(run),
            steps_json=(),
            texts=[self._text(tables, each) for each in sealed],
            next_step=1 if rows else 0,
            digest=_digest(run, rows),
            first_record=first,
            last_record=last,
        )

    def _steps(self, tables: Tables, run_id: str, from_step: int, from_byte: int) -> Part:
        """Whole steps as long as they fit; one that does not fit alone comes in pieces."""
        run = _exportable(tables, run_id)
        rows = steps.of_run(tables, run_id)
        part = Part(b"", (), (), 0, _digest(run, rows), 0, 0)
        lines: list[bytes] = []
        texts: list[Text] = []
        room = PART_BYTES
        for number, row in enumerate(rows[from_step - 1 :], start=from_step):
            line = _step_json(number, row)
            room -= len(line) + sum(sealed.size_bytes + TEXT_BYTES for sealed in _sealed_of(row))
            if (room < 0 and not lines) or from_byte:
                return self._piece(tables, replace(part, next_step=number), rows, from_byte)
            if room < 0:
                return replace(part, steps_json=lines, texts=texts, next_step=number)
            lines.append(line)
            texts += [self._text(tables, sealed) for sealed in _sealed_of(row)]
        return replace(part, steps_json=lines, texts=texts)

    def _piece(self, tables: Tables, part: Part, rows: Sequence[StepRow], from_byte: int) -> Part:
        """Clear text of step `part.next_step` from there on: its texts count as one."""
        number = part.next_step
        row = rows[number - 1]
        texts: list[Text] = []
        begin, end = 0, from_byte + PART_BYTES
        for text in (self._text(tables, sealed) for sealed in _sealed_of(row)):
            data = text.data[max(0, from_byte - begin) : max(0, end - begin)]
            begin += len(text.data)
            if data or not from_byte:
                texts.append(replace(text, data=data))
        lines = () if from_byte else (_step_json(number, row),)
        if begin > end:
            return replace(part, steps_json=lines, texts=texts, next_byte=end)
        following = number + 1 if number < len(rows) else 0
        return replace(part, steps_json=lines, texts=texts, next_step=following)

    def _text(self, tables: Tables, sealed: Sealed) -> Text:
        kept = self.vault.kept(tables, sealed)
        data = self.vault.get(tables, sealed) if kept else b""
        return Text(sealed.payload_id, self.vault.salt(tables, sealed), data, kept)

    def purge(self, *, run_id: str, digest: str, without_export: bool, operator: str) -> Purged:
        """Deletes the clear text and the journal of a run that ended. Recorded.

        Args:
            run_id: which run.
            digest: of an export that somebody verified; must be the run's own.
            without_export: nobody has one, and that is meant.
            operator: who says so.

        Raises:
            Missing, NotPermitted, Conflict: no run to be purged, or another digest than its own.
            InvalidRequest: neither or both of digest and `without_export`.
        """
        if bool(digest) == without_export:
            raise InvalidRequest("purge_invalid", detail="an export's digest, or without_export")

        run, own = self.store.read(lambda tables: self._purgeable(tables, run_id))
        if digest and not hmac.compare_digest(digest, own):
            raise Conflict("export_stale", detail=f"the export is not {run_id} as it is now")
        fields = {"exported": bool(digest), "digest": own, "operator": operator}

        def begin(tables: Tables) -> Run:
            if require_ended(tables, self.mesh, run_id) != run:
                raise Conflict("run_changed", detail=run_id)
            after = replace(run, purged_ms=self.now_ms(), purging=True)
            tables.runs.move(run, after)
            tables.records.append(self._purge_record("run_purge_begun", after, fields))
            return after

        return self._erase(self.store.write(begin), fields)

    def _purgeable(self, tables: Tables, run_id: str) -> tuple[Run, str]:
        """The run and its digest, which do not change any more: it ended and all calls are settled."""
        run = require_ended(tables, self.mesh, run_id)
        rows = steps.of_run(tables, run_id)
        for row in rows:
            if isinstance(row, LedgerRow) and row.state not in ledger.SETTLED:
                raise Conflict("step_not_settled", call_id=row.call_id, detail=f"it is {row.state}")
        return run, _digest(run, rows)

    def resume(self) -> int:
        """Ends purges whose gateway died in the middle; returns how many."""
        before = self.now_ms() - RESUMED_MS
        found = self.store.read(lambda tables: tables.runs.unfinished(before_ms=before))
        waiting = [run for run in found if run.purging]
        for run in waiting:
            self._erase(run, {"resumed": True})
        return len(waiting)

    def _erase(self, run: Run, fields: Mapping[str, object]) -> Purged:
        """Deletes in slices, between which others write. The run is purged already: nobody reads or forks it.

        What another run of its family holds is looked up after that, so none can begin to hold more. The
        journal goes last: a purge that is taken up again knows its payloads by it.
        """
        ids, held = self.store.read(
            lambda tables: (
                _payloads(run, steps.of_run(tables, run.run_id)), _held_by_relatives(tables, run)
            )
        )  # fmt: skip
        mine = sorted(ids - held)
        deleted = 0
        for start in range(0, len(mine), SLICE):
            some = mine[start : start + SLICE]
            deleted += self.store.write(lambda tables, some=some: tables.payloads.delete(some))  # type: ignore[misc]
        while self.store.write(lambda tables: tables.journal.delete(run.run_id, SLICE)):
            pass

        def end(tables: Tables) -> Run:
            now = tables.runs.get(run.run_id)
            if now is None or not now.purging:  # another gateway took it up and was quicker: it is purged
                return now or run
            after = replace(now, purging=False, input=None, traceback=None, result=None)
            tables.runs.move(now, after)
            counts = {"deleted": deleted, "shared": len(ids & held)}
            tables.records.append(self._purge_record("run_purged", after, {**fields, **counts}))
            return after

        return Purged(self.store.write(end), deleted, len(ids & held))

    def _purge_record(self, event: str, run: Run, fields: Mapping[str, object]) -> AuditRecord:
        about = {"run_id": run.run_id, "state": run.state, **fields}
        return self.recorder.lifecycle(event=event, caller=run.app, fields=about)


def _exportable(tables: Tables, run_id: str) -> Run:
    run = tables.runs.get(run_id) if calls.is_run_id(run_id) else None
    if run is None:
        raise Missing("run_unknown", detail="no such run")
    if run.purged_ms:
        raise Conflict("run_purged", detail=f"{run_id} was purged")
    return run


def _records(tables: Tables, run_id: str) -> tuple[int, int]:
    """Numbers of the run's first and last record."""
    first = last = 0
    while page := tables.records.query(RecordQuery(after_seq=last, run_id=run_id, limit=RECORDS_PER_READ)):
        first, last = first or page[0][0], page[-1][0]
    if not first:
        raise Conflict("run_unrecorded", detail=f"no record names {run_id}")
    return first, last


def _digest(run: Run, rows: Sequence[StepRow]) -> str:
    lines = (_step_json(number, row) for number, row in enumerate(rows, start=1))
    return run_digest(_run_json(run), lines)


def _run_json(run: Run) -> bytes:
    return canonical(
        {
            "run_id": run.run_id,
            "app": run.app,
            "state": run.state,
            "attempts": run.attempt,
            "detail": run.detail,
            "created": time_text(run.created_ms),
            "updated": time_text(run.updated_ms),
            "origin": run.origin,
            "origin_run": run.origin_run,
            "origin_step": run.origin_step,
            "input": sealed_form(run.input),
            "traceback": sealed_form(run.traceback),
            "result": sealed_form(run.result),
            **_delegated(run),
        }
    )


def _delegated(run: Run) -> dict[str, object]:
    """Of a run that a delegation started: the call that it answers, who stands above it, what they allow."""
    if not run.parent_call:
        return {}
    narrow = [dict(each) for each in narrowing.read(run.narrow)]
    links = chains.shown(chains.read(run.chain))
    return {"parent_call": run.parent_call, "delegation": links, "narrow": narrow}


def _step_json(number: int, row: StepRow) -> bytes:
    """A step as it lies in the store; of its clear text only the commitments."""
    where = {
        "step": number,
        "step_key": row.step_key,
        "scope": row.scope,
        "turn": row.turn,
        "attempt": row.attempt,
        "copied": row.attempt <= 0,
        "created": time_text(row.created_ms),
    }
    if isinstance(row, JournalRow):
        given, gave = sealed_form(row.request), sealed_form(row.reply)
        took = row.milliseconds
        return canonical({**where, "kind": "model", "milliseconds": took, "given": given, "gave": gave})
    return canonical({**where, "kind": "tool", **_call_form(row)})


def _has_run(row: LedgerRow) -> bool:
    """Of a delegation; a copy, and a repeat that was answered with the first one's outcome, have none."""
    answered = bool(row.copied_from or (row.repeats and not row.take))
    return row.delegates and row.state is not State.DENIED and not answered


def _call_form(row: LedgerRow) -> dict[str, object]:
    return {
        "call_id": row.call_id,
        "caller": row.caller,
        "tool": row.tool,
        "host": row.host,
        "effect": row.effect,
        "idempotent": row.idempotent,
        "definition_sha256": row.definition_sha256,
        "state": row.state.value,
        "decision_id": row.decision_id,
        "reasons": list(row.reasons),
        "detail": row.detail,
        "deadline_ms": row.deadline_ms,
        "gateway": row.gateway,
        "take": row.take,
        "host_instance": row.host_instance,
        "task": row.task,
        "repeats": row.repeats,
        "copied_from": row.copied_from,
        "result_kind": row.result_kind,
        "error_class": row.error_class,
        "milliseconds": max(0, row.updated_ms - row.created_ms),
        "given": sealed_form(row.arguments),
        "gave": sealed_form(row.result),
        **({"delegated_run": calls.delegated_run(row.call_id)} if _has_run(row) else {}),
    }


def _sealed_of(row: StepRow) -> list[Sealed]:
    both = (row.request, row.reply) if isinstance(row, JournalRow) else (row.arguments, row.result)
    return [sealed for sealed in both if sealed is not None]


def _payloads(run: Run, rows: Iterable[StepRow]) -> set[str]:
    sealed = [each for each in (run.input, run.traceback, run.result) if each]
    for row in rows:
        sealed += _sealed_of(row)
    return {each.payload_id for each in sealed}


def _held_by_relatives(tables: Tables, run: Run) -> set[str]:
    """Payloads of runs that were made from this one or from a run it was made from, and are not purged."""
    held: set[str] = set()
    for other in _relatives(tables, run):
        if other.run_id != run.run_id and not other.purged_ms:
            held |= _payloads(other, steps.of_run(tables, other.run_id))
    return held


def _relatives(tables: Tables, run: Run) -> Iterator[Run]:
    """The run's whole family, from its first ancestor down."""
    first = run
    while first.origin_run and (parent := tables.runs.get(first.origin_run)) is not None:
        first = parent
    waiting = [first]
    while waiting:
        one = waiting.pop()
        yield one
        branches = tables.runs.branches(one.run_id)
        if len(branches) >= MAX_BRANCHES:
            raise Conflict("run_too_long", detail=f"{one.run_id} has {len(branches)} branches or more")
        waiting += branches
