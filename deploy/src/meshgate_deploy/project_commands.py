"""The commands that make a project's files or stage one: `init`, `scan`, `demo`."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from meshgate_deploy.cli_output import OUTPUT, Output, note, show
from meshgate_deploy.errors import IntegrityFailed, MeshError

Folder = Annotated[Path | None, typer.Option("--project", help="The project's folder; default: this one.")]
Force = Annotated[bool, typer.Option("--force", help="Write over files that exist.")]


class Isolate(StrEnum):
    """What of a crew is an app."""

    agents = "agents"
    crew = "crew"


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(init)
    app.command()(scan)
    app.command()(demo)


def init(project: Folder = None, force: Force = False) -> None:  # noqa: FBT002 (typer's form of a flag)
    """Write a commented meshgate.yaml with the crews and agents found, and policies that allow nothing."""
    from meshgate_deploy.init import init as write

    for path in write(project or Path.cwd(), force=force):
        typer.echo(str(path))
    note("next: edit meshgate.yaml and policies, then meshgate doctor; scan also finds tools and grants")


def scan(  # noqa: PLR0913, PLR0917 (one parameter per option)
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODULE:NAME|crew.jsonc]…", help="Crews; default: those found."),
    ] = None,
    project: Folder = None,
    python: Annotated[
        str | None, typer.Option("--python", help="The project's interpreter; default: its .venv, else ours.")
    ] = None,
    force: Force = False,  # noqa: FBT002
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,  # noqa: FBT002
    isolate: Annotated[
        Isolate, typer.Option("--isolate", help="Every agent an app of its own, or the whole crew one.")
    ] = Isolate.agents,
    output: Annotated[Output, OUTPUT] = Output.table,
) -> None:
    """Import a CrewAI project; write its manifest, least-privilege policies and their tests."""
    from rich.console import Console

    from meshgate_deploy import scan_view
    from meshgate_deploy.scan import scan as look

    found = look(
        project or Path.cwd(), targets=targets or (), python=python, isolate=isolate is Isolate.agents,
        force=force, dry_run=dry_run,
    )  # fmt: skip
    if output is Output.table:
        scan_view.show(found, Console())
    else:
        whole = found.as_dict()
        show([whole], output, columns=(), whole=whole)


def demo(
    seed: Annotated[int | None, typer.Option("--seed", help="What to draw; default: something new.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,  # noqa: FBT002
    without: Annotated[
        list[str] | None, typer.Option("--without", help="A tool whose grant is taken out of the policy.")
    ] = None,
) -> None:
    """See a crew of two agents work, and policy refuse what an injected ticket asks for."""
    from rich.console import Console

    from meshgate_deploy import demo_view
    from meshgate_deploy.demo import demo as play

    played = play(seed=seed, without=without or (), say=note)
    report = played.report
    if as_json:
        sys.stdout.write(json.dumps(report.as_dict()) + "\n")
    else:
        demo_view.show(
            report,
            story=played.stage.story,
            book=played.book,
            project=played.stage.project,
            console=Console(),
        )
    if report.problem:
        raise IntegrityFailed("the demo's records are not whole", why=report.problem)
    if not report.ok:
        raise MeshError(
            "the demo did not go as it must",
            why=f"status of the crew {report.exit_status}, effects {report.effects}",
            next_step=f"the logs in {played.stage.project}/.meshgate/logs",
        )
