"""A new run out of an old one: a fork begins with the old one's first steps, a re-run with none.

Both are an operator's to make, of a run that has ended and belongs to an app of this mesh. The
old run is read, never changed. A copied step is an answer and no more: a call among them begins
settled under an id of its own, so nothing can execute it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from meshgate_gateway import calls, chains, edits, ledger, steps
from meshgate_gateway.authenticate import Mesh
from meshgate_gateway.errors import Conflict, InvalidRequest, Missing, NotPermitted, Refused
from meshgate_gateway.model import JournalRow, LedgerRow, Run, Sealed
from meshgate_gateway.notes import note
from meshgate_gateway.payloads import Vault
from meshgate_gateway.record import Recorder
from meshgate_gateway.steps import StepRow
from meshgate_gateway.store import RecordQuery, Store, Tables

UNCOUNTED_ATTEMPT = -1  # of a copied step that a person had said not to count
COPYING = "copying"  # of a new run that has not all of its steps
NOT_WHOLE = "not all steps were copied"
SLICE = 200  # steps copied per transaction: some tens of milliseconds that others wait
GIVEN_UP_MS = 60_000  # a slice takes a fraction of a second
COUNTS_COPIES = -1  # `trusted_from` of a fork: its copies are of attempt 0


@dataclass(frozen=True, slots=True)
class BranchOrder:
    """What an operator asks for.

    Attributes:
        origin: fork or rerun.
        steps: so many of the old run's steps are copied; 0 for a re-run.
        edit: as `edits` reads it; empty for none.
        cwd: where the command runs, for an old run that does not say: a launcher's own.
    """

    run_id: str
    new_run_id: str
    origin: str
    steps: int
    edit: bytes
    operator: str
    cwd: str = ""


@dataclass(frozen=True, slots=True)
class Branch:
    """What came of it, or would.

    Attributes:
        run: the new run; the old one when nothing was to be made yet.
        effects: numbers and rows of the old run's calls that may happen again.
        steps: how many the old run has.
        given: the input both have.
    """

    run: Run
    effects: Sequence[tuple[int, LedgerRow]]
    steps: int
    given: bytes


def require_ended(tables: Tables, mesh: Mesh, run_id: str) -> Run:
    """The run, if it ended, belongs to this mesh, and its clear text is there.

    Raises:
        Missing: no such run.
        NotPermitted: of an app that this mesh does not have.
        Conflict: held up, running or purged.
    """
    run = tables.runs.get(run_id) if calls.is_run_id(run_id) else None
    if run is None:
        raise Missing("run_unknown", detail="no such run")
    if not mesh.has_runner(run.app):
        raise NotPermitted("run_foreign", detail=f"{run_id} is of {run.app}, which this mesh does not have")
    if not run.ended:
        raise Conflict("run_not_ended", detail=f"{run_id} is {run.state}: {run.detail}")
    if run.purged_ms:
        raise Conflict("run_purged", detail=f"{run_id} was purged")
    return run


@dataclass(frozen=True, slots=True)
class History:
    """Fork and re-run, without their wire."""

    store: Store
    vault: Vault
    recorder: Recorder
    mesh: Mesh
    now_ms: Callable[[], int]

    def plan(self, order: BranchOrder) -> Branch:
        """What `make` would do; nothing is written.

        Raises:
            Refused: as `make`.
        """
        return self.store.read(lambda tables: self._checked(tables, order)[0])

    def make(self, order: BranchOrder) -> Branch:
        """Stores the new run, durably; somebody has to start it. The same order again is the same run.

        Many steps take many transactions, so that others write in between: nobody may act in the new run, and
        nobody is told of it, before it has all of them.

        Raises:
            Missing, NotPermitted, Conflict: the old run is not one to be branched.
            InvalidRequest: there is no such step, or the edit is none.
        """
        found, kept, edit = self.store.read(lambda tables: self._checked(tables, order))
        made, copier = self.store.write(lambda tables: self._begun(tables, order, kept, edit))
        while made.state == COPYING:
            made = self._more(copier, kept)
        return replace(found, run=made)

    def _begun(
        self, tables: Tables, order: BranchOrder, kept: Sequence[StepRow], edit: edits.Edit | None
    ) -> tuple[Run, "_Copier"]:
        """The new run with its first steps, or as far as an earlier request of this order made it.

        What was checked before stands, for the old run ended.
        """
        old = require_ended(tables, self.mesh, order.run_id)
        run = tables.runs.get(order.new_run_id)
        if run is not None:
            self._require_made(tables, run, old, order)
            return run, self._copier(old, run, order, kept, edit)
        run = self._insert(tables, old, order, edit, whole=len(kept) <= SLICE)
        copier = self._copier(old, run, order, kept, edit)
        for number, row in enumerate(kept[:SLICE], start=1):
            copier.copy(tables, number, row)
        return run, copier

    def _copier(
        self, old: Run, run: Run, order: BranchOrder, kept: Sequence[StepRow], edit: edits.Edit | None
    ) -> "_Copier":
        twins = {row.call_id: _twin(row, run.run_id) for row in kept if isinstance(row, LedgerRow)}
        return _Copier(self.vault, self.recorder, old, run, edit, order.operator, twins)

    def _require_made(self, tables: Tables, run: Run, old: Run, order: BranchOrder) -> None:
        """Is that run what this very order made?

        Raises:
            Conflict: it is another one, or was given up before it had all of its steps.
        """
        first = tables.records.query(RecordQuery(run_id=run.run_id, kind="lifecycle", limit=1))
        made_by = json.loads(first[0][1]).get("order") if first else None
        if made_by != self._likeness(old, order):
            raise Conflict("run_taken", detail=f"{run.run_id} is a run already, and of another order")
        if run.state == "failed" and run.detail == NOT_WHOLE:
            raise Conflict("run_taken", detail=f"{run.run_id} was given up: {NOT_WHOLE}")

    def _likeness(self, old: Run, order: BranchOrder) -> str:
        """Equal for orders that make equal runs; tells nothing of an edit."""
        edit = json.dumps(json.loads(order.edit), sort_keys=True) if order.edit else ""
        cwd = "" if old.driven else order.cwd
        parts = ("branch", order.origin, order.run_id, str(order.steps), edit, cwd)
        return self.vault.likeness(*(part.encode("utf-8", "surrogatepass") for part in parts))

    def _more(self, copier: "_Copier", kept: Sequence[StepRow]) -> Run:
        """The next steps; with the last of them the run may begin. Two that copy at once take turns."""

        def work(tables: Tables) -> Run:
            require_ended(tables, self.mesh, copier.old.run_id)  # a purge would take what is not copied yet
            run = tables.runs.get(copier.run.run_id)
            if run is None or (run.state == "failed" and run.detail == NOT_WHOLE):
                raise Conflict("run_changed", detail=f"{copier.run.run_id} was given up")
            if run.state != COPYING:
                return run  # whoever copied it too was quicker
            start = run.recorded_steps
            rows = kept[start : start + SLICE]
            for number, row in enumerate(rows, start=start + 1):
                copier.copy(tables, number, row)
            now = self.now_ms()
            grown = tables.runs.get(run.run_id) or run
            last = start + len(rows) == len(kept)
            after = replace(grown, state="pending" if last else COPYING, updated_ms=now, heartbeat_ms=now)
            tables.runs.move(grown, after)
            return after

        try:
            return self.store.write(work)
        except Refused:
            self.store.write(lambda tables: self._give_up(tables, copier.run.run_id))
            raise

    def give_up_stale(self) -> int:
        """Ends new runs whose gateway died while it copied; returns how many."""
        before = self.now_ms() - GIVEN_UP_MS
        found = self.store.read(lambda tables: tables.runs.unfinished(before_ms=before))
        ended = 0
        for run in found:
            if run.state == COPYING:
                ended += self.store.write(lambda tables, run_id=run.run_id: self._give_up(tables, run_id))  # type: ignore[misc]
        return ended

    def _give_up(self, tables: Tables, run_id: str) -> bool:
        run = tables.runs.get(run_id)
        if run is None or run.state != COPYING:
            return False
        after = replace(run, state="failed", detail=NOT_WHOLE, updated_ms=self.now_ms())
        tables.runs.move(run, after)
        tables.records.append(note(self.recorder, "run_finished", after))
        return True

    def _checked(
        self, tables: Tables, order: BranchOrder
    ) -> tuple[Branch, Sequence[StepRow], edits.Edit | None]:
        _check_shape(order)
        run = require_ended(tables, self.mesh, order.run_id)
        if run.parent_call:
            raise NotPermitted(
                "run_delegated",
                detail=f"{order.run_id} answers a task of {chains.parent_run(run)}, and nobody would take "
                f"the answer of another one: fork or re-run {chains.parent_run(run)}",
            )
        if self.mesh.is_agent(run.app):
            detail = f"{run.app} is an agent's app by now, and acts only when others delegate to it"
            raise NotPermitted("run_of_agent", detail=detail)
        rows = steps.of_run(tables, order.run_id)
        if order.steps > len(rows):
            raise InvalidRequest("from_step_invalid", detail=f"{order.run_id} has {len(rows)} steps")
        kept = rows[: order.steps]
        for number, row in enumerate(kept, start=1):
            if isinstance(row, LedgerRow) and row.state not in ledger.SETTLED:
                raise Conflict(
                    "step_not_settled",
                    call_id=row.call_id,
                    tool=row.tool,
                    detail=f"step {number} ({row.call_id}) is {row.state}",
                )
        edit = edits.parse(order.edit) if order.edit else None
        if edit is not None:
            _check_edit(edit, kept)
        again = min(order.steps, edit.step) if edit else order.steps
        given = self.vault.get(tables, run.input) if run.input else b""
        return Branch(run, steps.effects(rows, after=again), len(rows), given), kept, edit

    def _insert(
        self, tables: Tables, old: Run, order: BranchOrder, edit: edits.Edit | None, *, whole: bool
    ) -> Run:
        now = self.now_ms()
        run = Run(
            run_id=order.new_run_id,
            app=old.app,
            state="pending" if whole else COPYING,
            attempt=0,
            launcher="",
            created_ms=now,
            updated_ms=now,
            heartbeat_ms=now,
            steps=0,
            detail="",
            trusted_from=COUNTS_COPIES if order.origin == "fork" else 0,
            origin=order.origin,
            origin_run=old.run_id,
            origin_step=order.steps,
            driven=True,
            input=self._given(tables, old, order),
        )
        tables.runs.insert(run)
        record = self.recorder.branched(
            run=run,
            operator=order.operator,
            edited=edit.step if edit else 0,
            order=self._likeness(old, order),
        )
        tables.records.append(record)
        return run

    def _given(self, tables: Tables, old: Run, order: BranchOrder) -> Sealed | None:
        """The old run's input, as a worker takes it."""
        if old.driven or old.input is None:
            return old.input
        try:
            kept = json.loads(self.vault.get(tables, old.input))
            given = {"app": kept["app"], "command": [str(word) for word in kept["command"]]}
        except (ValueError, KeyError, TypeError) as error:
            raise Conflict("run_without_command", detail=f"{old.run_id} does not say what it ran") from error
        envelope = {**given, "cwd": order.cwd, "env": {}}
        return self.vault.put(tables, json.dumps(envelope, sort_keys=True, ensure_ascii=False).encode())


@dataclass(frozen=True, slots=True)
class _Copier:
    """Makes steps of one run steps of another.

    Attributes:
        twins: ids of calls of the old run, with those of their copies.
    """

    vault: Vault
    recorder: Recorder
    old: Run
    run: Run
    edit: edits.Edit | None
    operator: str
    twins: Mapping[str, str]

    def copy(self, tables: Tables, number: int, row: StepRow) -> None:
        """Stores and records one step."""
        edit = self.edit if self.edit is not None and self.edit.step == number else None
        copied: StepRow
        if isinstance(row, JournalRow):
            copied = self._reply(tables, row, edit, number)
            stored = tables.journal.insert(copied)
        else:
            copied = self._call(tables, row, edit, number)
            stored = tables.calls.insert(copied)
        if not stored:
            raise Conflict("step_taken", detail=f"{self.run.run_id} has a step {number} already")
        tables.runs.grow(self.run.run_id, steps=1, size_bytes=_size_bytes(copied))
        record = self.recorder.copied(
            run=self.run, row=copied, before=row if edit else None, number=number, operator=self.operator
        )
        tables.records.append(record)

    def _attempt(self, row: StepRow) -> int:
        return 0 if row.attempt > self.old.trusted_from else UNCOUNTED_ATTEMPT

    def _reply(self, tables: Tables, row: JournalRow, edit: edits.Edit | None, place: int) -> JournalRow:
        copied = replace(row, run_id=self.run.run_id, attempt=self._attempt(row), place=place)
        if edit is None:
            return copied
        reply = edits.edited_reply(self.vault.get(tables, row.reply), edit)
        return replace(copied, reply=self.vault.put(tables, reply))

    def _call(self, tables: Tables, row: LedgerRow, edit: edits.Edit | None, place: int) -> LedgerRow:
        copied = replace(
            row,
            call_id=_twin(row, self.run.run_id),
            run_id=self.run.run_id,
            attempt=self._attempt(row),
            take=row.take if row.in_agent else 0,  # taken or not tells whether its body has to run again
            host_instance="",
            gateway=self.recorder.instance(),
            likeness=self._likeness(tables, row),
            repeats=self.twins.get(row.repeats, ""),
            copied_from=row.call_id,
            place=place,
            busy_until_ms=0,
            next_ask_ms=0,
        )
        outcome = edit.outcome if edit else None
        if outcome is None:
            return copied
        return replace(
            copied,
            state=outcome.state,
            result=self.vault.put(tables, outcome.data),
            result_kind=outcome.result_kind,
            error_class=outcome.error_class,
        )

    def _likeness(self, tables: Tables, row: LedgerRow) -> str:
        """So that an equal call of the same task in the new run is its repeat, as it was in the old one."""
        if not row.likeness or not self.vault.kept(tables, row.arguments):
            return ""
        names = (row.caller, self.run.run_id, row.task, row.tool)
        arguments = self.vault.get(tables, row.arguments)
        return self.vault.likeness(*(name.encode() for name in names), arguments)


def _twin(row: LedgerRow, run_id: str) -> str:
    """The id of a call's copy in that run."""
    return calls.call_id(caller=row.caller, run_id=run_id, step_key=row.step_key)


def _size_bytes(row: StepRow) -> int:
    """Clear text of a step, as its run's bounds count it."""
    texts = (row.request, row.reply) if isinstance(row, JournalRow) else (row.arguments, row.result)
    return sum(text.size_bytes for text in texts if text is not None)


def _check_shape(order: BranchOrder) -> None:
    if not calls.is_new_run_id(order.new_run_id):
        raise InvalidRequest("run_id_invalid")
    if order.origin not in ("fork", "rerun"):
        raise InvalidRequest("origin_invalid")
    if (order.origin == "rerun") != (order.steps == 0) or (order.edit and not order.steps):
        raise InvalidRequest("from_step_invalid", detail="a fork copies one step or more, a re-run none")


def _check_edit(edit: edits.Edit, kept: Sequence[StepRow]) -> None:
    if edit.step > len(kept):
        raise InvalidRequest("edit_invalid", detail=f"only the {len(kept)} copied steps can be edited")
    row = kept[edit.step - 1]
    if isinstance(row, JournalRow) != (edit.reply is not None):
        wanted = "reply" if isinstance(row, JournalRow) else "result"
        raise InvalidRequest("edit_invalid", detail=f"step {edit.step} takes a {wanted}")
    if isinstance(row, LedgerRow) and row.state not in ledger.ANSWERED:
        raise Conflict("step_not_editable", detail=f"step {edit.step} was {row.state}; that stands")
    if isinstance(row, LedgerRow) and row.in_agent:
        why = f"step {edit.step} runs again in the agent, and what it gives then is compared"
        raise Conflict("step_not_editable", detail=why)
