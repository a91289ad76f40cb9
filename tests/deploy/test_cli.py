"""The command line: exit codes, forms of output, the form of errors, a quick start."""

import json
import subprocess
import sys

import pytest
from meshgate_deploy import given
from meshgate_deploy.catalogue import catalogue
from meshgate_deploy.cli_output import Output, duration, show
from meshgate_deploy.errors import ManifestError, NotFound, UsageError
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.orders import choose_app
from meshgate_gateway import hosts, inputs

BASE = {"apiVersion": "meshgate/v1", "mesh": "m", "trustDomain": "m.example"}
TOOL = {"description": "d", "schema": {"type": "object"}, "definition_sha256": "ab", "identity": {}}


def _meshgate(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "meshgate_deploy.cli", *arguments],
        check=False,
        cwd=cwd,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["nonsense"], 2, "nonsense"),
        (["ps", "-o", "xml"], 2, "xml"),
        (["ps"], 4, "no meshgate.yaml here"),
        (["ps", "--project", "."], 5, "next: meshgate up"),
        (["audit", "tail", "--project", "."], 5, "the mesh is not up"),
        (["logs", "nobody", "--project", "."], 4, "no log of 'nobody'"),
        (["run", "--", "true"], 125, "no meshgate.yaml here"),
        (["run"], 125, "next: meshgate run --help"),
        (["run", "--nonsense", "--", "true"], 125, "--nonsense"),
        (["id", "show", "desk", "--project", "."], 5, "next: meshgate up"),
        (["psx"], 2, "Did you mean 'ps'?\n  next: meshgate --help"),
        (["ps", "-o", "xml"], 2, "'xml' is not one of 'table', 'json', 'jsonl', 'yaml'\n  next: meshgate ps"),
        (["audit", "query", "--kind", "x"], 2, "'decision', 'take', 'outcome'"),
        (["down", "--project", "."], 0, "nothing to take down"),
        (["runs", "start", "a", "--run-id", ""], 2, "'' is no run id: 1 to 64 of"),
        (["runs", "rerun", "r", "--run-id", "../r"], 2, "'../r' is no run id"),
        (["run", "--run-id", "", "--", "true"], 125, "'' is no run id"),
        (["run", "--project", ".", "--", "caf\udce9"], 125, "is no UTF-8"),
        (["runs", "start", "a", "--input", ""], 2, "--input is no JSON"),
        (["runs", "start", "a", "--input", "@empty"], 2, "the file of --input is empty"),
        (
            ["runs", "start", "a", "--input", "@large"],
            2,
            "3145729 bytes\n  the gateway takes 1048576\n  next: ",
        ),
        (["runs", "resolve", "c", "--as", "failed", "--result", "@large"], 2, "the gateway takes 3145728"),
        (["runs", "resolve", "c", "--as", "done", "--result", "@empty"], 2, "the file of --result is empty"),
        (["runs", "resolve", "c", "--as", "done"], 2, "what did the call give?"),
    ],
)
def test_exit_codes_and_errors(tmp_path, arguments, status, said):
    """Messages go to stderr, nothing to stdout, and the code tells the kind."""
    (tmp_path / "empty").touch()
    (tmp_path / "large").write_bytes(b"1" * (given.MAX_RESULT_BYTES + 1))
    done = _meshgate(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr


def test_what_is_said_to_be_the_gateways_limit_is_its_own():
    """The command line imports no gateway, and has the numbers a second time."""
    assert (given.MAX_INPUT_BYTES, given.MAX_RESULT_BYTES) == (inputs.MAX_INPUT_BYTES, hosts.MAX_RESULT_BYTES)


def test_a_bare_group_shows_its_help(tmp_path):
    """Once, with the status of a command that is incomplete."""
    done = _meshgate("audit", cwd=tmp_path)
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count("Usage: meshgate audit") == 1


def test_scan_speaks_every_form(tmp_path):
    """An unknown form is refused before any work, and no work makes no output."""
    assert _meshgate("scan", "-o", "xml", cwd=tmp_path).returncode == 2
    done = _meshgate("scan", "-o", "yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, "")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0s"), (59.9, "59s"), (60, "1m00s"), (288.7, "4m48s"), (11_100, "3h05m")]
)
def test_durations_are_for_people(seconds, shown):
    """Two units at most."""
    assert duration(seconds) == shown


def test_an_empty_table_is_a_message(capfd):
    """Data forms stay data: an empty list is printed as one."""
    show([], Output.table, columns=["a"], empty="nothing there")
    assert capfd.readouterr() == ("", "nothing there\n")
    show([], Output.json, columns=["a"], empty="nothing there")
    assert capfd.readouterr() == ("[]\n", "")


def test_a_bad_manifest_is_a_usage_error_with_its_line(tmp_path):
    """`up` stops before anything is started."""
    (tmp_path / "meshgate.yaml").write_text(
        "apiVersion: meshgate/v1\nmesh: m\ntrustDomain: m.example\ncrew: {}\n"
    )
    done = _meshgate("up", cwd=tmp_path)
    assert done.returncode == 2
    assert "meshgate.yaml:4: unknown key 'crew'" in done.stderr
    assert "write instead: crews" in done.stderr
    assert not (tmp_path / ".meshgate").exists()


def test_version_speaks_json(tmp_path):
    """Data on stdout in the asked form."""
    done = _meshgate("version", "-o", "json", cwd=tmp_path)
    assert {row["name"] for row in json.loads(done.stdout)} >= {"meshgate", "dapr"}


def test_help_loads_nothing_heavy(tmp_path):
    """The start stays quick because these are imported only where used."""
    code = (
        "import sys; import meshgate_deploy.cli; "
        "heavy = ('grpc', 'dapr', 'crewai', 'pydantic', 'cryptography', 'yaml'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout == "[]\n"


def _manifest(**more) -> Manifest:
    return Manifest.model_validate({**BASE, **more})


def test_the_app_of_a_run_is_clear_or_asked_for():
    """Named, the program with just this command, or the only app; else the command is refused."""
    manifest = _manifest(crews={"desk": {"crew": "a.b:c"}}, programs={"nightly": {"run": ["python", "n.py"]}})
    assert choose_app(manifest, "nightly", ["x"]) == "nightly"
    assert choose_app(manifest, None, ["python", "n.py"]) == "nightly"
    with pytest.raises(UsageError) as caught:
        choose_app(manifest, None, ["python", "nightly.py"])
    assert caught.value.why == "it could be desk, nightly"
    assert choose_app(_manifest(crews={"desk": {"crew": "a.b:c"}}), None, ["python", "main.py"]) == "desk"
    twins = {name: {"run": ["python", "n.py"]} for name in ("one", "other")}
    with pytest.raises(UsageError) as caught:
        choose_app(_manifest(programs={**twins, "third": {"run": ["x"]}}), None, ["python", "n.py"])
    assert caught.value.why == "it could be one, other"
    with pytest.raises(NotFound):
        choose_app(manifest, "gateway", ["x"])
    two = _manifest(crews={"a": {"crew": "a.b:c"}, "b": {"crew": "a.b:c"}})
    with pytest.raises(UsageError):
        choose_app(two, None, ["x"])


def test_the_catalogue_takes_the_careful_defaults():
    """A tool without a rule is irreversible, not idempotent, and not repeated."""
    manifest = _manifest(
        toolhosts={"orders": {"tools": ["a.b:c"]}}, tools={"orders.look": {"effect": "read"}}
    )
    made = catalogue(manifest, {"orders.pay": TOOL, "orders.look": TOOL})["tools"]
    assert {key: made["orders.pay"][key] for key in ("effect", "idempotent", "repeat", "host")} == {
        "effect": "irreversible", "idempotent": False, "repeat": "same", "host": "orders",
    }  # fmt: skip
    assert made["orders.look"]["repeat"] == "allow"


def test_a_rule_for_a_tool_that_no_host_has_is_a_problem():
    """A typo in a tool id must not leave the real tool with other rules than meant."""
    manifest = _manifest(
        toolhosts={"orders": {"tools": ["a.b:c"]}}, tools={"orders.pays": {"effect": "read"}}
    )
    with pytest.raises(ManifestError) as caught:
        catalogue(manifest, {"orders.pay": TOOL})
    assert caught.value.problems[0].fix == "orders.pay"


POLICY = 'package mesh.agents.night\n\nallow contains "box.look" if input.call.args.a <= 5\n'


@pytest.fixture
def project(tmp_path):
    """A project whose policies are sound but untested."""
    lines = ["apiVersion: meshgate/v1", "mesh: m", "trustDomain: m.example"]
    (tmp_path / "meshgate.yaml").write_text(
        "\n".join([*lines, "programs: {night: {run: [python, night.py]}}", ""])
    )
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "night.rego").write_text(POLICY)
    return tmp_path


def _test_file(project, expected):
    (project / "policies" / "night_test.rego").write_text(
        "package mesh.tests.night\n\nimport data.meshgate\n\ntest_small if {\n"
        '\tdecision := meshgate.decision with input.caller.app as "night" with input.call as '
        '{"tool": "box.look", "kind": "tool", "args": {"a": 3}}\n'
        f"\tdecision.allow == {expected}\n}}\n"
    )


def test_policy_check_tells_place_and_remedy(project):
    """Sound: silence on stdout, status 0. Else file, line, what to write instead, and status 2."""
    done = _meshgate("policy", "check", cwd=project)
    assert (done.returncode, done.stdout) == (0, "")
    assert "no problems" in done.stderr
    (project / "policies" / "night.rego").write_text(POLICY.replace("agents.night", "agents.nigt"))
    done = _meshgate("policy", "check", cwd=project)
    assert done.returncode == 2
    assert done.stdout == (
        "policies/night.rego:1: no app of the manifest is called nigt\n  write instead: one of: night\n"
    )
    told = json.loads(_meshgate("policy", "check", "-o", "json", cwd=project).stdout)
    assert [(row["line"], row["fix"]) for row in told] == [(1, "one of: night")]


def test_policy_test_tells_what_was_false(project):
    """No tests: status 1 and a hint. Green: a line per test. Red: the line and the values, status 1."""
    done = _meshgate("policy", "test", cwd=project)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no rule of the project is tested" in done.stderr
    _test_file(project, "true")
    done = _meshgate("policy", "test", cwd=project)
    assert (done.returncode, done.stdout) == (0, "ok  mesh.tests.night.test_small\n")
    _test_file(project, "false")
    done = _meshgate("policy", "test", cwd=project)
    assert done.returncode == 1
    assert done.stdout == "RED mesh.tests.night.test_small  policies/night_test.rego:7\n"
    assert "policies/night_test.rego:7: data.mesh.tests.night.test_small is red" in done.stderr
    assert "decision.allow: true" in done.stderr


def test_policy_activate_needs_a_mesh(project):
    """Nothing to activate in: status 5 and the next command."""
    done = _meshgate("policy", "activate", cwd=project)
    assert (done.returncode, done.stdout) == (5, "")
    assert "next: meshgate up" in done.stderr


def test_a_project_without_policies_is_a_usage_error(project):
    """The folder that the manifest names is missing."""
    (project / "policies" / "night.rego").unlink()
    (project / "policies").rmdir()
    for command in ("check", "test"):
        done = _meshgate("policy", command, cwd=project)
        assert done.returncode == 2
        assert "meshgate.yaml names it" in done.stderr


def test_a_models_reply_is_shown_by_what_it_calls():
    """Steps in a table: the newest message, and the calls of a reply with their arguments."""
    import json

    from meshgate_deploy.run_commands import _short

    function = {"name": "refund", "arguments": '{"amount": 5}'}
    items = [{"class": "x:y", "value": {"id": "a", "function": function}}]
    reply = json.dumps({"reply": {"type": "tool_calls", "items": items}})
    shaped = json.dumps({"reply": {"type": "shaped_calls", "items": [{"id": "a", **function}]}})
    asked = json.dumps({"messages": [{"role": "user", "content": "pay\nit"}]})
    for output in (reply, shaped):
        shown = _short({"kind": "model", "input": asked, "output": output})
        assert shown == {"input": "pay it", "output": 'calls refund {"amount": 5}'}
    for item in (
        {"class": "x:Part", "value": {"function_call": {"name": "refund", "args": {"amount": 5}}}},
        {"id": "a", "name": "refund", "input": {"amount": 5}},
    ):
        output = json.dumps({"reply": {"type": "tool_calls", "items": [item]}})
        shown = _short({"kind": "model", "input": asked, "output": output})
        assert shown["output"] == "calls refund {'amount': 5}"


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ({"memory": "recall", "asked": {"args": ["who"]}}, "recall"),
        ({"memory": "save", "asked": ["paid"]}, "save"),
        ({"memory": "tool", "asked": []}, "model"),
        ({"model": "m", "messages": []}, "model"),
        (["memory"], "model"),
        ("no object", "model"),
    ],
)
def test_what_was_done_with_memory_is_shown_as_such(asked, kind):
    """It lies in the journal as a model's reply does; only known words count."""
    import base64

    from meshgate_deploy.run_commands import _kind

    row = {"step": {"kind": "model"}, "input": base64.b64encode(json.dumps(asked).encode()).decode()}
    assert _kind(row) == kind
    assert _kind({**row, "input": base64.b64encode(b"{cut").decode()}) == "model"
    assert _kind({**row, "step": {"kind": "tool"}}) == "tool"
