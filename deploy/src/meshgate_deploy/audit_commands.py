"""`meshgate audit tail|query`: records through the supervisor, as the operator."""

import base64
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from meshgate_deploy.cli_output import Output, note, show
from meshgate_deploy.control import ask_once
from meshgate_deploy.state import State

PAGE = 500
POLL_SECONDS = 0.5
COLUMNS = ("seq", "time", "kind", "caller", "tool", "result", "reasons", "call_id")


def query(state: State, *, filters: Mapping[str, str], limit: int, output: Output) -> None:
    """Prints the first records that match, and says so when there are more."""
    found = _records(state, filters, 0)
    rows = list(itertools.islice(found, limit))
    if not rows and output is Output.table:
        note("no record matches")
        return
    _show(rows, output)
    if next(found, None) is not None:
        note(f"these are the first {limit}, and there are more; next: --limit {10 * limit}, or a filter")


def tail(state: State, *, lines: int, follow: bool, output: Output) -> None:
    """Prints the newest records, then those that come."""
    last = int(ask_once(state.control, {"op": "admin", "method": "Status"})["records"])
    after = max(0, last - lines)
    rows = list(_records(state, {}, after))
    _show(rows[-lines:], output)
    while follow:
        after = max([after, *(int(row["seq"]) for row in rows)])
        time.sleep(POLL_SECONDS)
        rows = list(_records(state, {}, after))
        if rows:
            _show(rows, Output.jsonl if output is Output.table else output)


def _records(state: State, filters: Mapping[str, str], after: int) -> Iterator[dict[str, Any]]:
    while True:
        request = {**filters, "after_seq": after, "limit": PAGE}
        page = ask_once(state.control, {"op": "admin", "method": "QueryRecords", "request": request})
        for encoded in page["records_json"]:
            yield json.loads(base64.b64decode(encoded))
        if not page["records_json"]:  # a page may hold less than was asked for: an answer has a size
            return
        after = int(page["last_seq"])


def _show(rows: list[dict[str, Any]], output: Output) -> None:
    shown = [{**row, **_summary(row)} for row in rows] if output is Output.table else rows
    show(shown, output, columns=COLUMNS)


def _summary(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a table shows of a record; the record itself is told by `-o json`."""
    if row.get("kind") == "decision":
        result = "allow" if row.get("allow") else "deny"
    elif row.get("kind") == "take":
        result = f"take {row.get('take')}"
    else:
        result = str(row.get("state") or row.get("event") or row.get("reason") or "")
    return {"result": result, "reasons": ", ".join(row.get("reasons") or [])}
