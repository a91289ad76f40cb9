"""`meshgate runs` and `meshgate audit query` over a gateway that answers as told."""

import base64
import json

import pytest
from meshgate_deploy import audit_commands, run_commands
from meshgate_deploy.cli_output import Output
from meshgate_deploy.errors import MeshError
from meshgate_deploy.state import prepare_state


@pytest.mark.parametrize(
    ("state", "detail", "following"),
    [
        ("waiting", "unknown c12", "meshgate runs resolve c12 --as done|failed"),
        ("waiting", "diverged: step 3", "meshgate runs resolve r --as continue|fail"),
        ("completed", "exit status 0", "meshgate runs show r"),
    ],
)
@pytest.mark.parametrize("action", [run_commands.pause, run_commands.resume])
def test_a_word_that_does_not_help_names_the_one_that_does(  # noqa: PLR0917 - fixtures, and a row of a table
    tmp_path, monkeypatch, action, state, detail, following
) -> None:
    """A run that waits is let go on by what it waits for, not by a resume."""
    (tmp_path / "meshgate.yaml").touch()
    row = {
        "run_id": "r", "state": state, "detail": detail, "origin": "", "origin_run": "", "purged": "",
        "parent_call": "", "parent_run": "",
        "attempt": "1", "steps": "2",
    }  # fmt: skip

    def ask(_path, order):
        if order["method"] == "ControlRun":
            raise MeshError("not now")
        return {"run": row}

    monkeypatch.setattr("meshgate_deploy.control.ask_once", ask)
    with pytest.raises(MeshError) as caught:
        action("r", project=tmp_path)
    assert (caught.value.why, caught.value.next_step) == (f"it is {state}: {detail}", following)


@pytest.mark.parametrize(
    ("changed", "came"),
    [
        ({}, ""),
        ({"origin": "fork", "origin_run": "r0", "origin_step": 3}, "fork of r0, step 3"),
        ({"origin": "rerun", "origin_run": "r0"}, "rerun of r0"),
        ({"origin": "fork", "parent_run": "r1", "parent_call": "c1"}, "task of r1"),
    ],
)
def test_a_row_says_where_a_run_came_from(tmp_path, monkeypatch, capsys, changed, came) -> None:
    """A branch of another run, or a task that another run gave; the JSON has the call, too."""
    row = {
        "run_id": "r", "app": "billing", "state": "running", "detail": "", "origin": "start",
        "origin_run": "", "origin_step": 0, "purged": "", "parent_call": "", "parent_run": "",
        "attempt": "1", "steps": "2",
        **changed,
    }  # fmt: skip
    monkeypatch.setattr("meshgate_deploy.control.ask_once", lambda _path, _order: {"runs": [row]})
    (tmp_path / "meshgate.yaml").touch()
    run_commands.list_runs(project=tmp_path, output=Output.jsonl)
    shown = json.loads(capsys.readouterr().out)
    assert (shown["from"], shown["parent_call"]) == (came, row["parent_call"])


@pytest.mark.parametrize(("limit", "more"), [(3, False), (2, True)])
def test_records_that_are_not_shown_are_told_of(tmp_path, monkeypatch, capfd, limit, more) -> None:
    """On stderr, with how to see them. A page that is short of what was asked for is not the last one."""

    def ask(_path, order):
        after = order["request"]["after_seq"]
        rows = [after + 1] if after < 3 else []
        told = [base64.b64encode(json.dumps({"seq": seq}).encode()).decode() for seq in rows]
        return {"records_json": told, "last_seq": str(max([after, *rows]))}

    monkeypatch.setattr(audit_commands, "ask_once", ask)
    audit_commands.query(prepare_state(tmp_path), filters={}, limit=limit, output=Output.jsonl)
    shown = capfd.readouterr()
    assert [json.loads(line)["seq"] for line in shown.out.splitlines()] == [1, 2, 3][:limit]
    assert ("there are more; next: --limit 20" in shown.err) is more
