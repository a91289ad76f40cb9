"""The command line. Data goes to stdout, everything else to stderr; imports are late, so it starts fast."""

import json
import os
import signal
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from meshgate_deploy.errors import EXIT_FAILURE, EXIT_INTEGRITY, EXIT_NOT_FOUND, UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
runtime_app = typer.Typer(no_args_is_help=True, help="The Dapr and OPA binaries.")
policy_app = typer.Typer(no_args_is_help=True, help="Check and test the project's policies.")
audit_app = typer.Typer(no_args_is_help=True, help="Read and verify the audit log.")
app.add_typer(runtime_app, name="runtime")
app.add_typer(policy_app, name="policy")
app.add_typer(audit_app, name="audit")

TAIL_SECONDS = 0.5


class Format(StrEnum):
    """How rows are printed."""

    table = "table"
    json = "json"
    jsonl = "jsonl"
    yaml = "yaml"


Output = Annotated[Format, typer.Option("-o", "--output", help="table, json, jsonl or yaml.")]
Project = Annotated[Path, typer.Option("--project", "-C", help="The project's folder.")]


def main() -> None:
    """Runs the CLI; errors have three parts and a documented exit code."""
    try:
        app()
    except UserError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)


def say(message: str) -> None:
    """One line for the person."""
    print(message, file=sys.stderr, flush=True)


def show(rows: list[dict[str, Any]], output: Format) -> None:
    """Prints rows on stdout."""
    if output is Format.json:
        print(json.dumps(rows, indent=1))
    elif output is Format.jsonl:
        for row in rows:
            print(json.dumps(row), flush=True)
    elif output is Format.yaml:
        import yaml

        print(yaml.safe_dump(rows, sort_keys=False), end="")
    elif rows:
        from rich.console import Console
        from rich.table import Table

        table = Table(*rows[0].keys(), box=None, pad_edge=False)
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        Console().print(table)


@app.command()
def version() -> None:
    """Print meshgate's version."""
    from importlib.metadata import version as installed

    print(installed("meshgate"))


@app.command()
def up(project: Project = Path()) -> None:
    """Bring the mesh up and watch it; Ctrl-C takes it down."""
    from meshgate_deploy.operations import Operations

    began = time.monotonic()
    supervisor = _brought_up(project)
    operations = Operations(supervisor)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: operations.stop.set())
    say(f"up in {time.monotonic() - began:.1f} s; now: meshgate run -- python main.py")
    try:
        while not operations.stop.wait(0.2):
            supervisor.watch_once()
    finally:
        operations.server.close()
        supervisor.down()
        say("down")


@app.command()
def down(project: Project = Path()) -> None:
    """Take the mesh of this project down."""
    path = _control(project)
    _ask(path, {"op": "down"})
    while path.exists():
        time.sleep(0.05)


@app.command()
def ps(project: Project = Path(), output: Output = Format.table) -> None:
    """List the mesh's processes with their identities."""
    show(_ask(_control(project), {"op": "ps"})["rows"], output)


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def run(
    command: Annotated[list[str], typer.Argument(help="The program, after `--`.")],
    app_name: Annotated[str, typer.Option("--app", help="Which crew or program it is.")] = "",
    run_id: Annotated[str, typer.Option("--run-id", help="The run's id; a new one by default.")] = "",
    project: Project = Path(),
) -> None:
    """Run an unchanged program through the gateway; its exit status is ours, 125 for our own failure."""
    from meshgate_deploy.manifest import FILE_NAME, load

    manifest = load(project / FILE_NAME)
    runnable = [name for name, kind in manifest.apps().items() if kind != "toolhost"]
    if not app_name and len(runnable) != 1:
        raise UserError(
            "which app is this?", why=f"the manifest has {', '.join(runnable) or 'no crew or program'}",
            fix="add `--app NAME`", exit_code=2,
        )  # fmt: skip
    request = {"op": "run", "app": app_name or runnable[0], "argv": command, "run_id": run_id or None}
    if _control(project).exists():
        sys.exit(_ask(_control(project), request, (0, 1, 2))["status"])
    supervisor = _brought_up(project)
    try:
        managed = supervisor.run(request["app"], command, stdio=(0, 1, 2), run_id=run_id or None)
        signal.signal(signal.SIGINT, lambda *_: os.kill(managed.popen.pid, signal.SIGINT))
        status = managed.popen.wait()
    finally:
        supervisor.down()
    sys.exit(status)


@app.command()
def logs(
    name: Annotated[str, typer.Argument(help="A process of `meshgate ps`.")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Keep printing.")] = False,
    project: Project = Path(),
) -> None:
    """Print a process's log."""
    path = project / ".meshgate" / "logs" / f"{name}.log"
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.log")) if path.parent.is_dir() else []
        raise UserError(
            f"there is no log of '{name}'", why=f"logs exist of: {', '.join(known) or 'nothing'}",
            fix="use a name of `meshgate ps`", exit_code=EXIT_NOT_FOUND,
        )  # fmt: skip
    with path.open() as file:
        while True:
            if text := file.read():
                sys.stdout.write(text)
                sys.stdout.flush()
            elif not follow:
                return
            else:
                time.sleep(TAIL_SECONDS)


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Draws orders, amounts and the injection's place.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """See a crew of two agents work, and its forbidden calls refused."""
    from meshgate_deploy.demo import run_demo

    result = run_demo(seed=seed, say=say, quiet=as_json)
    if as_json:
        print(json.dumps(result))
    sys.exit(0 if result["status"] == "ok" else EXIT_FAILURE)


@runtime_app.command("install")
def runtime_install() -> None:
    """Find or build Dapr and OPA."""
    from meshgate_deploy import runtime

    try:
        runtime.find_or_install(progress=say)
    except runtime.RuntimeUnavailable as error:
        raise UserError(
            "a runtime binary is missing", why=str(error), fix="see above", exit_code=5
        ) from error
    show([dict(row) for row in runtime.show()], Format.table)


@runtime_app.command("show")
def runtime_show(output: Output = Format.table) -> None:
    """Say which binaries are used, and whence."""
    from meshgate_deploy import runtime

    show([dict(row) for row in runtime.show()], output)


@policy_app.command("check")
def policy_check(project: Project = Path(), output: Output = Format.table) -> None:
    """Compile the policies strictly and look for rules that open the door."""
    from dataclasses import asdict

    from meshgate_policies.check import check_policies

    problems = check_policies(_opa(), project / _manifest(project).policies)
    show([asdict(problem) for problem in problems], output)
    if problems:
        sys.exit(EXIT_FAILURE)
    say("the policies are good")


@policy_app.command("test")
def policy_test(project: Project = Path()) -> None:
    """Run the policies' own tests."""
    from meshgate_policies.check import run_policy_tests

    passed, report = run_policy_tests(_opa(), project / _manifest(project).policies)
    say(report.rstrip())
    if not passed:
        sys.exit(EXIT_FAILURE)


@audit_app.command("query")
def audit_query(
    caller: str = "", tool: str = "", call_id: str = "", kind: str = "", limit: int = 1000,
    project: Project = Path(), output: Output = Format.jsonl,
) -> None:  # fmt: skip
    """Print audit records."""
    query = {"caller": caller, "tool": tool, "call_id": call_id, "kind": kind, "limit": limit}
    show(_brief(_ask(_control(project), {"op": "records", "query": query})["records"], output), output)


@audit_app.command("tail")
def audit_tail(project: Project = Path()) -> None:
    """Print records as they come."""
    after = 0
    while True:
        answer = _ask(_control(project), {"op": "records", "query": {"after_seq": after}})
        show(answer["records"], Format.jsonl)
        after = answer["last_seq"]
        time.sleep(TAIL_SECONDS)


@audit_app.command("verify")
def audit_verify(project: Project = Path()) -> None:
    """Walk the chain of records; status 6 when it is broken."""
    answer = _ask(_control(project), {"op": "verify"})
    say(f"{answer['records']} records, {'good' if answer['verified'] else answer['problem']}")
    if not answer["verified"]:
        sys.exit(EXIT_INTEGRITY)


def _brief(records: list[dict[str, Any]], output: Format) -> list[dict[str, Any]]:
    if output is not Format.table:
        return records
    names = ("seq", "time", "kind", "caller", "tool", "verdict", "state", "reasons")
    return [{name: row.get(name, "") for name in names} for row in records]


def _manifest(project: Path) -> Any:
    from meshgate_deploy.manifest import FILE_NAME, load

    return load(project / FILE_NAME)


def _control(project: Path) -> Path:
    from meshgate_deploy.supervisor import places_of

    return places_of(project.resolve()).control


def _ask(path: Path, request: dict[str, Any], fds: tuple[int, ...] = ()) -> dict[str, Any]:
    from meshgate_deploy.control import ask

    return ask(path, request, fds)


def _opa() -> tuple[str, ...]:
    from meshgate_deploy import runtime

    return runtime.find_or_install(progress=say).opa


def _brought_up(project: Path) -> Any:
    from meshgate_deploy import runtime
    from meshgate_deploy.supervisor import Supervisor, bring_up

    manifest = _manifest(project)
    binaries = runtime.find_or_install(progress=say)
    return bring_up(lambda: Supervisor(project=project, manifest=manifest, binaries=binaries, say=say))
