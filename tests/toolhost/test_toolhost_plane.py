"""A tool host killed in mid-tool, on real Dapr, OPA and mTLS; effects are counted by a file."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

MESHGATE = [str(Path(sys.executable).with_name("meshgate"))]
PATIENCE_SECONDS = 90.0

MANIFEST = """
    apiVersion: meshgate/v1
    mesh: desk
    trustDomain: desk.example
    programs:
      nightly: {run: [python, nightly.py]}
    toolhosts:
      orders:
        tools: [desk_tools:keyed, desk_tools:once]
    tools:
      orders.keyed: {effect: external, idempotent: true}
      orders.once: {effect: irreversible, deadlineSeconds: 20}
"""
POLICY = """
    package mesh.agents.nightly

    allow contains "orders.keyed"

    allow contains "orders.once"
"""
TOOLS = """
    import pathlib
    import time

    HERE = pathlib.Path(__file__).parent

    def _key() -> str:
        from meshgate_toolhost.context import idempotency_key

        return str(idempotency_key())

    def _work(order: str) -> str:
        with (HERE / "effects").open("a") as file:
            file.write(f"begin {_key()}\\n")
        while not (HERE / "go").exists():
            time.sleep(0.05)
        with (HERE / "effects").open("a") as file:
            file.write("end\\n")
        return "done " + order

    def keyed(order: str) -> str:
        return _work(order)

    def once(order: str) -> str:
        return _work(order)
"""
PROGRAM = """
    import sys

    import desk_tools
    from crewai.tools import tool

    body = getattr(desk_tools, sys.argv[1])
    body.__doc__ = "Does."
    print("GOT", repr(tool(body).run(order="A-1")))
"""


def eventually(check, what):
    """Polls until `check` gives something true, and returns it."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (found := check()):
        assert time.monotonic() < end, f"not within {PATIENCE_SECONDS} s: {what}"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """A mesh that is up, in its own folder."""
    root = tmp_path_factory.mktemp("m")
    (root / "policies").mkdir()
    for name, text in {
        "meshgate.yaml": MANIFEST,
        "policies/nightly.rego": POLICY,
        "desk_tools.py": TOOLS,
        "nightly.py": PROGRAM,
    }.items():
        (root / name).write_text(textwrap.dedent(text).lstrip())
    with (root / "up.log").open("w") as log:
        up = subprocess.Popen([*MESHGATE, "up"], cwd=root, stdout=log, stderr=log)
    try:
        eventually(
            lambda: up.poll() is not None or "the mesh is up" in (root / "up.log").read_text(), "mesh up"
        )
        assert up.poll() is None, (root / "up.log").read_text()
        yield root
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(60)
        shutil.rmtree(root / ".meshgate", ignore_errors=True)


def host_pid(root):
    """The tool host's process, as the supervisor has it."""
    shown = subprocess.run([*MESHGATE, "ps", "-o", "json"], cwd=root, capture_output=True, check=True)
    return next(row["pid"] for row in json.loads(shown.stdout)["processes"] if row["name"] == "orders")


def shown(root, *command):
    """What a command of ours prints as JSON."""
    done = subprocess.run([*MESHGATE, *command, "-o", "json"], cwd=root, capture_output=True, check=True)
    return json.loads(done.stdout)


def killed_in_mid_tool(root, tool, meanwhile=lambda: None):
    """Runs the program, kills the host once the body has begun; gives status, output and effects."""
    for name in ("effects", "go"):
        (root / name).unlink(missing_ok=True)
    command = [*MESHGATE, "run", "--app", "nightly", "--", sys.executable, "nightly.py", tool]
    run = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        eventually((root / "effects").exists, "the body begins")
        os.kill(host_pid(root), signal.SIGKILL)
        (root / "go").touch()
        meanwhile()
        output, _ = run.communicate(timeout=PATIENCE_SECONDS)
    finally:
        run.kill()
    return run.returncode, output, (root / "effects").read_text().split("\n")[:-1]


@pytest.mark.plane
def test_a_keyed_tool_runs_again_with_the_same_key(mesh):
    """The caller gets the answer; both tries bore one key."""
    status, output, effects = killed_in_mid_tool(mesh, "keyed")
    assert (status, "GOT 'done A-1'" in output) == (0, True), output
    assert effects[0] == effects[1]
    assert effects[2:] == ["end"]


@pytest.mark.plane
def test_any_other_tool_is_not_run_again(mesh):
    """The run waits until a person says how it ended; then it goes on with that, without a second effect."""
    found = {}

    def settle():
        rows = shown(mesh, "runs", "list")
        waiting = next((row for row in rows if row["state"] == "waiting"), None)
        if waiting is None:
            return False
        found["call_id"] = waiting["detail"].removeprefix("unknown ")
        resolved = [
            "runs",
            "resolve",
            found["call_id"],
            "--as",
            "failed",
            "--result",
            "the bank knows nothing",
        ]
        subprocess.run([*MESHGATE, *resolved], cwd=mesh, check=True)
        return True

    status, output, effects = killed_in_mid_tool(mesh, "once", meanwhile=lambda: eventually(settle, "waits"))
    assert status == 0, output
    assert "GOT" in output
    assert "the bank knows nothing" in output
    assert [effect.split()[0] for effect in effects].count("begin") == 1
