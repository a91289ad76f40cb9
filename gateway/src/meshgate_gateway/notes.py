"""The records of a run's life."""

from collections.abc import Mapping

from meshgate_gateway.model import AuditRecord, Run
from meshgate_gateway.record import Recorder, sealed_form

TEXTS = {  # what a record commits to of a run's own clear text
    "run_started": ("input",),
    "attempt_ended": ("traceback",),
    "run_finished": ("traceback", "result"),
    "run_differs": ("traceback",),
    "run_continue": ("traceback",),
}


def note(
    recorder: Recorder, event: str, run: Run, operator: str = "", *, more: Mapping[str, object] | None = None
) -> AuditRecord:
    """The record of a step in a run's life."""
    fields = {"run_id": run.run_id, "attempt": run.attempt, "state": run.state, "steps": run.progress}
    held = {"detail": run.detail} if run.state == "waiting" else {}  # ours; others come from a launcher
    by = {"operator": operator} if operator else {}
    texts = {name: sealed_form(getattr(run, name)) for name in TEXTS.get(event, ())}
    return recorder.lifecycle(
        event=event, caller=run.app, fields={**fields, **held, **by, **texts, **(more or {})}
    )
