"""Parts of a real mesh are stopped and killed while programs work; each effect is counted by a file."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from integration.fault_mesh import Ended, Mesh, Run, eventually
from meshgate_agents.launcher.launch import uuid7

pytestmark = [pytest.mark.plane, pytest.mark.timeout(400)]

NIGHTLY = "spiffe://faults.example/ns/faults/nightly"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory) -> Iterator[Mesh]:
    """One mesh for all: each test uses orders of its own and leaves the mesh whole."""
    made = Mesh.start(tmp_path_factory.mktemp("f"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def whole(mesh) -> None:
    """No test begins on a mesh that another one left broken."""
    mesh.healed()


@pytest.fixture(scope="module")
def undisturbed(mesh) -> tuple[str, str]:
    """Answer and transcript of the crew when nothing is wrong."""
    with mesh.running(("crew.py", "calm", "o-calm")) as (run,):
        run.go()
        return told(mesh, run, run.ended(), "o-calm")


def told(mesh: Mesh, run: Run, ended: Ended, order: str) -> tuple[str, str]:
    """What a crew answered and what its model was shown, without the order's name."""
    assert ended.status == 0, ended.output
    shown = (mesh.root / "shown" / run.name).read_text()
    (answer,) = ended.lines("ANSWER")
    return answer.replace(order, "ORDER"), shown.replace(order, "ORDER")


def once(mesh: Mesh, run: Run, **orders: str) -> None:
    """Each call was decided, taken and settled once, and its body ran once, under its own id."""
    rows = mesh.calls(run)
    assert {tool: row["state"] for tool, row in rows.items()} == {f"orders.{name}": "done" for name in orders}
    for name, order in orders.items():
        call_id = rows[f"orders.{name}"]["call_id"]
        assert mesh.kinds(call_id) == ["decision", "take", "outcome"]
        assert mesh.effects(order) == [call_id]


def refused(mesh: Mesh, reason: str) -> list[dict[str, Any]]:
    """Records of the program's calls that could not be served."""
    return [r for r in mesh.records(kind="refusal", caller=NIGHTLY) if r["reason"] == reason]


@pytest.mark.parametrize("ending", ["stopped", "killed"])
def test_an_engine_that_is_away_changes_no_answer(mesh, undisturbed, ending) -> None:
    """No verdict is no denial: recorded, not ready, nothing ran, no text for the model, then the answer."""
    name, order, before = f"opa-{ending}", f"o-opa-{ending}", len(refused(mesh, "policy_unavailable"))
    with mesh.running(("crew.py", name, order)) as (run,):
        with mesh.stopped("opa"):
            run.go()
            eventually(lambda: len(refused(mesh, "policy_unavailable")) > before, "a call met the fault")
            assert (mesh.not_ready(), mesh.serving()) == (["policy_unavailable"], False)
            assert mesh.calls(run) == {}
            assert mesh.effects(order) == []
            if ending == "killed":
                mesh.kill("opa")
        assert told(mesh, run, run.ended(), order) == undisturbed
    once(mesh, run, lookup=order, pay=f"{order}-paid")


def immutable_files(folder: Path) -> bool:
    """Whether this file system and this user can make a file immutable."""
    probe = folder / "immutable"
    probe.touch()
    if shutil.which("chattr") is None:
        return False
    done = subprocess.run(["chattr", "+i", str(probe)], check=False, capture_output=True)
    subprocess.run(["chattr", "-i", str(probe)], check=False, capture_output=True)
    return done.returncode == 0


@pytest.mark.parametrize("fault", ["full", "read_only"])
def test_a_store_that_takes_nothing_changes_no_answer(mesh, undisturbed, fault) -> None:
    """Full or read-only: not ready, nothing ran, no text for the model, then the one answer each."""
    if fault == "read_only" and not immutable_files(mesh.root):
        pytest.skip("files cannot be made immutable here: not root, or another file system")
    name, order, key = f"store-{fault}", f"o-{fault}", uuid7()
    with mesh.running(("crew.py", name, order)) as (run,):
        with getattr(mesh, f"{fault}_store")():
            run.go()
            eventually((mesh.root / "shown" / name).exists, "the model has asked for a tool")
            for _ in range(3):
                assert mesh.call(key, "orders.pay", f"{order}-wire") == ("UNAVAILABLE", "store_unavailable")
            assert (mesh.not_ready(), mesh.serving()) == (["store_unavailable"], False)
            assert mesh.effects(order) == mesh.effects(f"{order}-wire") == []
        assert told(mesh, run, run.ended(), order) == undisturbed
    once(mesh, run, lookup=order, pay=f"{order}-paid")
    mesh.healed()
    eventually(lambda: mesh.call(key, "orders.pay", f"{order}-wire")[0] == "CALL_STATE_DONE", "settled")
    assert len(mesh.effects(f"{order}-wire")) == 1
    assert mesh.ask("VerifyRecords")["verified"]


def three(name: str) -> list[tuple[str, ...]]:
    """Three programs at once: a tool that reads, one that takes the key, one that must not run twice."""
    return [
        ("nightly.py", f"{name}-{tool}", f"{tool}:o-{name}-{tool}") for tool in ("lookup", "keyed", "pay")
    ]


def test_a_tool_host_that_is_down_is_waited_for(mesh) -> None:
    """Decided and recorded, nothing ran; once the host is back each call has its one effect."""
    with mesh.running(*three("down")) as runs:
        with mesh.held("start"):
            pid = mesh.pid("orders")
            mesh.kill("orders")
            for run in runs:
                run.go()
            for run in runs:
                (row,) = eventually(lambda run=run: mesh.calls(run), "it is decided").values()
                assert row["state"] == "reserved"
                assert mesh.kinds(row["call_id"]) == ["decision"]
            eventually(lambda: mesh.pid("orders") != pid, "the host is being started again")
            assert [mesh.effects(f"o-{run.name}") for run in runs] == [[], [], []]
        ended = [run.ended() for run in runs]
    for run, result, word in zip(runs, ended, ("costs 20", "keyed", "paid"), strict=True):
        tool = run.name.partition("-")[2]
        assert result.lines("GOT") == [f"{tool} o-{run.name} {word}"], result.output
        once(mesh, run, **{tool: f"o-{run.name}"})


def test_a_tool_host_killed_in_mid_tool(mesh) -> None:
    """Reading or keyed: decided and run again, with the same key. Any other: a person says how it ended."""
    names = [f"o-kill-{tool}" for tool in ("lookup", "keyed", "pay")]
    with mesh.running(*three("kill")) as runs:
        with mesh.held(*names):
            for run, name in zip(runs, names, strict=True):
                run.go()
                eventually(lambda name=name: mesh.effects(name), "its body has begun")
            mesh.kill("orders")
        lookup, keyed = (run.ended() for run in runs[:2])
        call_id = mesh.held_up(runs[2])
        assert mesh.effects("o-kill-pay") == [call_id]
        assert runs[2].running
        mesh.resolve(call_id, "paid, says the bank")
        pay = runs[2].ended()
    assert lookup.lines("GOT") == ["lookup o-kill-lookup costs 20"], lookup.output
    assert keyed.lines("GOT") == ["keyed o-kill-keyed keyed"], keyed.output
    assert pay.lines("GOT") == ["pay paid, says the bank"], pay.output
    for run, name, begun in zip(runs, names, (2, 2, 1), strict=True):
        ((_, row),) = mesh.calls(run).items()
        assert mesh.effects(name) == [row["call_id"]] * begun
        settled = ["outcome", "outcome"] if begun == 1 else ["outcome"]
        assert mesh.kinds(row["call_id"]) == [*["decision", "take"] * begun, *settled]
        assert row["state"] == "done"


def test_a_host_killed_in_mid_tool_looks_into_the_book(mesh) -> None:
    """Before the entry: it is made past the lost host's deadline. After it: its receipt is the answer.

    One entry each, and no person was asked.
    """
    before, after = "o-book-before", "o-book-after"
    programs = [("nightly.py", f"{name}-run", f"book:{name}") for name in (before, after)]
    with mesh.running(*programs) as runs:
        with mesh.held(before, f"{after}-booked"):
            for run in runs:
                run.go()
            eventually(lambda: mesh.effects(before) and mesh.booked(after), "both bodies are in their middle")
            assert mesh.booked(before) == []
            mesh.kill("orders")
        ended = [run.ended() for run in runs]
    for result, line in zip(ended, (f"book {before} booked", f"book {after} is in the book"), strict=True):
        assert result.lines("GOT") == [line], result.output
    for run, name, begun, by in zip(runs, (before, after), (2, 1), ("", "reconcile "), strict=True):
        ((_, row),) = mesh.calls(run).items()
        assert row["state"] == "done"
        assert mesh.booked(name) == [row["call_id"]]
        assert mesh.effects(name) == [row["call_id"]] * begun
        kinds = mesh.kinds(row["call_id"])
        assert [kind for kind in kinds if kind != "take"] == [*["decision"] * begun, "outcome"]
        assert kinds.count("take") in ((2, 3) if begun == 2 else (2,))  # asked in vain before that deadline
        (outcome,) = mesh.records(kind="outcome", call_id=row["call_id"])
        assert outcome["settled_by"] == f"{by}spiffe://faults.example/ns/faults/orders"


def test_a_host_that_comes_back_too_late_looks_into_the_book(mesh) -> None:
    """Past its deadline the run waits; the host that comes back settles it, and the run goes on by itself."""
    order = "o-book-late"
    with mesh.running(("nightly.py", "late-run", f"book:{order}")) as (run,):
        with mesh.held("start", f"{order}-booked"):
            run.go()
            eventually(lambda: mesh.booked(order), "its body is in its middle")
            mesh.kill("orders")
            call_id = mesh.held_up(run)
        ended = run.ended()
    assert ended.lines("GOT") == [f"book {order} is in the book"], ended.output
    assert mesh.booked(order) == mesh.effects(order) == [call_id]
    states = [r["state"] for r in mesh.records(kind="outcome", call_id=call_id)]
    assert states == ["unknown", "done"]


def test_a_gateway_killed_between_decision_and_dispatch(mesh) -> None:
    """Recorded and never handed to Dapr: its sidecar is stopped first, and killed with it."""
    with mesh.running(("nightly.py", "decided", "pay:o-decided")) as (run,):
        with mesh.stopped("dapr-gateway"):
            run.go()
            row = eventually(lambda: mesh.calls(run), "it is decided")["orders.pay"]
            assert (row["state"], mesh.dispatched(row["call_id"])) == ("reserved", False)
            mesh.kill("gateway")
            mesh.kill("dapr-gateway")
        settled_once(mesh, run, "o-decided")


def test_a_gateway_killed_with_its_dispatch_under_way(mesh) -> None:
    """Its sidecar goes on with what was in its socket: dispatched or not, nobody knows."""
    with mesh.running(("nightly.py", "dispatching", "pay:o-dispatching")) as (run,):
        with mesh.stopped("dapr-gateway"):
            run.go()
            eventually(lambda: mesh.calls(run), "it is decided")
            mesh.kill("gateway")
        settled_once(mesh, run, "o-dispatching")


def test_a_gateway_killed_with_the_work_item_in_its_hands(mesh) -> None:
    """Dapr handed the call's workflow to a gateway that never read it."""
    with mesh.running(("nightly.py", "handed", "pay:o-handed")) as (run,), ExitStack() as sidecar:
        sidecar.enter_context(mesh.stopped("dapr-gateway"))
        run.go()
        row = eventually(lambda: mesh.calls(run), "it is decided")["orders.pay"]
        with mesh.stopped("gateway") as pid:
            sidecar.close()  # it goes on, and hands its work to a gateway that stands still
            eventually(lambda: mesh.dispatched(row["call_id"]), "Dapr has it")
            port = mesh.sidecar_port("gateway")
            eventually(lambda: mesh.unread(pid, port) == 2, "the answer to the start, and the work item")
            mesh.kill("gateway")
        settled_once(mesh, run, "o-handed")


def test_a_gateway_killed_between_dispatch_and_take(mesh) -> None:
    """The host is stopped, so that Dapr has the call and nobody took it."""
    with mesh.running(("nightly.py", "dispatched", "pay:o-dispatched")) as (run,):
        with mesh.stopped("orders"):
            run.go()
            row = eventually(lambda: mesh.calls(run), "it is decided")["orders.pay"]
            eventually(lambda: mesh.dispatched(row["call_id"]), "Dapr has it")
            assert mesh.kinds(row["call_id"]) == ["decision"]
            mesh.kill("gateway")
        settled_once(mesh, run, "o-dispatched")


def test_a_gateway_killed_between_take_and_outcome(mesh) -> None:
    """The body is under way; its outcome waits in the host for the next gateway."""
    with mesh.running(("nightly.py", "taken", "pay:o-taken")) as (run,):
        with mesh.held("o-taken"):
            run.go()
            eventually(lambda: mesh.effects("o-taken"), "its body has begun")
            mesh.kill("gateway")
        settled_once(mesh, run, "o-taken")


def settled_once(mesh: Mesh, run: Run, order: str) -> None:
    """The caller's repetition of its call gets the one outcome."""
    begun = time.monotonic()
    ended = run.ended()
    seconds = time.monotonic() - begun
    assert ended.lines("GOT") == [f"pay {order} paid"], ended.output
    assert ended.status == 0
    once(mesh, run, pay=order)
    assert mesh.ask("VerifyRecords")["verified"]
    starts = mesh.dispatched(mesh.calls(run)["orders.pay"]["call_id"])
    print(f"{run.name}: {seconds:.1f} s from the kill to the answer, {starts} start(s) in Dapr")  # noqa: T201


def test_tools_that_raise_hang_and_give_too_much(mesh) -> None:
    """A failure that the model may see, with its class on record; past its deadline a read has failed."""
    wanted = ("broken:o-broken", "big:o-big", "slow:o-slow")
    with mesh.held("o-slow"), mesh.running(("nightly.py", "odd", *wanted)) as (run,):
        run.go()
        ended = run.ended()
        rows = mesh.calls(run)
    assert ended.status == 0, ended.output
    for line, (tool, word) in zip(
        ended.lines("GOT"),
        {"broken": "no such order", "big": "result_too_large", "slow": "deadline"}.items(),
        strict=True,
    ):
        assert line.startswith(f"{tool} ")
        assert word in line
        assert mesh.effects(f"o-{tool}") == [rows[f"orders.{tool}"]["call_id"]]
    classes = {}
    for tool, row in rows.items():
        (outcome,) = mesh.records(kind="outcome", call_id=row["call_id"])
        classes[tool] = (outcome["state"], outcome["error_class"])
        assert "no such order" not in str(outcome)
    assert classes == {
        "orders.broken": ("failed", "tool_raised"),
        "orders.big": ("failed", "result_too_large"),
        "orders.slow": ("failed", "timeout"),
    }


def test_a_deadline_missed_by_any_other_tool_is_no_answer(mesh) -> None:
    """Unknown holds the run up; what the body gives in the end settles it, and the run goes on."""
    with mesh.running(("nightly.py", "stuck", "stuck:o-stuck")) as (run,):
        with mesh.held("o-stuck"):
            run.go()
            call_id = mesh.held_up(run)
            row = mesh.calls(run)["orders.stuck"]
            assert (row["state"], row["call_id"]) == ("unknown", call_id)
        ended = run.ended()
    assert len(ended.lines("GOT")) == 1, ended.output
    assert mesh.calls(run)["orders.stuck"]["state"] == "done"
    states = [r["state"] for r in mesh.records(kind="outcome", call_id=row["call_id"])]
    assert states == ["unknown", "done"]
    assert mesh.effects("o-stuck") == [row["call_id"]]
