"""What `meshgate ps` shows: the apps with what they play and take, then the processes that serve them all."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from meshgate_deploy.cli_output import duration, table
from meshgate_deploy.memory import Families

COLUMNS = 100
SHOWN = ("name", "state", "pid", "restarts", "up", "memory", "spiffe_id")
LEFT_OUT_FIRST = ("up", "pid", "restarts")  # where a row is wider than a terminal; JSON has them
MIB = 1_048_576
SUPERVISOR = {"name": "supervisor", "spiffe_id": None, "restarts": 0, "up_seconds": None}

Row = Mapping[str, Any]


def measured(status: Row) -> dict[str, Any]:
    """The supervisor's answer, with memory for each process, program and app, and with what each app does."""
    families = Families()
    processes = [_measured(_kept(row, families), families) for row in status["processes"]]
    apps = [
        _app(app, [row for row in processes if row.get("app") == app["name"]], families)
        for app in status["apps"]
    ]
    of_apps = _pids(processes)
    servers = [{**row, "memory": families.row(_pids([row]), but=of_apps)} for row in status["fork_servers"]]
    everybody = [*of_apps, *_pids(servers)]
    state = "ready" if status["ready"] else "starting"
    memory = families.row([status["pid"]], but=everybody)
    supervisor = {"pid": status["pid"], "state": state, "memory": memory}
    return {
        **status, "processes": processes, "apps": apps, "fork_servers": servers, "supervisor": supervisor,
    }  # fmt: skip


def _kept(row: Row, families: Families) -> Row:
    """With the keeper of each program that was forked: it is between that and the fork server."""
    if "programs" not in row:
        return row
    programs = []
    for one in row["programs"]:
        above = families.parent(one["pid"])
        programs.append({**one, "keeper": above if above != row["pid"] else None})
    return {**row, "programs": programs}


def _measured(row: Row, families: Families) -> dict[str, Any]:
    shown = {**row, "memory": families.row(_pids([row]))}
    if "programs" in row:
        programs = [{**one, "memory": families.row([one["pid"]])} for one in row["programs"]]
        shown["programs"] = programs
    return shown


def _app(app: Row, rows: Sequence[Row], families: Families) -> dict[str, Any]:
    """An app that has no process now is `stopped`; of several, the state is of one that is not ready."""
    states = [row["state"] for row in rows if not _is_replay(row)]
    return {
        **app,
        "state": next((state for state in states if state != "ready"), states[0] if states else "stopped"),
        "restarts": sum(row["restarts"] for row in rows),
        "processes": [row["name"] for row in rows],
        "runs": [run for row in rows for run in row.get("runs", ())],
        "memory": families.row(_pids(rows)),
    }


def _pids(rows: Iterable[Row]) -> list[int]:
    """Of processes, of their programs, which need not descend from them, and of what keeps these."""
    return [
        pid
        for row in rows
        for one in (row, *row.get("programs", ()))
        for pid in (one["pid"], one.get("keeper"))
        if pid is not None
    ]


def text(status: Row) -> str:
    """Two tables, and below them what there is to say of a process."""
    others = [_line(process, "") for process in status["processes"] if not process.get("app")]
    others += [_line(server, "") for server in status["fork_servers"]]
    others.append(_line({**SUPERVISOR, **status["supervisor"]}, ""))
    said = [
        f"{row['name']}: {row['detail']}"
        for row in status["processes"]
        if row["detail"] and not _is_replay(row) and not row.get("runs")
    ]
    parts = (_fitting(_rows(status)), _fitting(others), "\n".join(said))
    return "\n\n".join(filter(None, parts))


def _fitting(rows: Sequence[Row]) -> str:
    columns = list(SHOWN)
    for column in LEFT_OUT_FIRST:
        if max(map(len, table(rows, columns).splitlines())) > COLUMNS:
            columns.remove(column)
    shown = rows if "restarts" in columns else [{**row, "state": _often(row)} for row in rows]
    return table(shown, columns)


def _rows(status: Row) -> list[dict[str, Any]]:
    """Apps first, an agent's below the crew that the manifest names first for it."""
    rows: list[dict[str, Any]] = []
    for app in _ordered(status["apps"]):
        for process in status["processes"]:
            if process.get("app") == app["name"]:
                depth = "  " if app["crews"] or _is_replay(process) else ""
                rows.append(_line(process, depth))
                rows += _playing(process, depth + "  ")
    return rows


def _ordered(apps: Sequence[Row]) -> list[Row]:
    agents = [app for app in apps if app["crews"]]
    found: list[Row] = []
    for app in apps:
        if not app["crews"]:
            found += [app, *(agent for agent in agents if agent["crews"][0] == app["name"])]
    return found


def _line(process: Row, depth: str) -> dict[str, Any]:
    name = "replay" if _is_replay(process) else process["name"]
    return {
        **process, "name": depth + name,
        "up": "" if process["up_seconds"] is None else duration(process["up_seconds"]),
        "memory": _size(process["memory"]),
    }  # fmt: skip


def _playing(process: Row, depth: str) -> list[dict[str, Any]]:
    """A line for each run, which between two attempts has no program, and for a program that stands ready."""
    programs = {one["run_id"]: one for one in process.get("programs", ())}
    lines = []
    for run in process.get("runs", ()):
        program = programs.get(run["run_id"], {})
        state = "waits" if run["attempt"] is None else f"attempt {run['attempt']}"
        lines.append(
            {
                "name": f"{depth}program" if program else f"{depth}no program", "state": state,
                "pid": program.get("pid"), "restarts": "", "up": "", "memory": _size(program.get("memory")),
                "spiffe_id": f"run {run['run_id']}",
            }
        )  # fmt: skip
    if standing := programs.get(None):
        lines.append(
            {
                "name": f"{depth}program", "state": "stands ready", "pid": standing["pid"], "restarts": "",
                "up": "", "memory": _size(standing["memory"]), "spiffe_id": "no run yet",
            }
        )  # fmt: skip
    return lines


def _often(row: Row) -> str:
    """The state, with how often the process was started again."""
    return f"{row['state']} ({row['restarts']}x)" if row["restarts"] else str(row["state"])


def _size(memory: Row | None) -> str | None:
    if memory is None:
        return None
    about = "" if memory["measure"] == "pss" else "~"  # what is shared is counted more than once
    return f"{about}{memory['bytes'] / MIB:.0f} MB"


def _is_replay(process: Row) -> bool:
    return str(process["name"]).startswith("replay ")  # no app's name has a space
