"""A crew in one file, from `scan` to a mesh in which every agent is an app of its own."""

import hashlib
import json
import os
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.live_mesh import LiveMesh
from integration.fault_mesh import eventually
from meshgate_deploy.refund_desk.loopback import LoopbackServer
from meshgate_deploy.refund_desk.model import Call, Conversation, ObedientModel
from meshgate_deploy.state import open_state
from meshgate_gateway import catalogue
from meshgate_gateway.model import Kind, ToolKind

pytestmark = [pytest.mark.plane, pytest.mark.timeout(600)]

SECONDS = 300  # three processes import CrewAI one after the other
OVER = ("completed", "failed", "cancelled")
AGENTS = ("triage-analyst", "billing")
PROJECT = {
    "desk.py": '''
        import os
        from pathlib import Path

        from crewai import Agent, Crew, Task
        from crewai.tools import tool


        @tool
        def tickets() -> str:
            """List the open tickets."""
            return "T-1"


        @tool
        def refund(order: str, amount: float) -> str:
            """Pay an order back."""
            return order


        triage_analyst = Agent(role="Triage Analyst", goal="g", backstory="b", tools=[tickets])
        if dict(os.environ).get("MESHGATE_APP") == "desk" and Path(__file__).with_name("more").exists():
            triage_analyst.tools.append(refund)
        billing = Agent(role="Billing Clerk", goal="g", backstory="b", tools=[refund], allow_delegation=True)
        read = Task(description="read", expected_output="a list", agent=triage_analyst)
        pay = Task(description="pay", expected_output="a list", agent=billing)
        crew = Crew(agents=[triage_analyst, billing], tasks=[read, pay])
    ''',
}


ANSWERING = threading.Event()  # the model waits with every answer while this is not set
ANSWERING.set()


def _choose(conversation: Conversation) -> Call | str:
    """Uses the one tool that it is offered, once, and says what it gave."""
    assert ANSWERING.wait(SECONDS)
    calls = {"tickets": Call("tickets", {}), "refund": Call("refund", {"order": "O-1", "amount": 5.0})}
    for name, call in calls.items():
        if name in conversation.functions:
            found = conversation.result(call)
            return call if found is None else f"{name}: {found}"
    return "I hold no tool."


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    """A model on a loopback port."""
    server = LoopbackServer(ObedientModel(_choose).respond)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.url
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, model: str) -> Iterator[LiveMesh]:
    """The project as `scan` left it, up; `policy check` and its tests passed before."""
    environment = f"OPENAI_API_KEY=k\nOPENAI_BASE_URL={model}/v1\nOPENAI_MODEL_NAME=gpt-4o-mini\n"
    made = LiveMesh(tmp_path_factory.mktemp("m"), PROJECT | {".env": environment})
    for command in (("scan",), ("policy", "check"), ("policy", "test")):
        done = made.command(*command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    try:
        made.up()
        yield made
    finally:
        made.remove()


def test_every_agent_has_a_worker_a_sidecar_and_an_identity(mesh: LiveMesh) -> None:
    """As every app has: of its own, under its own name."""
    shown = {row["name"]: row for row in mesh.asked("ps")["processes"]}
    domain = next(app["spiffe_id"] for app in mesh.asked("ps")["apps"]).rpartition("/")[0]
    for app in (*AGENTS, "desk"):
        assert shown[app]["spiffe_id"] == f"{domain}/{app}"
        assert shown[app]["state"] == shown[f"dapr-{app}"]["state"] == "ready"
    assert len({shown[app]["pid"] for app in (*AGENTS, "desk")}) == 3
    done = mesh.command("doctor", "--strict")
    assert done.returncode == 0, (done.stdout, done.stderr)


def test_the_gateway_knows_them_as_agents(mesh: LiveMesh) -> None:
    """Whose tasks are entries of its catalogue; each app may ask for what its policy names and no more."""
    generated = open_state(mesh.root).generated
    known = catalogue.parse((generated / "catalogue.json").read_bytes())
    assert {app for app, kind in known.apps.items() if kind is Kind.AGENT} == set(AGENTS)
    tasks = {tool.id for tool in known.tools.values() if tool.kind is ToolKind.DELEGATE}
    assert tasks == {"agent:billing", "agent:triage-analyst"}
    (written,) = (generated / "policy").glob("*/listing.json")
    apps = json.loads(written.read_text())["apps"]
    assert {app: sorted(listed) for app, listed in apps.items()} == {
        "desk": ["agent:billing", "agent:triage-analyst"],
        "triage-analyst": ["desk-tools.tickets"],
        "billing": ["agent:triage-analyst", "desk-tools.refund"],
    }


def test_nobody_starts_an_agent_by_hand(mesh: LiveMesh) -> None:
    """It would have no task; the crew's app is what is started."""
    done = mesh.command("run", "--app", "billing", "--", "true")
    assert done.returncode == 125
    assert "acts only when it is given a task" in done.stderr
    assert "--app desk" in done.stderr
    assert mesh.command("runs", "start", "billing").returncode != 0
    assert mesh.asked("runs", "list") == []


def test_no_file_of_one_agent_names_anothers_command(mesh: LiveMesh) -> None:
    """Each is started with what it is: an agent of this crew, beside these colleagues."""
    generated = open_state(mesh.root).generated
    for app in AGENTS:
        config = json.loads(Path(generated / f"{app}.json").read_bytes())
        assert (config["app"], config["kind"]) == (app, "agent")
        assert config["command"][1:] == ["-m", "meshgate_agent"]
        assert config["crews"] == {"desk": "desk:crew"}
        assert {one["app"] for one in config["colleagues"]} == set(AGENTS)


def test_a_run_of_the_crew_is_a_run_of_each_agent(mesh: LiveMesh) -> None:
    """Every tool is called by the agent that holds it, under its own identity; the crew calls none."""
    started = mesh.command("runs", "start", "desk", "--run-id", "monday")
    assert started.returncode == 0, started.stderr
    eventually(
        lambda: {row["run_id"]: row["state"] for row in mesh.asked("runs", "list")}["monday"] in OVER,
        "the run has ended",
        seconds=SECONDS,
    )
    runs = {row["app"].rpartition("/")[2]: row["state"] for row in mesh.asked("runs", "list")}
    assert runs == dict.fromkeys(("desk", *AGENTS), "completed"), mesh.command("logs").stdout
    decisions = [(row["caller"].rpartition("/")[2], row["tool"]) for row in mesh.records(kind="decision")]
    assert decisions == [
        ("desk", "agent:triage-analyst"),
        ("triage-analyst", "desk-tools.tickets"),
        ("desk", "agent:billing"),
        ("billing", "desk-tools.refund"),
    ]


def test_ps_shows_who_plays_what_and_how_much_memory_it_takes(mesh: LiveMesh) -> None:
    """The crew's run and its agent's, each with a program of its own; `ps` fits on a terminal."""
    ANSWERING.clear()
    try:
        started = mesh.command("runs", "start", "desk", "--run-id", "tuesday")
        assert started.returncode == 0, started.stderr
        both = ("desk", "triage-analyst")
        shown = eventually(lambda: _playing(mesh, *both), "both are played", seconds=SECONDS)
        table = mesh.command("ps").stdout
    finally:
        ANSWERING.set()
    apps = {app["name"]: app for app in shown["apps"]}
    processes = {row["name"]: row for row in shown["processes"]}
    assert {name: (app["kind"], app["crews"]) for name, app in apps.items()} == {
        "gateway": ("gateway", []),
        "desk-tools": ("toolhost", []),
        "desk": ("crew", []),
        "triage-analyst": ("agent", ["desk"]),
        "billing": ("agent", ["desk"]),
    }
    assert apps["desk"]["runs"] == [{"run_id": "tuesday", "attempt": 1}]
    assert apps["billing"]["runs"] == []
    pids = set()
    for app in both:
        (program,) = processes[app]["programs"]
        pids |= {program["pid"], processes[app]["pid"]}
        assert 0 < program["memory"]["bytes"] < apps[app]["memory"]["bytes"]
        assert apps[app]["memory"]["measure"] in ("pss", "rss")
    assert len(pids) == 4
    assert {row["name"]: row["state"] for row in shown["fork_servers"]} == {
        "fork-server": "ready", "fork-server-tools": "ready", "fork-server-programs": "ready",
    }  # fmt: skip
    assert _unseen(shown) == []
    lines = table.splitlines()
    assert max(map(len, lines)) <= 100, table
    assert any(line.startswith("  triage-analyst ") and apps["triage-analyst"]["spiffe_id"] in line
               for line in lines), table  # fmt: skip
    assert any(line.lstrip().startswith("program ") and "attempt 1" in line and "run tuesday" in line
               for line in lines), table  # fmt: skip
    eventually(
        lambda: {row["run_id"]: row["state"] for row in mesh.asked("runs", "list")}["tuesday"] == "completed",
        "the run has ended",
        seconds=SECONDS,
    )


def _unseen(shown: dict[str, Any]) -> list[str]:
    """Processes below the supervisor that no row names and that are below none but it."""
    rows = [*shown["processes"], *shown["fork_servers"]]
    named = {row["pid"] for row in rows} | {one["pid"] for row in rows for one in row.get("programs", ())}
    supervisor = shown["pid"]
    below = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return [Path(f"/proc/{pid}/cmdline").read_text() for pid in below if int(pid) not in named]


def _playing(mesh: LiveMesh, *apps: str) -> dict[str, Any] | None:
    """What `ps` shows, once each of the apps has a program that runs."""
    shown: dict[str, Any] = mesh.asked("ps")
    busy = {row["name"] for row in shown["processes"] if row.get("programs")}
    return shown if busy >= set(apps) else None


def test_a_tool_that_the_agents_process_lacks_is_said(mesh: LiveMesh) -> None:
    """The crew's process alone makes it: the task is declined, in words that its run has too."""
    before = len(mesh.records(kind="decision"))
    (mesh.root / "more").touch()
    try:
        assert mesh.command("runs", "start", "desk", "--run-id", "lacking").returncode == 0
        runs = eventually(lambda: _over(mesh, "lacking"), "the run has ended", seconds=SECONDS)
    finally:
        (mesh.root / "more").unlink()
    assert runs["lacking"]["state"] == "failed"
    (asked,) = mesh.records(kind="decision")[before:]
    assert asked["tool"] == "agent:triage-analyst"
    line = "its crew is built without a tool that the asking process has for this task"
    declined = [row["run_id"] for row in runs.values() if row["state"] == "failed"]
    assert len(declined) == 2
    for run_id in declined:
        assert line in mesh.command("runs", "show", run_id).stdout
    assert "built agent 'triage_analyst' of crew 'desk' with refund, and this one without" in (
        mesh.command("logs", "triage-analyst").stdout
    )


def _over(mesh: LiveMesh, run_id: str) -> dict[str, Any] | None:
    """All runs, once this one is over."""
    runs = {row["run_id"]: row for row in mesh.asked("runs", "list")}
    return runs if runs[run_id]["state"] in OVER else None


def test_id_shows_the_certificate_that_a_process_really_uses(mesh: LiveMesh) -> None:
    """What the gateway presents to whoever connects; asking twice changes nothing."""
    config = json.loads((open_state(mesh.root).generated / "billing.json").read_bytes())
    host, port = config["gateway"]["target"].rsplit(":", 1)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port))) as plain, context.wrap_socket(plain) as connection:
        presented = connection.getpeercert(binary_form=True)
    assert presented is not None
    told = mesh.asked("id", "show", "gateway")
    (certificate,) = told["certificates"]
    assert certificate["sha256"] == hashlib.sha256(presented).hexdigest()
    assert (told["processes"], certificate["pid"]) == (1, mesh.pids["gateway"])
    assert (certificate["key_type"], certificate["chain_length"]) == ("EC P-256", 1)
    assert mesh.asked("id", "show", told["spiffe_id"]) == told
    assert "PRIVATE" not in mesh.command("id", "show", "gateway").stdout


def test_each_app_has_a_certificate_of_its_own(mesh: LiveMesh) -> None:
    """Under its own SPIFFE ID; an app that is not there is told with those that are."""
    told = [mesh.asked("id", "show", app) for app in (*AGENTS, "desk")]
    assert len({certificate["sha256"] for one in told for certificate in one["certificates"]}) == 3
    assert all(one["spiffe_id"].endswith(f"/{one['app']}") for one in told)
    text = mesh.command("id", "show", "billing").stdout
    for value in (told[1]["spiffe_id"], told[1]["trust_domain"], told[1]["certificates"][0]["serial"]):
        assert value in text
    for wanted, code in (("bill", 4), ("spiffe://other.test/ns/x/billing", 4), ("spiffe://Other", 2)):
        refused = mesh.command("id", "show", wanted)
        assert refused.returncode == code, refused.stderr
        assert code != 4 or "gateway, desk-tools, desk, triage-analyst, billing" in refused.stderr


def test_a_process_without_a_certificate_is_said_to_have_none(mesh: LiveMesh) -> None:
    """While a killed worker is started again, or for good: never an old one of a process that is gone."""
    before = mesh.asked("id", "show", "billing")["certificates"][0]
    os.kill(before["pid"], signal.SIGKILL)
    eventually(lambda: _renewed(mesh, before["pid"]), "it has another one", seconds=SECONDS)


def _renewed(mesh: LiveMesh, gone: int) -> bool:
    done = mesh.command("id", "show", "billing", "-o", "json")
    if done.returncode:
        assert (done.returncode, "holds a certificate now" in done.stderr) == (5, True), done.stderr
        return False
    (certificate,) = json.loads(done.stdout)["certificates"]
    assert certificate["pid"] != gone
    return True
