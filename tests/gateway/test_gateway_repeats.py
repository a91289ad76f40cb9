"""A second equal call in one task of a run: run, answered, or refused, as its tool says."""

import hashlib
import threading

import pytest
from fakes.gateway_parts import deny, peer
from meshgate_gateway.errors import Conflict, InvalidRequest
from meshgate_gateway.model import Outcome, State

TASK, OTHER = (hashlib.sha256(name).hexdigest() for name in (b"task", b"other"))


def ask(world, step, *, task=TASK, tool="orders.refund", **more):
    """One call at a step of its own."""
    return world.call(step_key=hashlib.sha256(step.encode()).hexdigest(), task=task, tool=tool, **more)


def test_the_second_call_gets_the_first_ones_outcome(world) -> None:
    """One effect; the second has a row and records of its own, and they name the first."""
    first, second = ask(world, "a"), ask(world, "b")
    assert (second.state, second.result) == (State.DONE, first.result)
    assert second.call_id != first.call_id
    assert world.runtime.effects == [first.call_id]
    about = [record for record in world.records() if record.get("call_id") == second.call_id]
    assert [(record["kind"], record["repeats"]) for record in about] == [
        ("decision", first.call_id),
        ("outcome", first.call_id),
    ]
    assert about[1]["cause"] == "repeat"
    third = ask(world, "c")
    assert world.row(third.call_id).repeats == first.call_id


@pytest.mark.parametrize(
    "change",
    [
        {"task": OTHER},
        {"task": ""},
        {"arguments": {"order": "A1", "amount": 21}},
        {"tool": "orders.keyed"},
    ],
)
def test_what_differs_is_no_repeat(world, change) -> None:
    """Another task, none at all, other arguments, another tool: an effect of its own."""
    ask(world, "a")
    ask(world, "b", **change)
    assert len(world.runtime.effects) == 2


def test_another_run_is_no_repeat(world) -> None:
    """Two runs of one program pay each once."""
    world.begin(run_id="run-2")
    ask(world, "a")
    ask(world, "a", run_id="run-2")
    assert len(world.runtime.effects) == 2


def test_deny_refuses_and_names_the_first(world) -> None:
    """One effect; the reason is stable."""
    first, second = (ask(world, step, tool="orders.once") for step in "ab")
    assert (second.state, second.reasons) == (State.DENIED, ("repeat_denied",))
    assert world.runtime.effects == [first.call_id]
    last = world.records("decision")[-1]
    assert (last["allow"], last["repeats"]) == (False, first.call_id)


def test_allow_runs_again_and_names_the_first(world) -> None:
    """Two effects, as its tool says."""
    first, second = (ask(world, step, tool="orders.again") for step in "ab")
    assert world.runtime.effects == [first.call_id, second.call_id]
    assert world.row(second.call_id).repeats == first.call_id


def test_an_open_first_call_is_joined(world) -> None:
    """Pending while the first is; then its outcome; never a second delivery that has an effect."""
    world.runtime.held = True
    first = ask(world, "a")
    assert ask(world, "b").state in (State.RESERVED, State.SENT)
    world.runtime.deliver_all()
    second = ask(world, "b")
    assert (second.state, second.call_id != first.call_id) == (State.DONE, True)
    assert world.runtime.effects == [first.call_id]


def test_twins_of_one_reply_have_one_effect(world) -> None:
    """Threads that ask at the same time, while the host takes its time."""
    world.runtime.background = True
    gate, answers = threading.Barrier(4), []

    def work(step: str) -> None:
        gate.wait(10)
        for _ in range(500):
            answer = ask(world, step)
            if answer.state is State.DONE:
                answers.append(answer)
                return

    threads = [threading.Thread(target=work, args=(step,)) for step in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({answer.call_id for answer in answers}) == 4
    assert len(world.runtime.effects) == 1


def test_an_unknown_first_call_holds_the_second_up(world) -> None:
    """The run waits; what a person says of the first answers the second too."""
    world.runtime.held = True
    first = ask(world, "a")
    world.hosts.take(peer("orders"), call_id=first.call_id, host_instance="h")
    world.hosts.finish(
        peer("orders"), call_id=first.call_id, take=1, host_instance="h",
        outcome=Outcome(State.UNKNOWN, b"lost", "", "lost_host"),
    )  # fmt: skip
    with pytest.raises(Conflict) as caught:
        ask(world, "b")
    assert caught.value.reason == "run_waiting"
    world.hosts.resolve(call_id=first.call_id, outcome=Outcome(State.DONE, b"paid", "text"), operator="ada")
    world.runs.start_attempt(peer("desk"), run_id="run-1", launcher="l2")
    second = ask(world, "b", attempt=2)
    assert (second.state, second.result) == (State.DONE, b"paid")
    assert world.runtime.effects == []


def test_the_policy_in_force_is_asked_of_a_repeat_too(world) -> None:
    """What is denied now gives no answer from before."""
    ask(world, "a")
    world.policy.answer = deny("tool_not_granted")
    assert ask(world, "b").reasons == ("tool_not_granted",)


def test_a_first_call_that_did_not_begin_does_not_count(world) -> None:
    """Denied, or failed as never started: the next one is the first."""
    world.policy.answer = deny("tool_not_granted")
    ask(world, "a")
    world.policy.answer = {"allow": True, "reasons": [], "approval": None, "obligations": {}}
    world.runtime.held = True
    ask(world, "b")
    world.clock.ms += 700_000
    world.sweeper.sweep()
    world.runtime.held = False
    world.runtime.waiting.clear()
    third = ask(world, "c")
    assert world.runtime.effects == [third.call_id]


def test_a_task_is_a_digest(world) -> None:
    """Anything else is refused before it is looked at."""
    with pytest.raises(InvalidRequest):
        ask(world, "a", task="billing")
