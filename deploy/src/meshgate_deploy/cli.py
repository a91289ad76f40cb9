"""The command line. Everything heavy is imported where it is used: `meshgate --help` takes 0.2 s.

Data goes to stdout, messages to stderr. Exit codes: 0 ok, 1 failure, 2 usage, 3 denied, 4 not found,
5 dependency unavailable, 6 integrity failed; `run --` gives the program's own, 125 for ours.
"""

import enum
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from meshgate_deploy import (
    archive_commands,
    branch_commands,
    given,
    id_commands,
    policy_commands,
    project_commands,
    run_commands,
)
from meshgate_deploy.cli_output import OUTPUT, Output, fail, note, show
from meshgate_deploy.errors import EXIT_OURS, Cancelled, IntegrityFailed, MeshError, UsageError
from meshgate_deploy.state import find_project, open_state

app = typer.Typer(
    name="meshgate", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Runs CrewAI agents with every tool call decided by policy and recorded.",
)  # fmt: skip
policy = typer.Typer(no_args_is_help=True, help="Check, test and activate the Rego policies.")
audit = typer.Typer(no_args_is_help=True, help="Read and verify the records.")
runtime_commands = typer.Typer(no_args_is_help=True, help="The Dapr and OPA binaries.")
policy_commands.register(policy)
app.add_typer(policy, name="policy")
app.add_typer(audit, name="audit")
app.add_typer(id_commands.app, name="id")
app.add_typer(runtime_commands, name="runtime")
app.add_typer(run_commands.app, name="runs")
project_commands.register(app)
branch_commands.register(run_commands.app)
archive_commands.register(run_commands.app)

Project = Annotated[
    Path | None, typer.Option("--project", help="The project's folder; default: found upward from here.")
]
OutputOption = Annotated[Output, OUTPUT]
# Typer shows only this one of its usage errors; the base is that of whichever click it carries.
_UsageFailed: type[Exception] = typer.BadParameter.__mro__[1]


class Kind(enum.StrEnum):
    """The kinds of records."""

    decision = "decision"
    take = "take"
    outcome = "outcome"
    refusal = "refusal"
    authentication = "authentication"
    policy = "policy"
    lifecycle = "lifecycle"
    step = "step"
    copy = "copy"


def main() -> None:
    """The console script: maps every failure of ours to its exit code."""
    try:
        status = app(prog_name="meshgate", standalone_mode=False)
    except MeshError as error:
        fail(error)
        sys.exit(EXIT_OURS if sys.argv[1:2] == ["run"] else error.exit_code)
    except _UsageFailed as error:
        _misused(error)
        sys.exit(EXIT_OURS if sys.argv[1:2] == ["run"] else UsageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(Cancelled.exit_code)
    sys.exit(status if isinstance(status, int) else 0)


def _misused(error: Any) -> None:
    """A command line that cannot be read, in the form of all other errors."""
    if type(error).__name__ == "NoArgsIsHelpError":  # a bare `meshgate audit`: the help was shown
        return
    said = error.format_message().replace("Value error, ", "").rstrip(".")
    where = error.ctx.command_path if error.ctx else "meshgate"
    fail(UsageError(said, next_step=f"{where} --help"))


def _project(given: Path | None) -> Path:
    return given.resolve() if given else find_project(Path.cwd())


@app.command()
def up(
    *,
    project: Project = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once the mesh is up.")] = False,
) -> None:
    """Start the whole mesh; Ctrl-C takes it down."""
    folder = _project(project)
    if detach:
        from meshgate_deploy.detached import start_detached

        start_detached(folder, note)
        return
    from meshgate_deploy.supervisor import Supervisor

    Supervisor(project=folder, say=note).run()


@app.command()
def down(*, project: Project = None) -> None:
    """Take the mesh down and wait until it is gone."""
    from meshgate_deploy.detached import stop

    stop(open_state(_project(project)), note)


@app.command()
def ps(*, project: Project = None, output: OutputOption = Output.table) -> None:
    """Show every app with its SPIFFE ID, what it plays and how much memory it takes; then the rest."""
    from meshgate_deploy import ps as view
    from meshgate_deploy.control import ask_once

    status = view.measured(ask_once(open_state(_project(project)).control, {"op": "status"}))
    if output is Output.table:
        typer.echo(view.text(status))
    else:
        rows = [*status["processes"], *status["fork_servers"]]
        show(rows, output, columns=[], whole=status)


@app.command()
def logs(
    *,
    names: Annotated[list[str] | None, typer.Argument(help="Processes; default: all.")] = None,
    project: Project = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines from the end.")] = 50,
) -> None:
    """Show the logs of the mesh's processes."""
    from meshgate_deploy.logs import print_logs

    print_logs(open_state(_project(project)), names or [], follow=follow, lines=lines)


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    *,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="After --: what to run.")],
    project: Project = None,
    app_name: Annotated[
        str | None, typer.Option("--app", help="The crew or program of the manifest.")
    ] = None,
    run_id: Annotated[
        str | None, typer.Option("--run-id", callback=given.run_id, help="Default: a new UUIDv7.")
    ] = None,
    detach: Annotated[
        bool,
        typer.Option("--detach", "-d", help="Print the run's id and return."),
    ] = False,
) -> None:
    """Run an unchanged program as an agent. Its exit status is the program's own, 125 for ours."""
    from meshgate_deploy.run_client import run_program

    status = run_program(
        project=_project(project), app=app_name, run_id=run_id, command=command, detach=detach, say=note
    )
    raise typer.Exit(status)


@app.command()
def doctor(
    *,
    project: Project = None,
    output: OutputOption = Output.table,
    strict: Annotated[bool, typer.Option("--strict", help="Fail when anything is not ok.")] = False,
) -> None:
    """Look at binaries, manifest, policies and the running mesh; say how to mend what is wrong."""
    from meshgate_deploy.doctor import examine

    checks = examine(project.resolve() if project else Path.cwd())
    rows = [{"check": c.name, "ok": c.ok, "detail": c.detail, "fix": "" if c.ok else c.fix} for c in checks]
    show(rows, output, columns=["check", "ok", "detail", "fix"])
    bad = [check for check in checks if not check.ok]
    if bad and strict:
        raise IntegrityFailed(f"{len(bad)} of {len(checks)} checks are not ok", next_step=bad[0].fix)


@audit.command("tail")
def audit_tail(
    *,
    project: Project = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Records from the end.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is recorded.")] = False,
    output: OutputOption = Output.table,
) -> None:
    """Show the newest records."""
    from meshgate_deploy.audit_commands import tail

    tail(open_state(_project(project)), lines=lines, follow=follow, output=output)


@audit.command("query")
def audit_query(  # noqa: PLR0913 - one option per field
    *,
    project: Project = None,
    caller: Annotated[str, typer.Option(help="A SPIFFE ID.")] = "",
    tool: Annotated[str, typer.Option(help="host.tool")] = "",
    call_id: Annotated[str, typer.Option("--call-id", help="One call's records.")] = "",
    run_id: Annotated[str, typer.Option("--run", help="One run's records.")] = "",
    kind: Annotated[Kind | None, typer.Option(help="What was recorded.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the oldest first.")] = 100,
    output: OutputOption = Output.table,
) -> None:
    """Find records."""
    from meshgate_deploy.audit_commands import query

    filters = {"caller": caller, "tool": tool, "call_id": call_id, "run_id": run_id, "kind": kind or ""}
    query(open_state(_project(project)), filters=filters, limit=limit, output=output)


@audit.command("verify")
def audit_verify(*, project: Project = None, output: OutputOption = Output.table) -> None:
    """Verify that the chain of records is whole."""
    from meshgate_deploy.control import ask_once

    request = {"op": "admin", "method": "VerifyRecords"}
    answer = ask_once(open_state(_project(project)).control, request)
    show([answer], output, columns=["verified", "records", "problem"], whole=answer)
    if not answer["verified"]:
        raise IntegrityFailed(
            "the records are not whole", why=str(answer["problem"]), next_step="keep the store as evidence"
        )


@runtime_commands.command("install")
def runtime_install() -> None:
    """Find or build the binaries."""
    from meshgate_deploy import runtime

    binaries = runtime.find_or_install(progress=note)
    for name, version in binaries.versions.items():
        note(f"{name} {version}: ready")


@runtime_commands.command("show")
def runtime_show(*, output: OutputOption = Output.table) -> None:
    """Show where the binaries are; builds nothing."""
    from meshgate_deploy import runtime

    show(runtime.show(), output, columns=["name", "state", "version", "path"])


@app.command()
def version(*, output: OutputOption = Output.table) -> None:
    """Show versions."""
    from importlib import metadata

    rows = []
    for name in ("meshgate", "crewai", "crewai-tools", "dapr", "grpcio"):
        try:
            rows.append({"name": name, "version": metadata.version(name)})
        except metadata.PackageNotFoundError:
            rows.append({"name": name, "version": "not installed"})
    show(rows, output, columns=["name", "version"])


@app.command("manifest-schema", hidden=True)
def manifest_schema() -> None:
    """Print the manifest's JSON Schema."""
    from meshgate_deploy.manifest import json_schema

    typer.echo(json_schema(), nl=False)


if __name__ == "__main__":
    main()
