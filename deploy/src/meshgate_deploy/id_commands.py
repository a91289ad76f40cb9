"""`meshgate id`: who an app is."""

from pathlib import Path
from typing import Annotated, Any

import typer

from meshgate_deploy.cli_output import OUTPUT, Output, show
from meshgate_deploy.state import find_project, open_state

app = typer.Typer(no_args_is_help=True, help="Show the certificates of apps.")


@app.command("show")
def show_identity(
    *,
    wanted: Annotated[str, typer.Argument(metavar="APP|SPIFFE-ID", help="An app of the mesh.")],
    project: Annotated[
        Path | None,
        typer.Option("--project", help="The project's folder; default: found upward from here."),
    ] = None,
    output: Annotated[Output, OUTPUT] = Output.table,
) -> None:
    """Show the certificates that an app's processes hold now. Issues none; no key is shown."""
    from meshgate_deploy.control import ask_once

    folder = project.resolve() if project else find_project(Path.cwd())
    answer = ask_once(open_state(folder).control, {"op": "identity", "of": wanted})
    certificates = answer["certificates"]
    if output is not Output.table:
        show(certificates, output, columns=[], whole=answer)
        return
    show([*_lines(answer), *(line for one in certificates for line in _lines(one))], output,
         columns=["field", "value"])  # fmt: skip


def _lines(values: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per field, so that a digest fits on a line."""
    return [
        {"field": name.replace("_", " "), "value": value}
        for name, value in values.items()
        if name != "certificates"
    ]
