"""The launcher as a process: exit status, faults of the gateway, signals, leftovers, admission."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
from fakes.fake_gateway import done, failed, pending, unknown

ONE_CALL = "import desk_tools; print('GOT', desk_tools.refund.run(order='1'))"
NO_CREWAI = "print('hello')"
DEADLINE_SECONDS = 20.0


def wait_for(condition, what: str):
    """Polls until the condition holds; fails the test at the deadline."""
    give_up_at = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < give_up_at:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"never happened: {what}")


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def start(desk):
    """Starts a launcher without waiting for it; ends it by pid."""
    started = []

    def begin(*command: str, **settings):
        process = subprocess.Popen(
            desk.argv(*command, **settings),
            cwd=desk.tmp,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.terminate()  # it ends its child too
        try:
            process.communicate(timeout=DEADLINE_SECONDS)
        except (subprocess.TimeoutExpired, ValueError):
            process.kill()
            process.wait()


@pytest.mark.parametrize("status", [0, 7])
def test_the_exit_status_is_the_programs_own(desk, status):
    """And the run ends as the program did."""
    ended = desk.python(f"import sys; sys.exit({status})", expects_report=False)
    assert ended.status == status
    assert desk.gateway.finished == [("failed" if status else "completed", f"exit status {status}")]


def test_standard_output_is_the_programs_alone(desk):
    """What the launcher says goes to stderr, the environment it sets among it, once."""
    ended = desk.python(NO_CREWAI, expects_report=False)
    assert ended.out == "hello\n"
    assert ended.err.count("CREWAI_DISABLE_TELEMETRY=true") == 1
    assert ended.err.count("CREWAI_DESERIALIZE_CALLBACKS=false") == 1


@pytest.mark.parametrize("status", [0, 3])
def test_no_report_is_an_error_whatever_the_status(desk, status):
    """A program that should have imported CrewAI under us, and did not."""
    ended = desk.python(f"import sys; sys.exit({status})")
    assert ended.status == 125
    assert "no process of it imported CrewAI" in ended.err
    state, detail = desk.gateway.finished[0][:2]
    assert state == "failed"
    assert ("its error is at the terminal where it ran" in detail) is bool(status)


def test_an_isolated_interpreter_gives_no_report(desk):
    """`python -I` leaves our sitecustomize out, so CrewAI ran without us: an error."""
    ended = desk.run(sys.executable, "-I", "-c", "import crewai.tools")
    assert ended.status == 125


def test_a_crew_in_a_grandchild_reports(desk):
    """As `crewai run` does: the program starts another interpreter, through a shell."""
    ended = desk.run("/bin/sh", "-c", f'"{sys.executable}" -c "{ONE_CALL}"; exit 4')
    assert ended.status == 4
    assert "GOT desk.refund ok" in ended.out
    assert ended.marks == []


def test_a_double_forked_process_is_still_a_descendant(desk):
    """Its parents are gone, yet it may ask, and it is ended with the program."""
    inner = ONE_CALL + "; open('asked','w').close()"
    ended = desk.python(
        f"""
import os, subprocess, sys, time
import crewai.tools
if os.fork() == 0:
    subprocess.Popen([sys.executable, "-c", {inner!r}], start_new_session=True)
    os._exit(0)
os.wait()
while not os.path.exists("asked"): time.sleep(0.02)
"""
    )
    assert ended.status == 0, ended.err
    assert "GOT desk.refund ok" in ended.out
    assert [seen.tool for seen in desk.gateway.seen] == ["desk.refund"]


def test_equal_processes_have_their_own_keys(desk):
    """Two processes of one run that make the same call make two steps."""
    ended = desk.run("/bin/sh", "-c", f'for i in 1 2; do "{sys.executable}" -c "{ONE_CALL}"; done')
    assert ended.status == 0
    assert len({seen.step_key for seen in desk.gateway.seen}) == 2


def test_a_stray_process_is_killed_at_the_end(desk):
    """One that left the session and the group too."""
    ended = desk.python(
        "import subprocess as s\nprint('PID', s.Popen(['sleep', '300'], start_new_session=True).pid)",
        expects_report=False,
    )
    assert ended.status == 0
    assert not alive(int(ended.out.split()[1]))


def test_a_pending_call_is_asked_again_with_the_same_key(desk):
    """Until it is settled; the program sees one call."""
    desk.gateway.behave = lambda seen, nth: done("late") if nth == 3 else pending()
    ended = desk.python(ONE_CALL)
    assert "GOT late" in ended.out
    assert len(desk.gateway.seen) == 4
    assert len({seen.step_key for seen in desk.gateway.seen}) == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_an_outage_changes_no_answer(desk, code):
    """The gateway is away for a moment: the same answer, one logical call."""
    desk.gateway.behave = lambda seen, nth: done("back") if nth == 3 else code
    ended = desk.python(ONE_CALL)
    assert "GOT back" in ended.out
    assert ended.status == 0
    assert len({seen.step_key for seen in desk.gateway.seen}) == 1


def test_an_outage_past_the_deadline_ends_the_run_and_is_no_text(desk):
    """The child is killed in mid-call: no answer of ours reaches the program."""
    desk.gateway.behave = lambda seen, nth: grpc.StatusCode.UNAVAILABLE
    ended = desk.python(ONE_CALL, step_deadline_seconds=0.5)
    assert ended.status == 125
    assert "GOT" not in ended.out
    assert "no answer for desk.refund within 0.5 s" in ended.err
    assert desk.gateway.finished[0][0] == "failed"


def test_an_unknown_outcome_holds_the_run_up_and_is_no_text(desk):
    """It may have taken effect: nobody guesses; once it is settled, the next attempt gets the answer."""
    settled = []

    def behave(seen, nth):
        if nth == 0:
            desk.gateway.heartbeat_state = "waiting"
            threading.Timer(2.0, lambda: setattr(desk.gateway, "heartbeat_state", "restarting")).start()
            return unknown()
        settled.append(seen.attempt)
        return done("found in the bank's book")

    desk.gateway.behave = behave
    ended = desk.python(ONE_CALL)
    assert ended.status == 0
    assert ended.out == "GOT found in the bank's book\n"
    assert "may or may not have taken effect" in ended.err
    assert settled == [4]
    assert len({seen.step_key for seen in desk.gateway.seen}) == 1


def test_a_superseded_attempt_ends(desk):
    """The gateway refuses the fencing number."""
    desk.gateway.behave = lambda seen, nth: grpc.StatusCode.FAILED_PRECONDITION
    ended = desk.python(ONE_CALL)
    assert ended.status == 125
    assert "GOT" not in ended.out
    assert "fake_reason" in ended.err


def test_arguments_that_the_gateway_refuses_are_told(desk):
    """INVALID_ARGUMENT is the model's mistake and goes to the model."""
    desk.gateway.behave = lambda seen, nth: grpc.StatusCode.INVALID_ARGUMENT
    ended = desk.python(ONE_CALL)
    assert "refused: the fake says so" in ended.out
    assert ended.status == 0


def test_a_failed_tool_is_a_value(desk):
    """Not an exception in the program."""
    desk.gateway.behave = lambda seen, nth: failed("no\nsuch order")
    ended = desk.python("import desk_tools; print('GOT', desk_tools.refund.run(order='1').message)")
    assert "GOT the tool failed (ValueError): no such order" in ended.out


def test_no_gateway_starts_nothing(desk):
    """Without a run nothing is started, and the person reads what to do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{free.getsockname()[1]}"
        ended = desk.python(
            NO_CREWAI, gateway={"target": target, "server_name": "x"}, step_deadline_seconds=0.5
        )
    assert ended.status == 125
    assert "hello" not in ended.out
    assert "meshgate ps" in ended.err


def test_a_command_that_cannot_start_fails_the_run(desk):
    """With its name in the message."""
    ended = desk.run("no-such-program")
    assert ended.status == 125
    assert "cannot start 'no-such-program'" in ended.err
    assert desk.gateway.finished[0][0] == "failed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_forwarded_and_cancels(desk, start, number):
    """The program gets it, may end in its own way, and the run is cancelled."""
    (desk.tmp / "marks").mkdir()
    text = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(9))\n"
        "print('up', flush=True)\nwhile True: time.sleep(0.05)"
    )
    process = start(sys.executable, "-c", text, expects_report=False)
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    assert process.wait(DEADLINE_SECONDS) == 9
    assert desk.gateway.finished[0][0] == "cancelled"


def test_a_cancelled_run_seen_by_the_heartbeat_ends_the_child(desk, start, monkeypatch):
    """The gateway says that the run is over."""
    desk.gateway.heartbeat_state = "cancelled"
    process = start(sys.executable, "-c", "import time; time.sleep(300)", expects_report=False)
    assert process.wait(DEADLINE_SECONDS) == 125
    assert "is cancelled" in process.stderr.read()


def test_a_foreign_process_is_refused(desk, start):
    """This test is the launcher's parent, not a process of the run: it gets no answer and no call is made."""
    process = start(sys.executable, "-c", "import time; time.sleep(300)", expects_report=False)
    path = wait_for(lambda: next((desk.tmp / "s").glob("a*/s"), None), "the socket exists")
    request = json.dumps({"op": "call", "identity": {}, "step": {}}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE_SECONDS)
        connection.connect(str(path))
        try:
            connection.sendall(struct.pack("!I", len(request)) + request)
            answer = connection.recv(1)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
    assert answer == b""
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert "is no process of this run" in err
    assert desk.gateway.seen == []


def test_the_socket_is_private_and_goes_away(desk, start):
    """Its folder is 0700 and is removed at the end."""
    process = start(sys.executable, "-c", "import time; time.sleep(300)", expects_report=False)
    path = wait_for(lambda: next((desk.tmp / "s").glob("a*/s"), None), "the socket exists")
    assert path.parent.stat().st_mode & 0o777 == 0o700
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE_SECONDS)
    assert list((desk.tmp / "s").iterdir()) == []


def test_the_child_ends_when_the_launcher_is_killed(desk, start):
    """A waiting tool call never becomes an answer: the program ends with 125."""
    release = threading.Event()
    desk.gateway.behave = lambda seen, nth: release.wait(DEADLINE_SECONDS) and done("too late")
    text = f"import os; open('pid', 'w').write(str(os.getpid())); {ONE_CALL}"
    process = start(sys.executable, "-c", text)
    assert desk.gateway.called.wait(DEADLINE_SECONDS)
    process.kill()
    out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    release.set()
    pid = int((desk.tmp / "pid").read_text())
    wait_for(lambda: not alive(pid), "the child ends")
    assert "GOT" not in out


def test_the_childs_environment_is_exactly_what_was_named(desk):
    """Nothing of the launcher's own environment leaks."""
    os.environ["LEAK"] = "x"
    try:
        ended = desk.python("import os, json; print(json.dumps(sorted(os.environ)))", expects_report=False)
    finally:
        del os.environ["LEAK"]
    names = set(json.loads(ended.out))
    assert "LEAK" not in names
    ours = {name for name in names if name.startswith(("CREWAI_", "MESHGATE_"))}
    assert names - ours - {"PYTHON_DOTENV_DISABLED"} <= {
        "PATH", "HOME", "MARKS", "PYTHONPATH", "OTEL_SDK_DISABLED", "LC_CTYPE",
    }  # fmt: skip


def test_a_projects_own_sitecustomize_still_runs(desk, tmp_path):
    """Ours hides it on the path, so ours runs it."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import builtins; builtins.OWN = __name__")
    desk.env["PYTHONPATH"] = f"{site}{os.pathsep}{Path(__file__).parent / 'project'}"
    ended = desk.python(f"print(OWN); import sitecustomize as s; print(s.__file__); {ONE_CALL}")
    assert ended.out.splitlines()[:2] == ["sitecustomize", str(site / "sitecustomize.py")]
    assert "GOT desk.refund ok" in ended.out


def test_the_child_needs_nothing_of_meshgate(desk, tmp_path):
    """An interpreter without our distribution and its dependencies: only CrewAI's can be imported."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('grpc', 'dapr', 'spiffe') or name.startswith('meshgate'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Without())\n"
    )
    desk.env["PYTHONPATH"] = f"{site}{os.pathsep}{Path(__file__).parent / 'project'}"
    ended = desk.python(
        ONE_CALL + "; import sys; print([m for m in sys.modules if m.startswith('meshgate')])"
    )
    assert "GOT desk.refund ok" in ended.out, ended.err
    assert "[]" in ended.out


def test_a_broken_child_side_lets_nothing_run(desk):
    """A CrewAI that we do not know fails at import, before any tool exists."""
    fake = desk.tmp / "fake" / "crewai" / "tools"
    fake.mkdir(parents=True)
    (fake / "base_tool.py").write_text("class BaseTool: pass")
    (fake / "__init__.py").touch()
    (fake.parent / "__init__.py").touch()
    desk.env["PYTHONPATH"] = str(desk.tmp / "fake")
    ended = desk.python("import crewai.tools.base_tool; print('IMPORTED')")
    assert "IMPORTED" not in ended.out
    assert ended.status != 0


def test_a_bad_config_starts_nothing(desk):
    """The message names the file and what is wrong."""
    ended = desk.python(NO_CREWAI, kind="robot")
    assert ended.status == 125
    assert "launcher.json" in ended.err or "kind is 'robot'" in ended.err
    assert "hello" not in ended.out


def test_the_end_of_a_run_outlives_a_gateway_that_is_replaced(desk):
    """A stopped gateway is away for a dozen seconds: a run that is done must not be left unfinished."""
    desk.gateway.away_at_the_end = 26
    ended = desk.python("pass", expects_report=False)
    assert ended.status == 0, ended
    assert desk.gateway.finished == [("completed", "exit status 0")]
