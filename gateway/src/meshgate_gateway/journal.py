"""The journal: model replies of a run's finished steps, and the check that a run repeats itself.

A tool call needs no entry: its ledger row is one. A later attempt of the run reads both and is
answered from them, so that only the first step without an entry goes live.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from meshgate_gateway import calls, ledger, own_calls, runs, steps
from meshgate_gateway.authenticate import Door
from meshgate_gateway.bounds import DEFAULT_BOUNDS, Bounds
from meshgate_gateway.errors import Conflict, InvalidRequest
from meshgate_gateway.model import (
    AuditRecord,
    Caller,
    JournalRow,
    LedgerRow,
    Presented,
    Run,
    State,
    Step,
    Tool,
)
from meshgate_gateway.payloads import Vault
from meshgate_gateway.record import Recorder
from meshgate_gateway.store import Store, Tables

MAX_STEP_BYTES = 3_145_728  # request and reply together; below gRPC's default 4 MiB with room for the rest
PAGE = 64  # entries decrypted per read
PAGE_BYTES = 4_194_304  # of clear text per read: one entry may be 3 MiB from a few stored bytes
WITHOUT_EFFECT = ("never_started", ledger.NOT_BEGUN)  # error classes of calls that certainly did nothing
ANSWERS = (State.DONE, State.FAILED, State.DENIED)


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished step with what it gave: `reply` of a model, or the settled row of a call.

    Attributes:
        arguments: of a call whose tool its caller runs itself, and has to run again.
        effect_of: the tool, where the call took an effect that counts when a divergence is looked for.
    """

    step: Step
    reply: bytes
    row: LedgerRow | None
    arguments: bytes = b""
    effect_of: str = ""


def diverged(tables: Tables, run: Run, step: Step) -> JournalRow | None:
    """What an earlier attempt did where this live step now stands; None when nothing contradicts it.

    An earlier attempt that got a model's reply at this turn of the scope, or later, had finished
    every step before that reply. So a step that goes live here was not made then: the program does
    not repeat itself. Unasked siblings of the last turn and other scopes are no sign.
    """
    earlier = range(run.trusted_from + 1, run.attempt)
    if not step.scope or not earlier:
        return None
    return tables.journal.beyond(run_id=run.run_id, scope=step.scope, turn=step.turn, attempts=earlier)


@dataclass(frozen=True, slots=True)
class Stray:
    """How a run does not repeat itself, and the recorded step that contradicts it."""

    why: str
    recorded: steps.StepRow


def strays(tables: Tables, run: Run, step: Step, *, tool: Tool, missed: str) -> Stray | None:
    """How a run that asks for an effect does not repeat itself; None when nothing contradicts it.

    Whatever had ended before a recorded step ended before it in the program too, so that a program which
    repeats itself asks for every recorded step without waiting for a live one. An effect that is left out
    by a program that wants another effect of the same tool may be the same effect, under inputs that
    differ in each attempt.

    Args:
        tables: of the transaction that begins the call.
        run: whose call it is.
        step: where it stands.
        tool: which one.
        missed: id of a call of that tool which this attempt is said to have left out; may be empty.
    """
    other = diverged(tables, run, step)
    if other is not None:
        why = (
            f"diverged: {tool.id} at turn {step.turn}, where {steps.whose(run, other)} had gone on to "
            f"another model call ({other.step_key[:16]})"
        )
        return Stray(why, other)
    row = tables.calls.get(missed) if missed else None
    if row is None or (row.run_id, row.tool) != (run.run_id, tool.id):
        return None
    if not acted(row, run) or row.attempt >= run.attempt:
        return None
    why = (
        f"diverged: {tool.id} at turn {step.turn}, while {row.call_id} of it, which {steps.whose(run, row)} "
        "had made, was not asked for"
    )
    return Stray(why, row)


def acted(row: LedgerRow, run: Run) -> bool:
    """Whether a call took an effect, or may have, that counts when a divergence is looked for."""
    if row.effect == "read" or row.attempt <= run.trusted_from:
        return False
    if row.in_agent:  # what an attempt had in its memory died with it
        return own_calls.runs_again(row)
    failed = row.state is State.FAILED and row.take > 0 and row.error_class not in WITHOUT_EFFECT
    return failed or row.state in (State.DONE, State.SENT, State.UNKNOWN)


def check_step(step: Step, *, kind: str) -> None:
    """The shape of a step.

    Raises:
        InvalidRequest: it has another.
    """
    if not calls.is_step_key(step.key, in_run=True):
        raise InvalidRequest("step_key_invalid")
    if not calls.is_scope(step.scope) or not 0 <= step.turn <= calls.MAX_TURN:
        raise InvalidRequest("step_place_invalid")
    if step.kind != kind:
        raise InvalidRequest("step_kind_invalid")


@dataclass(frozen=True, slots=True)
class Journal:
    """AppendStep and ReadJournal without their wire."""

    door: Door
    store: Store
    vault: Vault
    recorder: Recorder
    now_ms: Callable[[], int]
    bounds: Bounds = DEFAULT_BOUNDS

    def append(  # noqa: PLR0913 - the message's own fields
        self,
        presented: Presented,
        *,
        run_id: str,
        attempt: int,
        step: Step,
        request: bytes,
        reply: bytes,
        milliseconds: int,
    ) -> None:
        """Records a model's reply durably. The same reply again is no error.

        Raises:
            Conflict: superseded, another reply under that key, a tool's key, or the run is full.
            InvalidRequest: a step of the wrong shape or size.
        """

        def work(tables: Tables, caller: Caller) -> None:
            run = runs.acting(tables, caller=caller, run_id=run_id, attempt=attempt)
            earlier = tables.journal.get(run_id, step.key)
            if earlier is not None:
                if self.vault.matches(tables, earlier.reply, reply):
                    return
                raise Conflict("step_changed", detail=f"{step.key[:16]} has another reply")
            call_id = calls.call_id(caller=caller.spiffe_id, run_id=run_id, step_key=step.key)
            if tables.calls.get(call_id) is not None:
                raise Conflict("step_kind", call_id=call_id, detail="a tool call has this key")
            other = diverged(tables, run, step)
            if other is not None:
                tables.records.append(self._difference(run, step, other))
            place = self.bounds.add_step(tables, run, len(request) + len(reply))
            put = self.vault.put
            row = JournalRow(
                run_id=run_id,
                step_key=step.key,
                scope=step.scope,
                turn=step.turn,
                attempt=attempt,
                created_ms=self.now_ms(),
                milliseconds=milliseconds,
                place=place,
                request=put(tables, request),
                reply=put(tables, reply),
            )
            tables.journal.insert(row)
            tables.records.append(self.recorder.step(caller=caller, row=row))

        def serve(caller: Caller) -> None:
            check_step(step, kind="model")
            size = len(request) + len(reply)
            if size > MAX_STEP_BYTES:
                raise InvalidRequest("step_too_large", detail=f"{size} bytes")
            self.store.write(lambda tables: work(tables, caller))

        self.door.enter(presented, "AppendStep", serve)

    def _difference(self, run: Run, step: Step, other: JournalRow) -> AuditRecord:
        fields = {
            "run_id": run.run_id,
            "attempt": run.attempt,
            "step_key": step.key,
            "recorded_step_key": other.step_key,
            "turn": step.turn,
        }
        return self.recorder.lifecycle(event="run_differs", caller=run.app, fields=fields)

    def read(
        self,
        presented: Presented,
        *,
        run_id: str,
        attempt: int,
        admit: Callable[[Caller], None] = lambda _: None,
    ) -> Iterator[Entry]:
        """Every finished step of the run, oldest first; decrypted as it is asked for.

        A call that is under way and may have taken effect is among them, without an answer.

        Args:
            presented: the run's own app.
            run_id: which run.
            attempt: the current one; 0 looks at a run in any state, also one that has ended.
            admit: called with who it is before anything is read; may refuse.

        Raises:
            Conflict: superseded.
        """

        def serve(caller: Caller) -> tuple[Run, Sequence[JournalRow], Sequence[LedgerRow]]:
            def work(tables: Tables) -> tuple[Run, Sequence[JournalRow], Sequence[LedgerRow]]:
                if attempt:
                    run = runs.acting(tables, caller=caller, run_id=run_id, attempt=attempt)
                else:
                    run = runs.owned(tables, caller=caller, run_id=run_id)
                    if run.purged_ms:
                        raise Conflict("run_purged", detail=run_id)
                made = tables.calls.of_run(run_id)
                told = [row for row in made if row.state in ANSWERS or acted(row, run)]
                return run, tables.journal.of_run(run_id), told

            admit(caller)
            return self.store.read(work)

        run, replies, settled = self.door.enter(presented, "ReadJournal", serve)
        return self._entries(run, replies, settled)

    def _entries(
        self, run: Run, replies: Sequence[JournalRow], settled: Sequence[LedgerRow]
    ) -> Iterator[Entry]:
        made: list[steps.StepRow] = [*replies, *settled]
        made.sort(key=steps.order)
        for page in _pages(made):
            yield from self.store.read(partial(self._page, run=run, page=page))

    def _page(self, tables: Tables, *, run: Run, page: Sequence[steps.StepRow]) -> list[Entry]:
        return [self._entry(tables, run, row) for row in page]

    def _entry(self, tables: Tables, run: Run, row: JournalRow | LedgerRow) -> Entry:
        if isinstance(row, JournalRow):
            step = Step(row.step_key, row.scope, row.turn, "model")
            return Entry(step, self.vault.get(tables, row.reply), None)
        data = self.vault.get(tables, row.result) if row.result else b""
        arguments = self.vault.get(tables, row.arguments) if own_calls.runs_again(row) else b""
        step = Step(row.step_key, row.scope, row.turn, "tool")
        return Entry(step, data, row, arguments, effect_of=row.tool if acted(row, run) else "")


def _pages(rows: Sequence[JournalRow | LedgerRow]) -> Iterator[list[JournalRow | LedgerRow]]:
    page: list[JournalRow | LedgerRow] = []
    size = 0
    for row in rows:
        sealed = row.reply if isinstance(row, JournalRow) else row.result
        size += sealed.size_bytes if sealed else 0
        if page and (size > PAGE_BYTES or len(page) == PAGE):
            yield page
            page, size = [], sealed.size_bytes if sealed else 0
        page.append(row)
    if page:
        yield page
