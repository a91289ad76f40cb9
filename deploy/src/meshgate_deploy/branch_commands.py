"""`meshgate runs fork|rerun`: a new run out of one that ended."""

import base64
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from meshgate_deploy import given
from meshgate_deploy.cli_output import note
from meshgate_deploy.control import ask_once
from meshgate_deploy.errors import DependencyUnavailable, MeshError, NotFound, UsageError
from meshgate_deploy.run_commands import Project, RunId
from meshgate_deploy.state import find_project, open_state

MAX_EDIT_BYTES = 262_144  # the gateway reads no more

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, whatever may happen again.")]
NewId = Annotated[
    str | None,
    typer.Option(
        "--run-id",
        callback=given.run_id,
        help="Of the new run; the same again is the same run. Default: a new UUIDv7.",
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the commands to the `runs` group."""
    app.command()(fork)
    app.command()(rerun)


def fork(  # noqa: PLR0913 - one option per field
    run_id: RunId,
    *,
    from_step: Annotated[
        int, typer.Option("--from-step", min=1, help="Keep this step and all before it; go live behind it.")
    ],
    edit: Annotated[
        Path | None, typer.Option("--edit", help="A JSON file: another answer for one of the kept steps.")
    ] = None,
    new_id: NewId = None,
    yes: Yes = False,
    project: Project = None,
) -> None:
    """Start a new run that has the first steps of one that ended, and goes its own way behind them.

    The new run's id is printed; the old one is not changed. The app's worker plays it, a
    command in the folder of the old one.
    """
    branch(project, run_id, origin="fork", steps=from_step, edit=_read(edit), new_id=new_id, yes=yes)


def rerun(run_id: RunId, *, new_id: NewId = None, yes: Yes = False, project: Project = None) -> None:
    """Start a new run with the same command as one that ended, from its beginning.

    The new run's id is printed; the old one is not changed. The app's worker plays it, a
    command in the folder of the old one.
    """
    branch(project, run_id, origin="rerun", steps=0, edit=b"", new_id=new_id, yes=yes)


def branch(  # noqa: PLR0913 - what both commands have
    project: Path | None, run_id: str, *, origin: str, steps: int, edit: bytes, new_id: str | None, yes: bool
) -> None:
    """Asks the gateway what it would make, the person whether to, and makes and starts it."""
    from meshgate_agents.launcher.launch import uuid7

    folder = project.resolve() if project else find_project(Path.cwd())
    request = {
        "run_id": run_id, "new_run_id": new_id or uuid7(), "origin": origin, "steps": steps,
        "edit_json": base64.b64encode(edit).decode(), "cwd": str(Path.cwd()),
    }  # fmt: skip
    plan = _ask(folder, {**request, "dry_run": True})
    _agreed(origin, run_id, plan["effects"], yes=yes)
    try:
        made = _ask(folder, request)["run"]
    except DependencyUnavailable as error:
        again = f"the same command with --run-id {request['new_run_id']}: what was made is not made twice"
        raise DependencyUnavailable(error.what, why=error.why, next_step=again) from error
    note(f"{origin} of {run_id}" + (f" behind step {steps} of {plan['steps']}" if steps else ""))
    typer.echo(made["run_id"])
    note(f"next: meshgate runs watch {made['run_id']}")


def _agreed(origin: str, run_id: str, effects: list[dict[str, Any]], *, yes: bool) -> None:
    """Lists what may happen again, on stderr, and returns when that is fine.

    Raises:
        UsageError: nobody can be asked.
        MeshError: the answer was no.
    """
    if not effects:
        return
    note(f"these effects of {run_id} may happen again:")
    for row in effects:
        note(f"  step {row['step']}: {row['tool']} ({row['effect']}), {row['state']}, {row['call_id']}")
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            "effects may happen again, and there is nobody to ask",
            next_step=f"meshgate runs {origin} {run_id} … --yes",
        )
    if not typer.confirm(f"{origin} {run_id} all the same?", default=False, err=True):
        raise MeshError("nothing was made", why="the answer was no")


def _ask(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    order = {"op": "admin", "method": "BranchRun", "request": request}
    try:
        return ask_once(open_state(folder).control, order)
    except MeshError as error:
        raise explained(error, str(request["run_id"])) from error


# Reason of the gateway: what happened, and the next command.
_REASONS = {
    "run_not_ended": ("{run} has not ended", "meshgate runs watch {run}, or meshgate runs cancel {run}"),
    "run_without_command": ("{run} does not say what it ran", "meshgate runs show {run}"),
    "run_purged": ("the clear text of {run} was purged", "meshgate runs show {run}"),
    "run_foreign": ("{run} belongs to an app that this mesh does not have", "meshgate runs list"),
    "run_taken": ("that id is taken by another run", "another --run-id, or none"),
    "run_too_long": ("{run} has more calls than can be copied", "meshgate runs rerun {run}"),
    "from_step_invalid": ("there is no such step", "meshgate runs show {run} --steps"),
    "step_not_settled": ("nobody knows yet how a step ended", "meshgate runs resolve CALL --as done|failed"),
    "step_not_editable": ("that step's answer cannot be edited", "meshgate runs show {run} --steps"),
    "export_stale": ("the export is not {run} as it is now", "meshgate runs export {run}"),
    "edit_invalid": ("the edit cannot be used", "docs/how-to/look-back.md shows its form"),
}
_USAGE = ("from_step_invalid", "edit_invalid", "run_taken")


def explained(error: MeshError, run_id: str) -> MeshError:
    """The gateway's refusal in a person's words, with the exit code of its kind."""
    reason, _, detail = error.why.partition(": ")
    if reason not in _REASONS:
        return error
    what, following = (text.format(run=run_id) for text in _REASONS[reason])
    kind = UsageError if reason in _USAGE else type(error)
    return kind(what, why=detail or reason, next_step=following)


def _read(path: Path | None) -> bytes:
    if path is None:
        return b""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path} cannot be read", why=str(error)) from error
    if not 0 < len(data) <= MAX_EDIT_BYTES:
        raise UsageError(f"{path} is empty or larger than {MAX_EDIT_BYTES} bytes")
    return data
