"""DurableRunner: in a launcher's child with a fake gateway, and what it refuses in a plain script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.fake_gateway import FakeGateway
from meshgate_agents import CannotRun
from meshgate_agents.runner import plan, reexecution
from meshgate_gateway.calls import RUN_STEPS

PROJECT = Path(__file__).parent / "project"
SCRIPT = str(PROJECT / "runner.py")
FAST = {"backoff_seconds": 0.05, "attempts": 2}
RESULT_KEY = next(key for key, kind in RUN_STEPS.items() if kind == "result")


def play(desk, shape, *, earlier=None, inputs=None, **env):
    """Runs one shape of the script; with `earlier` as the inner process of an outer one."""
    desk.env.update({name: str(value) for name, value in env.items()})
    if earlier is not None:
        folder = desk.tmp / "plan"
        folder.mkdir(exist_ok=True)
        plan.Plan(folder, tuple(earlier), json.dumps(inputs)).write()
        desk.env[plan.VARIABLE] = str(folder)
    return desk.run(sys.executable, SCRIPT, shape, **FAST)


def recorded(desk):
    """The result as the journal holds it."""
    return json.loads(desk.gateway.journal[RESULT_KEY].reply_json)


def events(desk):
    """What the inner process wrote down for the outer one."""
    lines = (desk.tmp / "plan" / plan.EVENTS).read_text().splitlines()
    return [(event["event"], event.get("what", "")) for event in map(json.loads, lines)]


def test_under_meshgate_run_it_kicks_off_and_returns(desk):
    """By hand under `meshgate run`: one process, CrewAI's own object, the lines after it run."""
    ended = play(desk, "one", DIE_AT_REPLY=1)
    assert ended.status == 0, ended.err
    assert "AFTER inner CrewOutput all paid 45" in ended.out
    assert len(desk.gateway.seen) == 2
    assert recorded(desk)["value"]["raw"] == "all paid"


def test_an_inner_process_ends_where_run_ends(desk):
    """Killed at its second reply: both attempts see the inputs of the plan, no line after `run` runs."""
    ended = play(desk, "one", earlier=[], inputs={"when": "fixed"}, DIE_AT_REPLY=1)
    assert ended.status == 0, ended.err
    assert ended.out.count("BEFORE inner") == 2
    assert "AFTER" not in ended.out
    assert [seen.tool for seen in desk.gateway.seen] == ["desk.refund", "desk.lookup"]
    assert recorded(desk)["type"] == "CrewOutput"
    assert recorded(desk)["value"]["token_usage"]["total_tokens"] == 45
    told = events(desk)
    assert told.count(("attempt_started", "")) == 2
    assert told.count(("step_replayed", "refund")) == told.count(("step_finished", "refund")) == 1
    assert told.count(("step_finished", "scripted")) == 3


def test_a_call_before_the_planned_one_is_answered_and_not_run(desk):
    """The script is played from its top: what an earlier run gave is handed out again."""
    first = {"result": {"type": "CrewOutput", "value": {"raw": "order 7", "tasks_output": []}}}
    ended = play(desk, "two", earlier=[first], inputs="what else?")
    assert ended.status == 0, ended.err
    assert "BETWEEN inner order 7" in ended.out
    assert [(seen.tool, seen.arguments["order"]) for seen in desk.gateway.seen] == [
        ("desk.refund", "order 7")
    ]
    assert recorded(desk)["type"] == "LiteAgentOutput"


@pytest.mark.parametrize("settings", [{"replay": True}, {}])
def test_a_run_of_a_later_call_is_played_again_as_that_call(desk, settings):
    """Without its outer process, as by a fork or a replay: calls before it are answered and run nothing."""
    first = {"result": {"type": "CrewOutput", "value": {"raw": "order 7", "tasks_output": []}}}
    play(desk, "two", earlier=[first], inputs="what else?")
    del desk.env[plan.VARIABLE]
    (desk.tmp / "plan" / plan.PLAN).unlink()
    steps, seen = dict(desk.gateway.journal), len(desk.gateway.seen)
    run_id = desk.gateway.runs[0]
    again = desk.run(sys.executable, SCRIPT, "two", **FAST, **settings, run_id=run_id)
    assert again.status == 0, again.err
    assert "BETWEEN inner order 7" in again.out
    assert "AFTER inner LiteAgentOutput and that" in again.out
    assert (desk.gateway.journal, len(desk.gateway.seen)) == (steps, seen)


def test_what_was_too_much_to_keep_is_said():
    """The call is kept all the same: nothing is played with another call's inputs."""
    large = plan.Given('"what else?"', ({"result": "x" * plan.MAX_GIVEN_BYTES},))
    assert large.text() == '"what else?"\n'
    with pytest.raises(CannotRun, match="too large to be kept"):
        plan.Given.parse(large.text())
    small = plan.Given('"what else?"', ({"result": "x"},))
    assert plan.Given.parse(small.text()) == small
    assert plan.Given.parse('"alone"') == plan.Given('"alone"')


def test_an_exception_ends_the_inner_process_past_the_scripts_own_handler(desk):
    """`except` around `run` is for the outer process; the inner one tells its launcher and ends."""
    ended = play(desk, "raising", earlier=[], inputs=None)
    assert ended.status == 1
    assert "CAUGHT" not in ended.out
    assert desk.gateway.finished[0][0] == "failed"
    assert "ValueError: the desk is closed" in desk.gateway.tracebacks[-1]


def test_a_result_that_cannot_travel_is_refused_by_name(desk):
    """Not text of it, not pickle: the run fails and says what to return instead."""
    ended = play(desk, "odd", earlier=[], inputs=None)
    assert ended.status == 1
    assert "a result of type builtins.object; return JSON" in desk.gateway.tracebacks[-1]
    assert RESULT_KEY not in desk.gateway.journal


def test_another_apps_name_is_refused_in_a_child(desk):
    """A process that is one app's child starts no run of another."""
    program = (
        "import desk_tools, meshgate_agents as m, types; m.DurableRunner(name='night', crew=desk_tools).run()"
    )
    ended = desk.python(program, **FAST)
    assert "runs as app 'desk', the runner is named 'night'" in ended.err
    assert "meshgate run --app night" in ended.err


def test_a_child_whose_tools_are_not_brokered_kicks_nothing_off(desk):
    """`python -I` loads nothing of ours: no crew is run beside the broker."""
    program = (
        "from meshgate_agents import DurableRunner\n"
        "class Crew:\n"
        "    tasks = ()\n"
        "    def kickoff(self, inputs): print('KICKED')\n"
        "DurableRunner(name='desk', crew=Crew()).run()\n"
    )
    ended = desk.run(sys.executable, "-I", "-c", program, **FAST)
    assert "its tools are not brokered" in ended.err
    assert "KICKED" not in ended.out


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["python", "main.py", "a"], ""),
        (["python", "-X", "dev", "-u", "-m", "desk.main", "-i"], ""),
        (["python", "-c", "pass"], ""),
        (["python", "-Wdefault", "main.py"], ""),
        (["python"], "no file"),
        (["python", "-"], "no file"),
        (["python", "-i", "main.py"], "python -i"),
        (["python", "-ui", "main.py"], "python -i"),
        (["python", "-I", "main.py"], "python -I"),
        (["python", "-X", "dev", "-S", "main.py"], "python -S"),
    ],
)
def test_the_command_that_is_started_once_more(words, refusal):
    """The interpreter's options and the program's words stay; what cannot be repeated is named."""
    if refusal:
        with pytest.raises(CannotRun, match=refusal):
            reexecution.command(words)
    else:
        assert reexecution.command(words) == [sys.executable, *words[1:]]


@pytest.mark.parametrize(
    ("files", "program", "path", "said"),
    [
        ({}, "", None, "no meshgate.yaml in"),
        ({"meshgate.yaml": "crews: {night: {}}"}, "", None, "use one of: night"),
        ({"meshgate.yaml": "crews: ["}, "", None, "next: meshgate doctor"),
        (
            {"meshgate.yaml": "programs: {desk: {}}"},
            "import sys; sys.executable = '/x/y'",
            "/x",
            "not installed",
        ),
        ({}, "import sys; sys.ps1 = '> '", None, "session or notebook"),
    ],
)
def test_a_plain_script_is_told_what_is_missing(tmp_path, files, program, path, said):
    """No manifest, no such app, a broken one, no command of ours, a session."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    lines = [
        program,
        "from meshgate_agents import DurableRunner",
        "DurableRunner(name='desk', crew=object()).run()",
    ]
    (tmp_path / "main.py").write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "main.py"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path or os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "CannotRun" in done.stderr
    assert said in done.stderr


def test_neither_crewai_nor_grpc_is_needed_to_import_it():
    """The package's own name is importable in an agent's environment without both."""
    program = (
        "import sys\nsys.modules['crewai'] = sys.modules['grpc'] = None\n"
        "from meshgate_agents import DurableRunner\nprint(DurableRunner)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "DurableRunner" in done.stdout


def test_results_come_back_as_they_were(make_desk):
    """A pydantic result of a class that a task names is that class again; nothing else is looked up."""
    desk = make_desk(FakeGateway())
    assert "AFTER inner True 3" in play(desk, "structured").out
    program = (
        "import json, sys, durable\nfrom meshgate_agents.runner import results\n"
        "form = json.loads(sys.stdin.read())\n"
        "known = results.rebuild(form, classes=[durable.Report])\n"
        "other = results.rebuild(form, classes=[])\n"
        "print(known.pydantic == durable.Report(paid=3), known.tasks_output[0].pydantic.paid, known['paid'])"
        "\n"
        "print(other.pydantic, other.json_dict, type(other).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(recorded(desk)),
        env={**os.environ, "PYTHONPATH": str(PROJECT), "MARKS": str(desk.tmp / "marks")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["True 3 3", "None {'paid': 3} CrewOutput"]
