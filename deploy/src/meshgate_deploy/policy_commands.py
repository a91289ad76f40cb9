"""`meshgate policy check|test|activate` on a project's folder."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from meshgate_deploy.cli_output import OUTPUT, Output, note, show
from meshgate_deploy.errors import DependencyUnavailable, MeshError, UsageError

Say = Callable[[str], None]
Project = Annotated[
    Path | None, typer.Option("--project", help="The project's folder; default: found upward from here.")
]
OutputOption = Annotated[Output, OUTPUT]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("check")(policy_check)
    app.command("test")(policy_test)
    app.command("activate")(policy_activate)


def policy_check(*, project: Project = None, output: OutputOption = Output.table) -> None:
    """Compile strictly and look for rules that open the door; tell what to write instead."""
    problems = check(_folder(project), note)
    _show_problems(problems, output)
    if problems:
        raise typer.Exit(UsageError.exit_code)
    note("the policies have no problems; next: meshgate policy test")


def policy_test(*, project: Project = None, output: OutputOption = Output.table) -> None:
    """Run the Rego tests of the project, and those of the library beside it."""
    found = test(_folder(project), note)
    rows = [row for row in found["tests"] if not row["ours"] or not row["passed"]]
    if output is Output.table:
        for row in rows:
            place = "" if row["passed"] else f"  {_near(row['file'])}:{row['line']}"
            typer.echo(f"{'ok' if row['passed'] else 'RED':4}{row['name'].removeprefix('data.')}{place}")
    else:
        show(rows, output, columns=())
    for problem in found["problems"]:
        note(_text(problem))
    own = sum(not row["ours"] for row in found["tests"])
    red = len(found["problems"])
    note(f"{own} tests of the project, {len(found['tests']) - own} of the library: {red or 'none'} red")
    if not own and not red:
        note("no rule of the project is tested; write some into policies/<app>_test.rego")
    if red or not own:
        raise typer.Exit(MeshError.exit_code)


def policy_activate(
    *,
    project: Project = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, test and rehearse; change nothing.")
    ] = False,
    output: OutputOption = Output.table,
) -> None:
    """Put the project's policies in force in the running mesh, without a restart."""
    result = activate(_folder(project), dry_run=dry_run, say=note)
    rows = [{"change": change, **pair} for change in ("appear", "vanish") for pair in result[change]]
    if output is Output.table and not rows:
        note("the listing of tools stays the same")
    else:
        show(rows, output, columns=["change", "app", "tool"], whole=result)
    old, new = result["revision"]["old"], result["revision"]["new"]
    note(
        {
            "unchanged": f"unchanged: policy {old} is in force",
            "would_activate": f"dry run: policy {new} would replace {old}; nothing was changed",
            "activated": f"activated: policy {new} replaced {old}",
        }[str(result["status"])]
    )


def check(project: Path, say: Say) -> list[dict[str, Any]]:
    """Every problem of the project's policies.

    Raises:
        DependencyUnavailable: OPA is not there.
    """
    from dataclasses import asdict

    from meshgate_policies import check as policy_check
    from meshgate_policies.errors import PolicyUnavailable
    from meshgate_policies.lint import Known

    from meshgate_deploy.manifest import load
    from meshgate_deploy.state import MANIFEST

    manifest = load(project / MANIFEST)
    folder = _policies(project, manifest.policies)
    try:
        known = Known(apps=tuple(manifest.runners), agents={one.app for one in manifest.isolated})
        problems = policy_check.check_policies(_opa(say), folder, known=known)
        return [asdict(problem) for problem in problems]
    except PolicyUnavailable as error:
        raise DependencyUnavailable("OPA did not check the policies", why=str(error)) from error


def test(project: Path, say: Say) -> dict[str, list[dict[str, Any]]]:
    """All Rego tests as `tests`, and what is red as `problems`.

    Raises:
        DependencyUnavailable: OPA is not there.
    """
    from dataclasses import asdict

    from meshgate_policies.errors import PolicyUnavailable
    from meshgate_policies.rego_tests import run_tests

    from meshgate_deploy.manifest import load
    from meshgate_deploy.policy_plane import policy_data
    from meshgate_deploy.state import MANIFEST

    manifest = load(project / MANIFEST)
    folder = _policies(project, manifest.policies)
    try:
        report = run_tests(_opa(say), folder, data=policy_data(manifest))
    except PolicyUnavailable as error:
        raise DependencyUnavailable("OPA did not test the policies", why=str(error)) from error
    return {
        "tests": [asdict(result) for result in report.results],
        "problems": [asdict(problem) for problem in report.red],
    }


def activate(project: Path, *, dry_run: bool, say: Say) -> dict[str, Any]:
    """Asks the mesh's supervisor; see `activation`.

    Raises:
        MeshError: nothing was changed, or the message says what was.
    """
    from meshgate_deploy.control import ask
    from meshgate_deploy.state import open_state

    for answer in ask(open_state(project).control, {"op": "activate", "dry_run": dry_run}):
        if "result" in answer:
            return dict(answer["result"])
        say(str(answer["note"]))
    raise DependencyUnavailable("the supervisor gave no answer", next_step="meshgate ps")


def _folder(given: Path | None) -> Path:
    from meshgate_deploy.state import find_project

    return given.resolve() if given else find_project(Path.cwd())


def _policies(project: Path, name: str) -> Path:
    folder = project / name
    if not folder.is_dir():
        raise UsageError(
            f"no folder {folder}", why="meshgate.yaml names it as `policies`", next_step="meshgate scan"
        )
    return folder


def _opa(say: Say) -> tuple[str, ...]:
    from meshgate_deploy import runtime

    return runtime.find_or_install(progress=say).opa


def _show_problems(problems: Iterable[Mapping[str, Any]], output: Output) -> None:
    if output is not Output.table:
        show(list(problems), output, columns=())
        return
    for problem in problems:
        typer.echo(_text(problem))


def _text(problem: Mapping[str, Any]) -> str:
    place = f"{_near(problem['file'])}:{problem['line']}: " if problem["file"] else ""
    message = str(problem["message"]).replace("\n", "\n  ")
    return f"{place}{message}\n  write instead: {problem['fix'].removeprefix('write: ')}"


def _near(path: str) -> str:
    """Relative to where the user stands, if it lies below."""
    here = Path(path)
    return os.path.relpath(here) if here.is_absolute() and here.is_relative_to(Path.cwd()) else path
