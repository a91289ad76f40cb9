"""`meshgate runs`: the runs of a mesh, their steps, and an operator's word about them."""

import base64
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from meshgate_deploy import given
from meshgate_deploy.cli_output import OUTPUT, Output, note, show
from meshgate_deploy.errors import MeshError, NotFound, UsageError
from meshgate_deploy.state import State, find_project, open_state

app = typer.Typer(no_args_is_help=True, help="See, hold up and resolve runs.")

COLUMNS = ("run_id", "app", "state", "attempt", "steps", "from", "created", "detail")
MEMORY_STEPS = ("recall", "extract", "save")
STEPS = ("nr", "attempt", "kind", "what", "state", "decision_id", "ms", "input", "output")
POLL_SECONDS = 0.5
ENDED = ("completed", "failed", "cancelled")
SHOWN_CHARACTERS = 60

Project = Annotated[Path | None, typer.Option("--project", help="The project's folder.")]
RunId = Annotated[str, typer.Argument(metavar="RUN")]
OutputOption = Annotated[Output, OUTPUT]


@app.command()
def start(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A crew or program of the manifest.")],
    *,
    input_: Annotated[
        str | None,
        typer.Option("--input", help="One JSON value, or @FILE; for a crew its inputs, an object."),
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option("--run-id", callback=given.run_id, help="The same id and input again is the same run."),
    ] = None,
    project: Project = None,
) -> None:
    """Start a run of what the manifest names. The app's worker plays it; its output goes to the app's log."""
    from meshgate_agents.launcher.launch import uuid7

    data = b""
    if input_ is not None:
        data = given.value(input_, "--input", limit_bytes=given.MAX_INPUT_BYTES)
        given.check_json(data, "--input")
    request = {"app": name, "run_id": run_id or uuid7(), "input_json": base64.b64encode(data).decode()}
    run = _plain(_ask(_state(project), "StartRun", request)["run"])
    typer.echo(run["run_id"])
    note(f"{run['state']}; next: meshgate runs watch {run['run_id']}, or meshgate logs -f {name}")


@app.command("list")
def list_runs(
    *,
    project: Project = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    output: OutputOption = Output.table,
) -> None:
    """List runs, the newest first."""
    rows = _ask(_state(project), "ListRuns", {"limit": limit})["runs"]
    show([_plain(row) for row in rows], output, columns=COLUMNS)


@app.command("show")
def show_run(
    run_id: RunId,
    *,
    steps: Annotated[bool, typer.Option("--steps", help="Every step with input and output.")] = False,
    project: Project = None,
    output: OutputOption = Output.table,
) -> None:
    """Show one run, with --steps all that it did."""
    found = _ask(_state(project), "ShowRun", {"run_id": run_id, "without_steps": not steps})
    run = {
        **_plain(found["run"]),
        "input": _text(found["input_json"]),
        "traceback": _text(found["traceback"]),
        "result": _text(found["result"]),
    }
    rows = [_step(number, row) for number, row in enumerate(found["steps"], start=1)]
    if output is not Output.table:
        show(rows if steps else [run], output, columns=(), whole={**run, "steps": rows} if steps else run)
        return
    show([run], output, columns=COLUMNS)
    if run["result"]:
        typer.echo("\n" + run["result"])
    if run["traceback"]:
        typer.echo("\n" + run["traceback"].rstrip())
    if steps:
        typer.echo()
        show([{**row, **_short(row), **_marked(row)} for row in rows], output, columns=STEPS)
        if found["cut"]:
            note("more steps than fit into one answer; the first are shown")


@app.command()
def watch(run_id: RunId, *, project: Project = None) -> None:
    """Follow a run until it ends; its states, one line each."""
    state, last = _state(project), ""
    while True:
        run = _row(state, run_id)
        line = f"{run['state']} (attempt {run['attempt']}, {run['steps']} steps) {run['detail']}".rstrip()
        if line != last:
            typer.echo(line)
            last = line
        if run["state"] in ENDED:
            raise typer.Exit(0 if run["state"] == "completed" else 1)
        time.sleep(POLL_SECONDS)


@app.command()
def replay(run_id: RunId, *, project: Project = None) -> None:
    """Run the program again on nothing but the run's journal: equal, or the first difference.

    No model is asked and no tool called. Status 0 when it is equal, 1 when not, 125 for a failure of ours.
    It is replayed in its own folder, and prints here.
    """
    from meshgate_deploy.run_client import run_program

    folder = project.resolve() if project else find_project(Path.cwd())
    app, command = started_as(
        run_id, _ask(open_state(folder), "ShowRun", {"run_id": run_id, "without_steps": True})
    )
    status = run_program(
        project=folder, app=app, run_id=run_id, command=command, detach=False, say=note, replay=True,
        cwd=None if command else folder,
    )  # fmt: skip
    raise typer.Exit(status)


def started_as(run_id: str, shown: dict[str, Any]) -> tuple[str, list[str]]:
    """The app and the command of a run, from what the gateway shows of it; no command for the app's own.

    Raises:
        MeshError: it was purged.
        NotFound: it does not say.
    """
    if shown["run"]["purged"]:
        raise MeshError(
            f"the clear text of {run_id} was purged",
            why=f"at {shown['run']['purged']}: nobody knows any more what it was given, or what it was told",
            next_step=f"meshgate runs show {run_id}",
        )
    order = json.loads(_text(shown["input_json"]) or "{}")
    if "app" not in order or not isinstance(order.get("command", []), list):
        raise NotFound(f"{run_id} does not say how it was started", next_step=f"meshgate runs show {run_id}")
    return str(order["app"]), [str(word) for word in order.get("command", [])]


@app.command()
def pause(run_id: RunId, *, project: Project = None) -> None:
    """End the attempt after its running step; the run waits until it is resumed."""
    _control(project, run_id, "pause")


@app.command()
def resume(run_id: RunId, *, project: Project = None) -> None:
    """Let a paused run go on."""
    _control(project, run_id, "resume")


@app.command()
def cancel(run_id: RunId, *, project: Project = None) -> None:
    """End a run for good; its journal stays."""
    _control(project, run_id, "cancel")


@app.command()
def resolve(
    name: Annotated[str, typer.Argument(metavar="CALL|RUN")],
    *,
    as_: Annotated[
        str, typer.Option("--as", help="A call: done or failed. A diverged run: continue or fail.")
    ],
    result: Annotated[
        str | None,
        typer.Option(
            "--result", help="What the call gave, or why it failed: text, or @FILE; JSON with --json."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The result is one JSON value.")] = False,
    project: Project = None,
) -> None:
    """Say how an unknown call ended, or what becomes of a run that does not repeat itself."""
    if as_ in ("continue", "fail"):
        _control(project, name, as_)
        return
    if as_ not in ("done", "failed"):
        raise UsageError(f"--as {as_!r}", next_step="--as done | failed (a call), continue | fail (a run)")
    if as_ == "done" and result is None:
        raise UsageError(
            "what did the call give?",
            why="the next attempt tells it to the program as the tool's result",
            next_step="--result TEXT | @FILE, or --result '' where it gave nothing",
        )
    data = given.value(result or "", "--result", limit_bytes=given.MAX_RESULT_BYTES)
    if as_json:
        given.check_json(data, "--result")
    request = {
        "call_id": name, "state": as_, "result": base64.b64encode(data).decode(),
        "kind": "RESULT_KIND_JSON" if as_json else "RESULT_KIND_TEXT",
    }  # fmt: skip
    answer = _ask(_state(project), "ResolveCall", request)
    note(f"{name}: {answer['state']}")


def _control(project: Path | None, run_id: str, action: str) -> None:
    state = _state(project)
    before = _row(state, run_id)
    try:
        run = _plain(_ask(state, "ControlRun", {"run_id": run_id, "action": action})["run"])
    except MeshError as error:
        if error.exit_code != MeshError.exit_code:
            raise
        raise MeshError(
            f"{run_id} cannot be told to {action}",
            why=f"it is {before['state']}" + (f": {before['detail']}" if before["detail"] else ""),
            next_step=_word(before),
        ) from error
    note(f"{run_id}: {run['state']}")


def _word(run: dict[str, Any]) -> str:
    """The command that a run waits for; to look at it where it waits for none."""
    what, _, call = str(run["detail"]).partition(" ")
    if run["state"] != "waiting":
        return f"meshgate runs show {run['run_id']}"
    if what == "unknown" and call:
        return f"meshgate runs resolve {call} --as done|failed"
    return f"meshgate runs resolve {run['run_id']} --as continue|fail"


def _row(state: State, run_id: str) -> dict[str, Any]:
    """The run without its clear text, which would be on record each time."""
    return _plain(_ask(state, "ShowRun", {"run_id": run_id, "row_only": True})["run"])


def _state(project: Path | None) -> State:
    return open_state(project.resolve() if project else find_project(Path.cwd()))


def _ask(state: State, method: str, request: dict[str, Any]) -> dict[str, Any]:
    from meshgate_deploy.control import ask_once

    return ask_once(state.control, {"op": "admin", "method": method, "request": request})


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Whole numbers travel as text in protobuf's JSON."""
    came = f"{row['origin']} of {row['origin_run']}" if row["origin_run"] else ""
    if row["origin_run"] and row["origin"] == "fork":
        came += f", step {row['origin_step']}"
    if row["parent_run"]:
        came = f"task of {row['parent_run']}"
    detail = f"purged {row['purged']}" if row["purged"] else row["detail"]
    return {
        **row, "attempt": int(row["attempt"]), "steps": int(row["steps"]), "from": came, "detail": detail,
    }  # fmt: skip


def _step(number: int, row: dict[str, Any]) -> dict[str, Any]:
    kind = _kind(row)
    return {
        "nr": number, "attempt": int(row["attempt"]), "kind": kind, "what": row["tool"] or kind,
        "state": row["state"], "copied": row["copied"], "ms": int(row["milliseconds"]),
        "call_id": row["call_id"],
        "decision_id": row["decision_id"], "step_key": row["step"]["key"], "created": row["created"],
        "input": _text(row["input"]), "output": _text(row["output"]),
    }  # fmt: skip


def _kind(row: dict[str, Any]) -> str:
    """Of a step; what a program did with CrewAI's memory lies in the journal as a model's reply does."""
    kind = str(row["step"]["kind"])
    try:
        asked = json.loads(_text(row["input"])) if kind == "model" else None
    except ValueError:
        return kind
    memory = asked.get("memory") if isinstance(asked, dict) else None
    return memory if memory in MEMORY_STEPS else kind


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode("utf-8", "replace")


def _short(row: dict[str, Any]) -> dict[str, str]:
    return {name: _one_line(_essence(name, row)) for name in ("input", "output")}


def _essence(name: str, row: dict[str, Any]) -> str:
    """Of a model step the newest message and the reply itself; of a call what it is."""
    if row["kind"] != "model":
        return str(row[name])
    try:
        value = json.loads(row[name])
        if name == "input":
            return (
                str(value["messages"][-1].get("content") or value["messages"][-1])
                if value["messages"]
                else ""
            )
        reply = value["reply"]
        return str(reply["value"]) if "value" in reply else "; ".join(map(_called, reply["items"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return str(row[name])


def _called(item: dict[str, Any]) -> str:
    """A tool call of a model's reply: its name and arguments."""
    call = item.get("value", item)
    function = call.get("function") or call.get("function_call") or call
    arguments = function.get("arguments", function.get("input", function.get("args", "")))
    return f"calls {function.get('name', '?')} {arguments}"


def _marked(row: dict[str, Any]) -> dict[str, Any]:
    """A step that another run made is no attempt's of this one."""
    return {"attempt": "-", "state": f"{row['state']} (copied)"} if row["copied"] else {}


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
