"""`meshgate runs export|purge`: a run as one archive, and the end of its clear text."""

from pathlib import Path
from typing import Annotated, Any

import typer

from meshgate_deploy.branch_commands import explained
from meshgate_deploy.cli_output import note
from meshgate_deploy.control import ask_once
from meshgate_deploy.errors import IntegrityFailed, MeshError, NotFound, UsageError
from meshgate_deploy.run_commands import Project, RunId
from meshgate_deploy.state import find_project, open_state


def register(app: typer.Typer) -> None:
    """Adds the commands to the `runs` group."""
    app.command()(export)
    app.command()(purge)


def export(
    run_id: RunId,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The archive; default: run-ID.tar.gz here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    project: Project = None,
) -> None:
    """Write one archive with everything of a run: rows, clear text, records, and how to verify them.

    Its path is printed. It holds clear text, so only you may read the file; that you made it is recorded.
    """
    from meshgate_deploy.archive_file import write_archive

    folder = project.resolve() if project else find_project(Path.cwd())
    path = out or Path(f"run-{run_id}.tar.gz")
    if not path.name.endswith(".tar.gz"):
        raise UsageError(f"{path} does not end with .tar.gz", next_step=f"-o {path}.tar.gz")
    if path.exists() and not force:
        raise UsageError(f"{path} is there already", next_step="another -o, or --force")
    control = open_state(folder).control

    def ask(method: str, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return ask_once(control, {"op": "admin", "method": method, "request": request})
        except MeshError as error:
            raise explained(error, run_id) from error

    found = write_archive(
        run_id=run_id, ask=ask, path=path, force=force, manifest=(folder / "meshgate.yaml").read_bytes()
    )
    note(f"{found.steps} steps, {found.records} records, verified; digest {found.digest}")
    note(f"next: python -m meshgate_audit {path}")
    typer.echo(path)


def purge(
    run_id: RunId,
    *,
    exported: Annotated[
        Path | None,
        typer.Option("--export", help="An archive of the run; verified, and held against the store."),
    ] = None,
    without_export: Annotated[
        bool, typer.Option("--without-export", help="Nobody keeps one, and that is meant.")
    ] = False,
    project: Project = None,
) -> None:
    """Delete the clear text and the journal of a run that ended, for good.

    The run's row, its calls (an effect must never happen twice under one id) and all records stay.
    """
    if (exported is None) != without_export:
        raise UsageError(
            "either --export FILE or --without-export",
            why="what is purged cannot be brought back",
            next_step=f"meshgate runs export {run_id}",
        )
    folder = project.resolve() if project else find_project(Path.cwd())
    digest = _digest(exported, run_id) if exported is not None else ""
    request = {"run_id": run_id, "digest": digest, "without_export": without_export}
    order = {"op": "admin", "method": "PurgeRun", "request": request}
    try:
        done = ask_once(open_state(folder).control, order)
    except MeshError as error:
        raise explained(error, run_id) from error
    note(f"{run_id}: {done['deleted']} clear texts deleted")
    if done["shared"]:
        note(f"{done['shared']} more stay until the runs that share them by a fork are purged too")


def _digest(path: Path, run_id: str) -> str:
    """The digest of an archive that holds, if it is the run's.

    Raises:
        NotFound: it is not there.
        IntegrityFailed: it does not hold, or is of another run.
    """
    from meshgate_audit.archive import Broken, verify_archive

    if not path.is_file():
        raise NotFound(f"{path} is not there", next_step=f"meshgate runs export {run_id}")
    try:
        found = verify_archive(path)
    except Broken as broken:
        raise IntegrityFailed(
            f"{path} does not verify", why=str(broken), next_step="export again"
        ) from broken
    if found.run_id != run_id:
        raise IntegrityFailed(f"{path} is of {found.run_id}, not of {run_id}")
    return found.digest
