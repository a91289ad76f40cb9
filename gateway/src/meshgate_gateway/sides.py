"""Both sides of a divergence in clear, for the person who has to decide on the run.

They lie where clear text lies, as the run's traceback, and go with it: when a person says that the run goes
on, when another divergence takes their place, or when it is purged. A record commits to them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from meshgate_gateway import runs, steps
from meshgate_gateway.errors import Conflict
from meshgate_gateway.model import JournalRow, Run
from meshgate_gateway.notes import note
from meshgate_gateway.payloads import Vault
from meshgate_gateway.record import Recorder
from meshgate_gateway.steps import StepRow
from meshgate_gateway.store import Tables

MAX_SIDE_BYTES = 8_000  # of each side; several differences fit into a traceback's bound


@dataclass(frozen=True, slots=True)
class Side:
    """What one attempt wanted or got: what it is, and its clear text."""

    title: str
    data: bytes

    @property
    def text(self) -> bytes:
        """As a person reads it."""
        return f"{self.title}\n".encode() + self.data[:MAX_SIDE_BYTES] + b"\n\n"


@dataclass(frozen=True, slots=True)
class Sides:
    """Keeps them."""

    vault: Vault
    recorder: Recorder
    now_ms: Callable[[], int]

    def of_step(self, tables: Tables, run: Run, row: StepRow) -> Side:
        """A recorded step: a call with its arguments, or what was new in the request of a model step."""
        whose = f"recorded in {steps.whose(run, row)}"
        if isinstance(row, JournalRow):
            title, given = f"model step {row.step_key[:16]} at turn {row.turn}, {whose}", row.request
        else:
            title = f"{row.tool} ({row.call_id}) at turn {row.turn}, {whose}: {row.state}"
            given = row.arguments
        return Side(title, self.vault.get(tables, given) if self.vault.kept(tables, given) else b"")

    def keep(self, tables: Tables, run_id: str, recorded: Side, now: Side) -> None:
        """Adds a difference to those of the run's current attempt, in place of what an earlier one left."""
        run = tables.runs.get(run_id)
        if run is None:
            raise RuntimeError("a run that differs left the store")
        title = f"now, in attempt {run.attempt}: "
        text = recorded.text + replace(now, title=title + now.title).text
        if run.traceback is not None:
            text = _together(self.vault.get(tables, run.traceback), text, same=f"\n{title}".encode())
            tables.payloads.delete([run.traceback.payload_id])  # nothing names it any more
        after = replace(run, traceback=self.vault.put(tables, text), updated_ms=self.now_ms())
        if not tables.runs.move(run, after):
            raise Conflict("run_changed", detail=run.run_id)
        tables.records.append(note(self.recorder, "run_differs", after))


def _together(earlier: bytes, text: bytes, *, same: bytes) -> bytes:
    """All differences of one attempt, the first one first: the later ones may only follow from it."""
    if same not in earlier:  # it is of another attempt, or no difference
        return text
    return earlier if text in earlier else (earlier + text)[: runs.MAX_TRACEBACK_BYTES]
