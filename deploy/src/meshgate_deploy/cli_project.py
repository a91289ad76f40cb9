"""Commands that look at a project or show the product: init, scan, demo."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from meshgate_deploy.cli_output import OUTPUT, Output, note, show

Folder = Annotated[Path | None, typer.Option("--project", help="The project's folder; default: this one.")]
Force = Annotated[bool, typer.Option("--force", help="Write over files that exist.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(init)
    app.command()(scan)
    app.command()(demo)


def init(*, project: Folder = None, force: Force = False) -> None:
    """Write a commented manifest and a policy that allows nothing."""
    from meshgate_deploy import init as project_init

    for path in project_init.init(project or Path.cwd(), force=force):
        note(f"written: {path}")
    note("next: fill in meshgate.yaml, then meshgate doctor")


def scan(  # noqa: PLR0913 - the command's options
    *,
    targets: Annotated[
        list[str] | None, typer.Argument(help="module:name of crews; default: all found.")
    ] = None,
    project: Folder = None,
    python: Annotated[str | None, typer.Option(help="The project's interpreter.")] = None,
    force: Force = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    output: Annotated[Output, OUTPUT] = Output.table,
) -> None:
    """Import a project; list agents, tools and variables; write manifest, policies and tests."""
    from rich.console import Console

    from meshgate_deploy import scan as project_scan
    from meshgate_deploy import scan_view

    found = project_scan.scan(
        project or Path.cwd(), targets=targets or (), python=python, force=force, dry_run=dry_run
    )
    if output is Output.table:
        scan_view.show(found, Console())
    else:
        whole = found.as_dict()
        show([whole], output, columns=(), whole=whole)


def demo(
    *,
    seed: Annotated[int | None, typer.Option(help="What to draw; default: a new one.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="Take a tool's grant out of the policy.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")] = False,
) -> None:
    """Show it all: a crew of two works, an injected ticket misleads it, policy holds."""
    from rich.console import Console

    from meshgate_deploy import demo as story
    from meshgate_deploy import demo_view

    shown = story.demo(seed=seed, without=without or (), say=note)
    if as_json:
        sys.stdout.write(json.dumps(shown.report.as_dict()) + "\n")
    else:
        stage = shown.stage
        demo_view.show(
            shown.report, story=stage.story, book=shown.book, project=stage.project, console=Console()
        )
    if not shown.report.ok:
        raise typer.Exit(1)
