"""A run as an operator reads it. Clear text is given out on record only: who, which run, how many steps."""

from collections.abc import Sequence
from dataclasses import dataclass

from meshgate_gateway import steps
from meshgate_gateway.calls import RUN_STEPS
from meshgate_gateway.errors import Missing
from meshgate_gateway.model import JournalRow, Run, Sealed
from meshgate_gateway.payloads import Vault
from meshgate_gateway.record import Recorder
from meshgate_gateway.steps import StepRow
from meshgate_gateway.store import Store, Tables

MAX_SHOWN_BYTES = 3_145_728  # of clear text in one answer: below gRPC's default 4 MiB
STEP_BYTES = 256  # a step's own fields


@dataclass(frozen=True, slots=True)
class Question:
    """What an operator wants to see of a run.

    Attributes:
        row_only: no clear text, so no record.
        with_steps: else only the run's own input, traceback and result.
    """

    run_id: str
    operator: str
    row_only: bool = False
    with_steps: bool = True


@dataclass(frozen=True, slots=True)
class StepView:
    """One step of a run as a person sees it: its row, what went in, what came out."""

    row: StepRow
    given: bytes
    gave: bytes


@dataclass(frozen=True, slots=True)
class RunView:
    """A run and of its clear text what was asked for; the first steps, when not all fit (`cut`)."""

    run: Run
    given: bytes = b""
    traceback: bytes = b""
    result: bytes = b""
    steps: Sequence[StepView] = ()
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Views:
    """Answers questions."""

    store: Store
    vault: Vault
    recorder: Recorder

    def of(self, question: Question, *, caller: str) -> RunView:
        """The view, recorded before it is given out unless nothing in it is clear text.

        Raises:
            Missing: no such run.
            StoreUnavailable: not readable, or not recorded: nothing is shown.
        """
        view = self.store.read(lambda tables: self._view(tables, question))
        if question.row_only or view.run.purged_ms:
            return view
        # Not the run's own record (`run_id`): to look at a run changes nothing of it.
        fields = {
            "shown_run": question.run_id,
            "operator": question.operator[:128],
            "steps": len(view.steps),
        }
        record = self.recorder.lifecycle(event="run_shown", caller=caller, fields=fields)
        self.store.write(lambda tables: tables.records.append(record))
        return view

    def _view(self, tables: Tables, question: Question) -> RunView:
        run = tables.runs.get(question.run_id)
        if run is None:
            raise Missing("run_unknown", detail="no such run")
        if question.row_only:
            return RunView(run)
        rows = steps.of_run(tables, run.run_id) if question.with_steps else []
        # A fork may still hold some of what was purged; it is not this run's any more.
        purged = bool(run.purged_ms)
        given, traceback, result = (
            b"" if purged else self._text(tables, each) for each in (run.input, run.traceback, run.result)
        )
        room = MAX_SHOWN_BYTES - len(given) - len(traceback) - len(result)
        shown = self._fitting(tables, rows, room, purged=purged)
        return RunView(run, given, traceback, result, shown, cut=len(shown) < len(rows))

    def _fitting(
        self, tables: Tables, rows: Sequence[StepRow], room: int, *, purged: bool
    ) -> Sequence[StepView]:
        """The first steps, as many as fit, and what a runner was given and gave in any case."""
        ends = [self._step(tables, row, purged=purged) for row in rows if row.step_key in RUN_STEPS]
        room -= sum(map(_bytes, ends))
        shown: list[StepView] = []
        for row in rows:
            if row.step_key in RUN_STEPS:
                shown.append(ends.pop(0))
            elif room > 0:
                step = self._step(tables, row, purged=purged)
                room -= _bytes(step)
                shown += [step] if room >= 0 else []
        return shown

    def _step(self, tables: Tables, row: StepRow, *, purged: bool) -> StepView:
        if purged:
            return StepView(row, b"", b"")
        both = (row.request, row.reply) if isinstance(row, JournalRow) else (row.arguments, row.result)
        given, gave = (self._text(tables, sealed) for sealed in both)
        return StepView(row, given, gave)

    def _text(self, tables: Tables, sealed: Sealed | None) -> bytes:
        """The clear text; empty where none was kept."""
        if sealed is None or not self.vault.kept(tables, sealed):
            return b""
        return self.vault.get(tables, sealed)


def _bytes(step: StepView) -> int:
    return len(step.given) + len(step.gave) + STEP_BYTES
