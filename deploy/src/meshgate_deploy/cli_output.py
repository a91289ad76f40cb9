"""How the command line shows data (stdout) and messages (stderr)."""

import enum
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from meshgate_deploy.errors import MeshError


class Output(enum.StrEnum):
    """The forms of `-o`."""

    table = "table"
    json = "json"
    jsonl = "jsonl"
    yaml = "yaml"


OUTPUT = typer.Option("--output", "-o", help="Form of the data on stdout.")


def note(text: str) -> None:
    """One message line on stderr, in one write; a closed stderr is no reason to stop."""
    try:
        os.write(2, f"{text}\n".encode("utf-8", "replace"))
    except OSError:
        return


def fail(error: MeshError) -> None:
    """What happened, why, and the next command."""
    lines = [f"meshgate: {error.what}"]
    if error.why:
        lines += [f"  {line}" for line in error.why.splitlines()]
    if error.next_step:
        lines.append(f"  next: {error.next_step}")
    note("\n".join(lines))


def show(
    rows: Sequence[Mapping[str, Any]],
    output: Output,
    *,
    columns: Sequence[str],
    whole: Mapping[str, Any] | None = None,
    empty: str = "",
) -> None:
    """Prints rows as a table, JSON, JSON lines or YAML.

    Args:
        rows: the data.
        output: its form.
        columns: what a table shows of them.
        whole: replaces the rows in JSON and YAML.
        empty: the message in place of a table without rows.
    """
    if empty and not rows and output is Output.table:
        note(empty)
        return
    if output is Output.json:
        text = json.dumps(whole if whole is not None else list(rows), indent=2)
    elif output is Output.jsonl:
        text = "\n".join(json.dumps(dict(row)) for row in rows)
    elif output is Output.yaml:
        import yaml

        plain = dict(whole) if whole is not None else [dict(row) for row in rows]
        text = yaml.safe_dump(plain, sort_keys=False).rstrip()
    else:
        text = table(rows, columns)
    if text:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def duration(seconds: float) -> str:
    """A length of time for people: `42s`, `4m48s`, `3h05m`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows with a head, in columns as wide as they must be."""
    cells = [[name.upper() for name in columns]] + [
        [_cell(row.get(name)) for name in columns] for row in rows
    ]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | dict):
        return json.dumps(value)
    return str(value).replace("\n", " ")
