"""Both sides of a divergence: what the operator is shown, and when it is gone."""

import json

import pytest
from fakes.gateway_parts import peer
from fakes.gateway_wire import serve
from gateway.conftest import CATALOGUE
from gateway.test_gateway_journal import OTHER, SCOPE, key, restart, step
from meshgate_deploy import run_commands
from meshgate_gateway.errors import Conflict
from meshgate_gateway.model import State
from meshgate_wire import broker_pb2 as pb
from typer.testing import CliRunner

from gateway import test_gateway_archive as archives

PAID, WANTED = {"order": "A1", "amount": 20}, {"order": "A1", "amount": 21}
ASKED = b'{"messages":[{"content":"what now?"}],"messages_before":2}'


def sides(world) -> str:
    """What is kept of the run, in clear."""
    run = world.run()
    return world.store.read(lambda tables: world.vault.get(tables, run.traceback)).decode()


def left_out(world, attempt: int, arguments=WANTED) -> None:
    """The effect of attempt 1 is asked for under another key."""
    restart(world, attempt)
    with pytest.raises(Conflict, match="run_diverged"):
        world.call(
            step_key=key(f"paid? {attempt}"), scope=OTHER, turn=3, attempt=attempt, left_out=key("paid"),
            arguments=arguments,
        )  # fmt: skip


@pytest.fixture
def paid(world):
    """A run whose first attempt has paid."""
    answer = world.call(step_key=key("paid"), scope=SCOPE, arguments=PAID)
    assert answer.state is State.DONE
    return world, answer.call_id


def test_the_effect_that_was_left_out_and_the_one_that_is_wanted(paid) -> None:
    """Tool and arguments of both; in no record and no row in clear, committed to by one."""
    world, call_id = paid
    left_out(world, 2)
    assert sides(world) == (
        f"orders.refund ({call_id}) at turn 0, recorded in attempt 1: done\n"
        '{"amount":20,"order":"A1"}\n\n'
        "now, in attempt 2: orders.refund at turn 3\n"
        '{"amount":21,"order":"A1"}\n\n'
    )
    (record,) = [record for record in world.records("lifecycle") if record["event"] == "run_differs"]
    assert record["traceback"]["hmac_sha256"] == world.run().traceback.commitment
    told = json.dumps(world.records()) + world.run().detail
    assert "A1" not in told


def test_the_model_step_to_which_an_earlier_attempt_had_gone_on(world) -> None:
    """Its turn, and the messages that were new in it."""
    world.journal.append(
        peer("desk"), run_id="run-1", attempt=1, step=step("m1", 1), request=ASKED, reply=b'"well"',
        milliseconds=7,
    )  # fmt: skip
    restart(world, 2)
    with pytest.raises(Conflict, match="run_diverged"):
        world.call(step_key=key("new"), scope=SCOPE, turn=1, attempt=2, arguments=PAID)
    recorded, now, _ = sides(world).split("\n\n")
    assert recorded == f"model step {key('m1')[:16]} at turn 1, recorded in attempt 1\n{ASKED.decode()}"
    assert now == 'now, in attempt 2: orders.refund at turn 1\n{"amount":20,"order":"A1"}'


def test_the_end_of_the_attempt_leaves_them(paid) -> None:
    """Its program fails at the refusal: that is not what the person has to know."""
    world, _ = paid
    left_out(world, 2)
    before = sides(world)
    world.runs.end_attempt(
        peer("desk"), run_id="run-1", attempt=2, state="restarting", detail="", traceback=b"Traceback: oh"
    )
    assert sides(world) == before


def test_they_are_gone_once_a_person_says_continue(paid) -> None:
    """Also from the payloads, and the record says so; another divergence shows its own."""
    world, _ = paid
    left_out(world, 2)
    sealed = world.run().traceback
    world.runs.control(run_id="run-1", action="continue", operator="ada")
    assert world.run().traceback is None
    assert world.store.read(lambda tables: tables.payloads.get(sealed.payload_id)) is None
    record = world.records("lifecycle")[-1]
    assert (record["event"], record["traceback"]) == ("run_continue", None)
    restart(world, 3)
    again = world.call(step_key=key("again"), scope=SCOPE, attempt=3, arguments={"order": "B", "amount": 1})
    restart(world, 4)
    with pytest.raises(Conflict, match="run_diverged"):
        world.call(step_key=key("other"), scope=OTHER, attempt=4, left_out=key("again"), arguments=WANTED)
    assert sides(world).startswith(f"orders.refund ({again.call_id}) at turn 0, recorded in attempt 3: done")
    assert '"amount":20' not in sides(world)


def test_they_stay_with_a_run_that_a_person_failed(paid) -> None:
    """They are why."""
    world, _ = paid
    left_out(world, 2)
    before = sides(world)
    assert world.runs.control(run_id="run-1", action="fail", operator="ada").state == "failed"
    assert sides(world) == before


def test_large_arguments_are_cut(paid) -> None:
    """A person needs their beginning, and the row of a run has room for so much."""
    world, _ = paid
    left_out(world, 2, {"order": "x" * 100_000, "amount": 1})
    assert 8_000 < len(sides(world)) < 9_000


@pytest.fixture
def wire(tmp_path):
    """A run over real mTLS that waits, and an operator at the command line."""
    made = serve(tmp_path, CATALOGUE)
    made.await_serving(True)
    archives.work(made, "run-1", ended=False)
    made.runs("desk").StartAttempt(pb.StartAttemptRequest(run_id="run-1", launcher_instance="l2"))
    wanted = pb.CallToolRequest(
        run_id="run-1", attempt=2, step_key=key("new"), tool="orders.refund", scope=archives.key("scope"),
        turn=1, arguments_json=json.dumps(WANTED).encode(),
    )  # fmt: skip
    assert archives.refusal(lambda: made.broker("desk").CallTool(wanted)) == "run_diverged"
    yield made
    made.close()


@pytest.fixture
def show(wire, monkeypatch):
    """`meshgate runs show run-1 …`: what it prints."""
    monkeypatch.setattr(run_commands, "_state", lambda _: None)
    monkeypatch.setattr(run_commands, "_ask", lambda _, *about: archives.asking(wire)(*about))

    def shown(*options: str) -> str:
        done = CliRunner().invoke(run_commands.app, ["show", "run-1", *options])
        assert done.exit_code == 0, done.output
        return done.output

    return shown


def test_the_operator_sees_both_sides(wire, show) -> None:
    """In every form of `runs show`, and no more once the run goes on."""
    now = 'now, in attempt 2: orders.refund at turn 1\n{"amount":21,"order":"A1"}'
    for options in ((), ("--steps",)):
        told = show(*options)
        assert f"model step {archives.key('m1')[:16]} at turn 1, recorded in attempt 1" in told
        assert now in told
    assert now in json.loads(show("-o", "json"))["traceback"]
    archives.asking(wire)("ControlRun", {"run_id": "run-1", "action": "continue", "operator": "ada"})
    assert "now, in attempt 2" not in show()


@pytest.mark.parametrize("action", ["continue", "fail"])
def test_an_archive_and_a_purge_know_of_them(wire, show, tmp_path, action) -> None:
    """What records commit to is what is exported; a purge leaves nothing of it."""
    archives.export(wire, tmp_path / "waiting.tar.gz")
    archives.asking(wire)("ControlRun", {"run_id": "run-1", "action": action, "operator": "ada"})
    found = archives.export(wire, tmp_path / "after.tar.gz")
    if action == "fail":
        archives.purge(wire, digest=found.digest)
        assert archives.kept(wire) == 0
        assert "now, in attempt 2" not in show()
